"""What goes wrong around training: rows that do not suit, workers killed at any moment, MLflow away for a while."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow_server
import numpy as np
import polars as pl
import psutil
import pytest
import tied
from need import need
from polars.testing import assert_frame_equal
from sklearn.linear_model import LogisticRegression

from cellwork import training
from cellwork.client import Client, base
from cellwork.data import split
from cellwork.errors import BadInput, Unavailable
from cellwork.models import package, registry, tracking, versions
from cellwork.models.columns import kinds, to_pandas
from cellwork.training import catalogue
from cellwork.wire.datasets import Dataset
from cellwork.wire.origin import Origin

RANDOM = np.random.default_rng(0)
FRAME = pl.DataFrame({"hour": RANDOM.integers(0, 24, 400), "carrier": RANDOM.choice(["AA", "BB"], 400)})
LATE = ((FRAME["hour"] > 12).to_numpy() ^ (RANDOM.random(400) < 0.1)).astype(int)


def quiet(step: object) -> None:
    """Say nothing."""


# Rows


@pytest.mark.parametrize(("name", "rows"), [("kmeans", 5), ("kmeans", 0)])
def test_more_clusters_than_rows_are_refused_before_anything_is_fitted(name: str, rows: int) -> None:
    numbers = FRAME.select(pl.col("hour").cast(pl.Float64))
    pipeline = catalogue.pipeline(name, numbers, kind="clusterer", n_clusters=8)
    with pytest.raises(BadInput, match="is more than the 5 rows" if rows else "rows to train on.*are none"):
        training.fit(pipeline, numbers[:rows])
    assert len(set(training.fit(pipeline, numbers)[-1].labels_)) == 8


def test_whole_numbers_are_cast_and_texts_and_missing_columns_are_told_when_it_predicts() -> None:
    known = FRAME.with_columns(pl.col("hour").cast(pl.Float64))
    columns = kinds(to_pandas(known))
    model = training.fit(catalogue.pipeline("hist_gradient_boosting", known, LATE), known, LATE)
    whole = model.predict_proba(to_pandas({"hour": [3, 20], "carrier": ["AA", "BB"]}, columns))
    assert whole.tolist() == model.predict_proba(to_pandas(pl.DataFrame({"hour": [3.0, 20.0], "carrier": ["AA", "BB"]}), columns)).tolist()  # fmt: skip
    with pytest.raises(BadInput, match="'hour': holds values that are no numbers"):
        to_pandas({"hour": ["noon"], "carrier": ["AA"]}, columns)
    for texts in (["3"], pl.Series(["3"]), pl.Series(["3", None]).to_pandas(), [3, "4"]):
        with pytest.raises(BadInput, match="'hour': holds values that are no numbers"):
            to_pandas({"hour": texts, "carrier": ["AA"] * len(texts)}, columns)
    assert to_pandas({"hour": pl.Series([None], dtype=pl.String), "carrier": ["AA"]}, columns)["hour"].isna().all()
    with pytest.raises(BadInput, match="'hour': is not in the frame; did you mean 'hours'"):
        to_pandas({"hours": [3], "carrier": ["AA"]}, columns)
    unseen = to_pandas({"hour": [None], "carrier": ["never seen"]}, columns)
    assert np.isfinite(model.predict_proba(unseen)).all()


def test_a_budget_that_suffices_for_no_candidate_is_told_with_the_way_out(workers: training.Cluster) -> None:
    with pytest.raises(Unavailable, match="its budget was spent before a candidate was done; give it more time"):
        training.search(
            LogisticRegression(), {"C": [1.0]}, FRAME.select("hour"), LATE, budget=1e-3, cluster=workers, progress=quiet
        )


# Workers


GRID = {"C": np.logspace(-3, 1, 12).tolist(), "max_iter": [200]}


def searched(cluster: training.Cluster, folds: bool) -> training.Search:
    X, y = np.random.default_rng(1).normal(size=(60_000, 20)), np.random.default_rng(2).integers(0, 2, 60_000)
    validation = None if folds else (X[:20_000], y[:20_000])
    return training.search(
        LogisticRegression(), GRID, X, y, cluster=cluster, progress=quiet, timeout=200, validation=validation
    )


@pytest.fixture(scope="module")
def undisturbed(workers: training.Cluster) -> dict[bool, training.Search]:
    """What is found when nobody is killed: with folds and without."""
    return {folds: searched(workers, folds) for folds in (True, False)}


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_a_worker_killed_while_it_searches_changes_nothing_of_what_is_found(
    seed: int, undisturbed: dict[bool, training.Search]
) -> None:
    """Killed at a seeded moment, one worker or all of them, with folds and without; the normal run has one such test in test_training."""
    dice = np.random.default_rng(seed)
    delay, all_of_them, folds = float(dice.uniform(0.05, 2.5)), bool(dice.random() < 0.3), bool(dice.random() < 0.5)
    expected = undisturbed[folds]
    with training.cluster(workers=2) as opened:
        pids = list(opened.client.run(os.getpid).values())
        killer = threading.Timer(
            delay, lambda: [os.kill(pid, signal.SIGKILL) for pid in pids[: 2 if all_of_them else 1]]
        )
        killer.start()
        found = searched(opened, folds)
        late = found.seconds < delay
        killer.cancel()
        killer.join()
    who = "both" if all_of_them else "one"
    print(
        f"| {seed} | {who} | {'folds' if folds else 'validation'} | {delay:.2f} | {found.seconds:.1f} | {'no: it had ended' if late else 'yes'} |"
    )
    assert found.score == pytest.approx(expected.score)
    assert_frame_equal(by_setting(found), by_setting(expected))


def by_setting(found: training.Search) -> pl.DataFrame:
    """Return the leaderboard without ranks: equal scores may stand in any order."""
    return found.leaderboard.select("C", "roc_auc", "error").sort("C")


# MLflow


class Door(socketserver.ThreadingTCPServer):
    """A port in front of MLflow that is ours from the first, and closed until `open`."""

    daemon_threads = allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Relay, bind_and_activate=False)
        self.server_bind()
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)

    def open(self) -> None:
        if not self._thread.is_alive():
            self.server_activate()
            self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self.shutdown()
        self.server_close()


class Relay(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        host, _, port = mlflow_server.url().removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as there:
            back = threading.Thread(target=pump, args=(there, self.request), daemon=True)
            back.start()
            pump(self.request, there)
            back.join(60)


def pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return  # one side went away, which is what is tested


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    mlflow_server.url()
    door = Door()
    monkeypatch.setenv("CELLWORK_URL", f"http://127.0.0.1:{door.server_address[1]}")
    monkeypatch.setenv("CELLWORK_TOKEN", "token")
    yield door
    door.close()


def trained_on(project: str) -> Dataset:
    now = pl.datetime_range(pl.datetime(2013, 9, 1), pl.datetime(2013, 9, 1), time_zone="UTC", eager=True)[0]
    return Dataset(
        id="ds_" + "7" * 26, project=project, name="training", rows=400, observations="departures", id_column="id", time_column="at",
        inputs=["hour", "carrier"], features=[], label="late", labelled=400, start=now, end=now, content_sha256="c" * 64,
        revision=1, batches=[], coverage=[], at=now, origin=Origin(),
    )  # fmt: skip


def test_a_model_is_not_lost_when_mlflow_is_away_and_registers_when_it_is_back(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = trained_on("away")
    model = training.fit(catalogue.pipeline("hist_gradient_boosting", FRAME, LATE, max_iter=5), FRAME, LATE)
    with Client(f"http://127.0.0.1:{door.server_address[1]}", "token") as client:
        part = split.Part(trained, FRAME, "train", {"kind": "time", "cuts": ["2013-09-01"]})
        terms: dict[str, Any] = {"dataset": part, "X_example": FRAME.head(), "client": client}
        with pytest.raises(Unavailable, match="service 'mlflow': does not answer"):
            registry.register(model, "delay", **terms)
        monkeypatch.setattr(base, "time", SimpleNamespace(sleep=lambda seconds: door.open()))  # before it asks again
        version = registry.register(model, "delay", **terms)
        found = versions.get(client, "away/delay", 1)
        assert (version.version, found.digest) == (1, version.digest)
        assert json.loads(found.tags["split"]) == {"kind": "time", "cuts": ["2013-09-01"], "part": "train"}


def test_a_full_artifact_store_is_told_leaves_no_version_and_takes_the_model_when_there_is_room(tmp_path: Path) -> None:
    """MLflow keeps its artifacts on a disk of 40 kB of its own, which nobody else sees; then it grows."""
    need(
        os.geteuid() == 0 and bool(shutil.which("unshare")) and bool(shutil.which("nsenter")), "root, unshare, nsenter"
    )
    disk = tmp_path / "artifacts"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=40k none {disk} && exec "$@"'
    address, process = mlflow_server.start(
        tmp_path, ["unshare", "--mount", "--propagation", "private", "sh", "-ec", mount, "-"]
    )
    try:
        model = training.fit(catalogue.pipeline("random_forest", FRAME, LATE, n_estimators=20), FRAME, LATE)
        with Client(address, "token") as client:
            terms: dict[str, Any] = {"dataset": trained_on("full"), "X_example": FRAME.head(), "client": client}
            with pytest.raises(
                Unavailable, match=r"model file 'model.skops.*': could not be kept: .* make room where MLflow keeps"
            ):
                registry.register(model, "delay", **terms)
            assert list(versions.of_project(client, "full")) == []
            [run] = tracking.send(client, "/runs/search", {"experiment_ids": ["1"]})["runs"]
            assert run["info"]["status"] == "FAILED"
            [inside] = psutil.Process(process.pid).children()
            grow = ["nsenter", "--target", str(inside.pid), "--mount", "mount", "-o", "remount,size=50m", str(disk)]
            subprocess.run(grow, check=True, timeout=30)
            version = registry.register(model, "delay", **terms)
            assert version.version == 1
            again = package.load(package.download(client, "full/delay", 1, tmp_path / "copy"))
            rows = to_pandas(FRAME.head())
            assert np.allclose(again.predict_proba(rows), model.predict_proba(rows))
    finally:
        tied.stop(process)
