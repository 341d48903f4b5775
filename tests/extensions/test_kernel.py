"""The kernel extension, in a real kernel: origins know the cell, magics answer, loading stays light."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient, KernelManager

CONFIG = Path(__file__).parents[2] / "extensions" / "ipython_kernel_config.json"


class Kernel:
    """A kernel started as the platform starts it; `run` returns what a cell printed or evaluated to."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self.client = client

    def run(self, code: str, *, cell_id: str = "") -> str:
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        message = self.client.session.msg("execute_request", content, metadata={"cellId": cell_id} if cell_id else {})
        self.client.shell_channel.send(message)
        return self._outputs(message["header"]["msg_id"])

    def _outputs(self, request: str) -> str:
        texts: list[str] = []
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=120)
            except Empty:
                raise AssertionError("the kernel did not answer within 120 s") from None
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return "".join(texts)
            texts.append(_text(message["msg_type"], message["content"]))


def _text(kind: str, content: dict[str, Any]) -> str:
    if kind == "stream":
        return str(content["text"])
    if kind == "execute_result":
        return str(content["data"]["text/plain"])
    return f"{content['ename']}: {content['evalue']}" if kind == "error" else ""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "cellwork.toml").write_text('[project]\nname = "orchard"\n')
    manager = KernelManager(kernel_name="python3", transport="ipc", connection_file=str(folder / "kernel.json"))
    environ = {"PATH": str(Path(sys.executable).parent), "HOME": str(folder), "IPYTHONDIR": str(folder / "ipython")}
    manager.start_kernel(
        cwd=str(folder),
        env={**environ, "CELLWORK_HOME": str(folder / "home"), "JUPYTERHUB_USER": "ada"},
        extra_arguments=[f"--config={CONFIG}"],
    )
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=240)
        yield Kernel(client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


GATHER = "from cellwork import origin; o = origin.gather(); print(o.cell_id, o.source_sha256, o.user)"


def test_work_done_in_a_cell_carries_the_cells_id_and_the_hash_of_its_source(kernel):
    assert kernel.run(GATHER, cell_id="3f2a").split() == ["3f2a", hashlib.sha256(GATHER.encode()).hexdigest(), "ada"]


def test_each_cell_is_told_apart_and_a_cell_without_id_does_not_inherit_the_last_one(kernel):
    kernel.run(GATHER, cell_id="first")
    assert kernel.run(GATHER, cell_id="second").startswith("second ")
    assert kernel.run("print(origin.gather().cell_id == '')") == "True\n"


def test_a_cell_that_fails_is_the_origin_of_nothing_that_follows(kernel):
    assert "ZeroDivisionError" in kernel.run("1 / 0", cell_id="broken")
    assert kernel.run(GATHER, cell_id="next").startswith("next ")


def test_cellwork_magic_says_what_is_missing_and_what_to_do_about_it(kernel):
    text = kernel.run("%cellwork")
    assert "ada" in text
    assert "orchard" in text
    assert "start it with: cellwork up" in text


def test_the_value_of_a_magic_can_be_assigned(kernel):
    assert kernel.run("state = %cellwork\nprint(state.project)") == "orchard\n"


def test_why_without_an_id_shows_its_usage_and_with_one_the_error_in_one_line(kernel):
    assert "UsageError" not in kernel.run("%why?")
    assert "the following arguments are required: id" in kernel.run("%why")
    text = kernel.run("%why pred_00000000000000000000000000")
    assert "start it with: cellwork up" in text
    assert "Traceback" not in text


def test_train_runs_its_cell_and_finds_a_model_of_what_is_there_then(kernel):
    body = (
        "import numpy as np, pandas as pd\nfrom sklearn.linear_model import LogisticRegression\n"
        "X = pd.DataFrame(np.random.default_rng(0).normal(size=(300, 2)), columns=['a', 'b'])\ny = (X.a > 0).astype(int)\n"
        "model, grid = LogisticRegression(), {'C': [0.01, 1.0]}"
    )
    text = kernel.run(
        f"%%train X y --budget 10m --pipeline model --candidates grid --as best_one\n{body}", cell_id="train-me"
    )
    assert "candidate 2 of 2: roc_auc" in text
    assert "best roc_auc" in text
    assert kernel.run("print(best_one.leaderboard.height)") == "2\n"
    assert "did you mean 'model'" in kernel.run("%%train modle y --budget 1m\npass")
    assert "needs --pipeline and --candidates together" in kernel.run("%%train X y --pipeline model\npass")
    assert "ZeroDivisionError" in kernel.run("%%train X y\n1 / 0")


def test_register_names_what_is_not_there_and_needs_the_platform_for_the_rest(kernel):
    made = "import types\nfrom sklearn.linear_model import LogisticRegression\nfitted, X, train = LogisticRegression(), [1], types.SimpleNamespace()"
    kernel.run(made)
    assert "the following arguments are required" in kernel.run("%register fitted")
    assert "did you mean 'fitted'" in kernel.run("%register fited delay --dataset train --example X")
    assert "did you mean 'train'" in kernel.run("%register fitted delay --dataset trian --example X")
    assert "with the cell that says so" not in kernel.run("%register?")
    assert "Register a fitted model as the next version of a name" in kernel.run(
        "print(get_ipython().find_line_magic('register').__doc__)"
    )


def test_loading_twice_registers_one_hook_and_unloading_takes_it_away(kernel):
    kernel.run("%load_ext cellwork_jupyter\n%reload_ext cellwork_jupyter")
    count = "print([f.__name__ for f in get_ipython().events.callbacks['pre_run_cell']].count('remember_cell'))"
    assert kernel.run(count) == "1\n"
    kernel.run("%unload_ext cellwork_jupyter")
    assert kernel.run(count) == "0\n"
    kernel.run("%load_ext cellwork_jupyter")
    assert kernel.run(count) == "1\n"


def test_loading_the_extension_imports_no_heavy_library():
    code = (
        "import sys, cellwork_jupyter.kernel\n"
        "heavy = {'pandas', 'polars', 'numpy', 'sklearn', 'mlflow', 'feast', 'dask', 'httpx', 'ipywidgets'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout == "[]\n"
