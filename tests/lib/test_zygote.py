"""Kernels forked from a zygote: real ones, warm, each for itself; and fresh ones where there is no zygote."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cellwork.runs import engine
from cellwork.runs import zygote as zygotes
from cellwork.runs.kernel import Kernel, allowed
from cellwork.runs.zygote import Zygote

MODULES = ("numpy", "polars", "sklearn.linear_model", "no_such_module")


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """One for all, however long the machine takes to answer; the test that kills it is the last that uses it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zygotes, "ANSWER_SECONDS", 120.0)
        patch.setattr(zygotes, "SMOKE_SECONDS", 240.0)
        patch.setattr(zygotes, "START_SECONDS", 240.0)
        made = Zygote.start(tmp_path_factory.mktemp("z"), MODULES, {**allowed(os.environ), "ONLY_OF_THE_ZYGOTE": "1"})
        assert made is not None
        yield made
        made.stop()


def run(folder: Path, kernel: Kernel, *sources: str) -> str:
    """Return what the cells printed."""
    cells: list[dict[str, Any]] = [
        {"cell_type": "code", "id": f"c{k}", "metadata": {}, "outputs": [], "execution_count": None, "source": s} for k, s in enumerate(sources)
    ]  # fmt: skip
    page = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}
    (folder / "n.ipynb").write_text(json.dumps(page))
    engine.execute(folder / "n.ipynb", folder / "out.ipynb", kernel=kernel)
    shown = json.loads((folder / "out.ipynb").read_text())["cells"]
    return "".join("".join(o.get("text", "")) for cell in shown for o in cell["outputs"])


def start(folder: Path, zygote: Zygote | None, name: str) -> Kernel:
    (folder / name).mkdir()
    return Kernel.start(folder / name, {**allowed(os.environ), "MINE": name}, zygote=zygote)


LOOKS = """
import json, os, random, sys
warm = [name for name in ("numpy", "polars", "sklearn.linear_model") if name in sys.modules]
import numpy as np
print(json.dumps([warm, os.environ.get("MINE"), os.environ.get("ONLY_OF_THE_ZYGOTE"), os.getppid(), random.random(), float(np.random.rand())]))
"""
COMPUTES = """
import polars as pl, numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
x = np.random.rand(500, 3)
model = HistGradientBoostingClassifier(max_iter=5).fit(x, x[:, 0] > 0.5)
print(pl.DataFrame({"a": [1, 2, 1]}).group_by("a").len().height, round(model.score(x, x[:, 0] > 0.5)))
"""


def test_forks_are_warm_computes_and_share_nothing(zygote: Zygote, tmp_path: Path) -> None:
    kernels = [start(tmp_path, zygote, name) for name in ("a", "b")]
    try:
        seen = [json.loads(run(tmp_path, kernel, LOOKS)) for kernel in kernels]
        for (warm, mine, foreign, parent, *_), name in zip(seen, ("a", "b"), strict=True):
            assert (len(warm), mine, foreign, parent) == (3, name, None, zygote.process.pid)
        assert seen[0][4:] != seen[1][4:], "each has random numbers of its own"
        assert [run(tmp_path, kernel, COMPUTES) for kernel in kernels] == ["2 1\n", "2 1\n"]
    finally:
        for kernel in kernels:
            kernel.stop(gently=3)
    assert not any(Path(f"/proc/{kernel.pid}").exists() for kernel in kernels)


def test_a_fork_that_dies_is_told_with_its_status_and_children_die_with_the_zygote(
    zygote: Zygote, tmp_path: Path
) -> None:
    dies, stays = start(tmp_path, zygote, "a"), start(tmp_path, zygote, "b")
    try:
        with pytest.raises(engine.RunFailed, match="exit status 3"):
            run(tmp_path, dies, "import os; os._exit(3)")
        os.kill(zygote.process.pid, signal.SIGKILL)
        end = time.monotonic() + 60
        while stays.alive() and time.monotonic() < end:
            time.sleep(0.05)
        assert not stays.alive()
        fresh = start(tmp_path, zygote, "c")
        assert run(tmp_path, fresh, "print('fresh')") == "fresh\n", "without its zygote a kernel is started fresh"
        fresh.stop()
    finally:
        dies.stop()
        stays.stop()


def test_a_zygote_whose_forks_can_not_compute_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "hangs_after_fork.py").write_text(
        "import os\nos.register_at_fork(after_in_child=lambda: os._exit(9))\n"
    )
    environment = {**allowed(os.environ), "PYTHONPATH": str(tmp_path)}
    assert Zygote.start(tmp_path, ["hangs_after_fork"], environment) is None
