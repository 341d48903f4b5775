"""PyTorch by `torchrun`: two processes learn one network, and one that is killed comes back. Run by `make torch`."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest
import skops.io
from sklearn.metrics import r2_score, roc_auc_score

from cellwork import training
from cellwork.models import package
from cellwork.training import catalogue

RANDOM = np.random.default_rng(0)
X = pl.DataFrame({"hour": RANDOM.integers(0, 24, 900).astype(float), "carrier": RANDOM.choice(["AA", "BB", "CC"], 900)})
AMOUNT = 1000 * (X["hour"].to_numpy() / 8 + 2 * (X["carrier"] == "AA").to_numpy() + RANDOM.normal(0, 0.3, 900))
LATE = (np.median(AMOUNT) < AMOUNT).astype(int)


@pytest.mark.torch
def test_two_processes_learn_one_network_by_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for y, kind in ((LATE, "classifier"), (AMOUNT, "regressor")):
        wanted = catalogue.pipeline("neural_network", X, y, epochs=30, batch=64, processes=2, device="cpu")
        with Watched(tmp_path) as watched:
            model = training.fit(wanted, X[:600], y[:600])
        frame = training.rows.features(X[600:])
        found = (
            roc_auc_score(y[600:], model.predict_proba(frame)[:, 1])
            if kind == "classifier"
            else r2_score(y[600:], model.predict(frame))
        )
        assert found > 0.8
        assert model[-1].losses_[-1] < model[-1].losses_[0]
        assert len(watched.seen) == 2, "two processes learned"
        data = skops.io.dumps(model)
        assert (
            skops.io.loads(data, trusted=package.untrusted(data)).predict(frame).tolist()
            == model.predict(frame).tolist()
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.torch
def test_a_process_killed_while_it_learns_is_started_again_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    wanted = catalogue.pipeline("neural_network", X, LATE, epochs=40, batch=16, processes=2, device="cpu")
    with Watched(tmp_path, kill=True) as watched:
        model = training.fit(wanted, X[:600], LATE[:600])
    assert watched.killed, "one was killed after its first checkpoint"
    assert len(watched.seen) >= 3, "others came in its place"
    assert roc_auc_score(LATE[600:], model.predict_proba(training.rows.features(X[600:]))[:, 1]) > 0.8


class Watched:
    """Looks at the processes that learn in `folder` while it is open; with `kill` it ends one of them once there is a checkpoint."""

    def __init__(self, folder: Path, *, kill: bool = False) -> None:
        self.folder, self.kill = folder, kill
        self.seen: set[int] = set()
        self.killed = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _look(self) -> None:
        while not self._over.wait(0.05):
            found = {p.pid for p in psutil.Process().children(recursive=True) if self._learns(p)}
            self.seen |= found
            if self.kill and found and not self.killed and list(self.folder.glob("*/checkpoint.pt")):
                self.killed = max(found)
                os.kill(self.killed, signal.SIGKILL)

    @staticmethod
    def _learns(process: psutil.Process) -> bool:
        try:
            return (
                "cellwork.training.parallel" in process.cmdline() and "torch.distributed.run" not in process.cmdline()
            )
        except psutil.Error:
            return False
