"""Lab's way to a kept kernel, with Jupyter's own kernel manager: start, look, interrupt, restart, and what is said when it is gone."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from jobs_world import World, page, start_runner
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from jupyter_client.session import Session
from running import wait_for
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websockets

from cellwork.runs import attach, frames
from cellwork.wire.jobs import ResumeRequest, Run, RunRequest


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("home"), keep=timedelta(seconds=120))
    runner = start_runner(world.url, 1, world.state.home.log("runner"))
    yield world
    runner.terminate()
    runner.wait(60)
    world.close()


@pytest.fixture
def platform(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("CELLWORK_URL", world.url)
    monkeypatch.setenv("CELLWORK_TOKEN", "ada-token")
    return world


def failed(world: World, *sources: str) -> Run:
    jobs = world.client().jobs
    request = RunRequest(project="p", notebook="n.ipynb", content=page(*sources))
    run = jobs.wait(jobs.start(request).id, timeout=240)
    assert run.kept is not None
    return run


class Lab:
    """A Jupyter client that starts the spec's kernel, as Lab's server does."""

    def __init__(self, folder: Path, run: str, cell: int) -> None:
        name = attach.ensure_spec(folder, run, cell)
        specs = KernelSpecManager(kernel_dirs=[str(folder / "kernels")], ensure_native_kernel=False)
        self.manager = KernelManager(
            kernel_name=name, kernel_spec_manager=specs, shutdown_wait_time=120, transport="ipc", connection_file=str(folder / "kernel.json")
        )  # fmt: skip
        self.manager.start_kernel()
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=240)
        self._subscribed()

    def _subscribed(self) -> None:
        """Wait until what the kernel publishes arrives: a subscription that is made too late misses it without a word."""
        for _ in range(20):
            self.client.kernel_info()
            with contextlib.suppress(queue.Empty):
                self.client.get_iopub_msg(timeout=1)
                return
        raise AssertionError("nothing that the kernel publishes arrives")

    def run(self, code: str, timeout: float = 60) -> str:
        """Return what `code` printed, its value or its error."""
        texts: list[str] = []

        def hook(message: dict[str, Any]) -> None:
            content = message["content"]
            texts.append(
                content.get("text", "") or content.get("data", {}).get("text/plain", "") or content.get("evalue", "")
            )

        self.client.execute_interactive(code, timeout=timeout, output_hook=hook, allow_stdin=False)
        return "".join(texts)

    def answer(self, asked: str) -> dict[str, Any]:
        """Return the answer to the message `asked`, when the kernel is idle again.

        Between its answer of an error and its word that it is idle, ipykernel throws away the cells that come in.
        """
        while (reply := self.client.get_shell_msg(timeout=60))["parent_header"].get("msg_id") != asked:
            pass
        state = ""
        while state != "idle":
            said = self.client.get_iopub_msg(timeout=60)
            if said["parent_header"].get("msg_id") == asked:
                state = said["content"].get("execution_state", "")
        return dict(reply["content"])

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=False)


def test_lab_looks_into_the_kernel_at_the_failing_cell_and_what_it_does_there_counts(
    platform: World, tmp_path: Path
) -> None:
    run = failed(platform, "rows = [1, 2, 3]", "sum(row / 0 for row in rows)", "print('then', rows)")
    lab = Lab(tmp_path, run.id, 2)
    try:
        assert lab.run("print(len(rows))") == "3\n"
        assert lab.run("rows") == "[1, 2, 3]"
        assert "division by zero" in lab.run("1 / 0")
        lab.run("rows = [4]")
        lab.manager.restart_kernel()
        lab.client.wait_for_ready(timeout=240)
        assert lab.run("rows") == "[4]", "a restart of Lab's kernel leaves the run's kernel as it is"
        jobs = platform.client().jobs
        jobs.resume(run.id, ResumeRequest(content=page("rows = [1, 2, 3]", "pass", "print('then', rows)")))
        assert jobs.wait(run.id, timeout=240).state == "succeeded"
        assert "then [4]" in jobs.notebook(run.id)
        said = wait_for(lambda: (text := lab.run("rows")) != "[4]" and text, 60, "the end of its kernel")
        assert "its kernel has ended" in said or "its kernel is not kept" in said, "it says so instead of dying"
        assert lab.manager.is_alive()
        process = lab.manager.provisioner.process
    finally:
        lab.close()
    assert process.returncode == 0, "it ends when it is asked to, also in the kernel's place"


class Leaving:
    """A kernel behind the service that says `last` of the first cell, with its output, and is gone."""

    def __init__(self, *last: str) -> None:
        self.last, self.session = last, Session()

    def __call__(self, service: ServerConnection) -> None:
        for frame in service:
            assert isinstance(frame, bytes)
            channel, parts = frames.unpack(frame)
            asked = json.loads(parts[0])
            said = self.last if asked["msg_type"] == "execute_request" else ("reply", "idle")
            if "reply" in said:
                content = {"status": "ok", "execution_count": 1, "protocol_version": "5.3"}
                self._say(service, channel, asked["msg_type"].replace("_request", "_reply"), content, asked)
            if "idle" in said:
                self._say(service, "iopub", "status", {"execution_state": "idle"}, asked)
            if asked["msg_type"] == "execute_request":
                service.close(4410)
                return

    def _say(self, way: ServerConnection, channel: str, kind: str, content: dict[str, Any], asked: Any) -> None:
        message = self.session.msg(kind, content, parent={"header": asked})
        parts = [
            json.dumps(message[part], default=str).encode()
            for part in ("header", "parent_header", "metadata", "content")
        ]
        way.send(frames.pack(channel, parts))


@pytest.mark.parametrize("last", [(), ("reply",), ("idle",)], ids=["nothing", "reply", "idle"])
def test_a_cell_is_over_when_the_kernel_goes_whatever_it_said_of_it_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: tuple[str, ...]
) -> None:
    """Reply and idle come by two ways; a kernel that ended between them left the cell running for ever."""
    with serve_websockets(Leaving(*last), "127.0.0.1", 0, subprotocols=[frames.PROTOCOL]) as service:  # type: ignore[list-item]
        threading.Thread(target=service.serve_forever, daemon=True).start()
        monkeypatch.setenv("CELLWORK_URL", f"http://127.0.0.1:{service.socket.getsockname()[1]}")
        monkeypatch.setenv("CELLWORK_TOKEN", "ada-token")
        lab = Lab(tmp_path, "run_leaving", 1)
        try:
            waiting = lab.client.execute("1 + 1")
            said, states = "", set()
            while not ("its kernel has ended" in said and states >= {"idle"}):
                message = lab.client.get_iopub_msg(timeout=60)
                if message["parent_header"].get("msg_id") == waiting:
                    said += message["content"].get("evalue", "")
                    states.add(message["content"].get("execution_state"))
            while lab.client.get_shell_msg(timeout=60)["parent_header"].get("msg_id") != waiting:
                pass
            assert "its kernel has ended" in lab.run("1 + 1"), "nor does the next one wait"
        finally:
            lab.close()


def test_an_interrupt_from_lab_reaches_the_kernel(platform: World, tmp_path: Path) -> None:
    run = failed(platform, "1 / 0")
    lab = Lab(tmp_path, run.id, 1)
    try:
        waiting = lab.client.execute("print('sleeps')\nimport time; time.sleep(60)")
        while lab.client.get_iopub_msg(timeout=60)["msg_type"] != "stream":
            pass
        lab.manager.interrupt_kernel()
        answer = lab.answer(waiting)
        assert answer["ename"] == "KeyboardInterrupt"
        assert lab.run("1 + 1") == "2"
    finally:
        lab.close()
        platform.client().jobs.release(run.id)


def test_somebody_else_does_not_get_in(platform: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bob may start runs of his own; the kernel of Ada's run holds her rights."""
    run = failed(platform, "secret = 'of ada'", "1 / 0")
    monkeypatch.setenv("CELLWORK_TOKEN", "bob-token")
    lab = Lab(tmp_path, run.id, 2)
    try:
        assert "not yours" in lab.run("print(secret)")
    finally:
        lab.close()
        platform.client().jobs.release(run.id)


def test_specs_of_kernels_that_are_gone_are_tidied_away(tmp_path: Path) -> None:
    for run in ("run_" + "0" * 26, "run_" + "1" * 26):
        attach.ensure_spec(tmp_path, run, 1)
    assert attach.tidy(tmp_path, lambda run: run.endswith("1")) == ["run_" + "0" * 26]
    assert [path.name for path in (tmp_path / "kernels").iterdir()] == ["cellwork-run_" + "1" * 26]


def test_without_arguments_it_says_what_it_wants() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "cellwork_jupyter.kernel.attach"], capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 2
    assert "run" in answer.stderr
