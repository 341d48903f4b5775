"""More rows than memory: a batch at a time, or spread over the workers; requests as records; workers that die meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from cellwork import training
from cellwork.data import split
from cellwork.errors import BadInput, NotFound, Unavailable
from cellwork.training.request import carry_out
from cellwork.wire.training import TrainingRequest

LEARNER = make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", random_state=0))


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    random = np.random.default_rng(0)
    frame = pl.DataFrame(random.normal(size=(8000, 3)), schema=["a", "b", "c"])
    return frame.with_columns(
        late=(pl.col("a") + 0.3 * pl.Series(random.normal(size=8000)) > 0).cast(pl.Int8), flag=pl.col("b") > 0
    )


@pytest.fixture(scope="module")
def source(rows: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for k in range(4):
        rows[k * 2000 : (k + 1) * 2000].write_parquet(folder / f"{k}.parquet")
    return folder


def quiet(said: object) -> None:
    """Say nothing."""


def test_batches_are_all_the_rows_once_and_never_more_than_asked(source: Path, rows: pl.DataFrame) -> None:
    found = list(training.batches(source, "late", ["a", "flag"], rows=1500))
    assert max(len(y) for _, y in found) <= 1500
    assert np.concatenate([y for _, y in found]).tolist() == rows["late"].to_list()
    assert {tuple(X.columns) for X, _ in found} == {("a", "flag")}
    with pytest.raises(BadInput, match="did you mean 'late'"):
        next(training.batches(source, "lat"))
    with pytest.raises(NotFound, match="Parquet files"):
        next(training.batches(source / "nowhere", "late"))


CHILD = """
import sys
from pathlib import Path
import pyarrow.parquet
from sklearn.naive_bayes import GaussianNB
from cellwork import training

def fit(source):
    said = []
    training.fit_batches(GaussianNB(), training.batches(source, "label", rows=20_000), classes=[0, 1], progress=said.append)
    return said[-1].rows

def size(of):
    return int(Path("/proc/self/status").read_text().split(of + ":")[1].split()[0]) * 1024

small, large = sys.argv[1:]
fit(small)  # libraries are loaded and their threads there
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = size("VmRSS")
rows = fit(large)
learned = size("VmHWM")
whole = pyarrow.parquet.read_table(large)
print(rows, learned - before, size("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process since a moment")
def test_a_process_never_has_half_of_what_it_learns_from_in_memory(tmp_path: Path) -> None:
    """From one row group that is as large as the file, the worst a reader can meet; the same rows read at once take what they are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    columns = {f"x{k}": random.normal(size=25_000) for k in range(20)}
    chunk = pa.table({**columns, "label": random.integers(0, 2, 25_000)})
    whole = pa.concat_tables([chunk] * 25)
    terms: dict[str, Any] = {"use_dictionary": False, "compression": "none", "write_statistics": False}
    pq.write_table(chunk, tmp_path / "small.parquet", **terms)
    pq.write_table(whole, tmp_path / "large.parquet", row_group_size=whole.num_rows, **terms)
    assert pq.read_metadata(tmp_path / "large.parquet").num_row_groups == 1
    command = [sys.executable, "-c", CHILD, str(tmp_path / "small.parquet"), str(tmp_path / "large.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    rows, learned, read = map(int, done.stdout.split())
    assert rows == 625_000
    assert learned < whole.nbytes / 2
    assert read > whole.nbytes / 2


def test_a_learner_learns_a_batch_at_a_time_and_says_the_loss_of_what_it_had_not_seen(
    source: Path, rows: pl.DataFrame
) -> None:
    said: list[Any] = []
    model = training.fit_batches(
        LEARNER, training.batches(source, "late", rows=500), classes=[0, 1], progress=said.append
    )
    assert [loss.batch for loss in said] == list(range(1, 17))
    assert said[0].loss is None
    assert said[-1].loss < 0.5
    assert said[-1].rows == 8000
    assert "on what it had not seen" in str(said[-1])
    X = training.rows.features(rows.select("a", "b", "c", "flag"))
    assert (model.predict(X) == rows["late"].to_numpy()).mean() > 0.85


def test_a_fit_that_was_ended_goes_on_from_its_checkpoint_to_the_same_model(source: Path, tmp_path: Path) -> None:
    checkpoint, stop = tmp_path / "learner", threading.Event()
    first = training.batches(source, "late", rows=1000)
    training.fit_batches(
        LEARNER,
        first,
        classes=[0, 1],
        checkpoint=checkpoint,
        stop=stop,
        progress=lambda loss: loss.batch == 3 and stop.set(),
    )
    said: list[Any] = []
    terms: dict[str, Any] = {"classes": [0, 1], "checkpoint": checkpoint, "progress": said.append}
    resumed = training.fit_batches(LEARNER, training.batches(source, "late", rows=1000), **terms)
    assert [loss.batch for loss in said] == [4, 5, 6, 7, 8]
    whole = training.fit_batches(LEARNER, training.batches(source, "late", rows=1000), classes=[0, 1], progress=quiet)
    assert resumed[-1].coef_ == pytest.approx(whole[-1].coef_)
    checkpoint.write_bytes(b"something else")
    with pytest.raises(BadInput, match="is none of ours"):
        training.fit_batches(LEARNER, training.batches(source, "late"), **terms)


OTHERS: dict[str, tuple[Any, list[int], str, int]] = {
    "a parameter": (make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", random_state=0, alpha=0.1)), [0, 1], "late", 1000),
    "a step": (SGDClassifier(loss="log_loss", random_state=0), [0, 1], "late", 1000),
    "a type": (make_pipeline(MinMaxScaler(), SGDClassifier(loss="log_loss", random_state=0)), [0, 1], "late", 1000),
    "classes": (LEARNER, [0, 1, 2], "late", 1000),
    "labels": (LEARNER, [0, 1], "flag", 1000),
    "the size of batches": (LEARNER, [0, 1], "late", 500),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_a_checkpoint_of_something_else_is_refused_and_left(source: Path, tmp_path: Path, what: str) -> None:
    """It gave yesterday's model, with the parameters of yesterday."""
    checkpoint = tmp_path / "learner"
    terms: dict[str, Any] = {"checkpoint": checkpoint, "progress": quiet}
    training.fit_batches(LEARNER, training.batches(source, "late", rows=1000), classes=[0, 1], **terms)
    kept = checkpoint.read_bytes()
    model, classes, label, rows = OTHERS[what]
    with pytest.raises(BadInput, match=r"checkpoint .* is of (an)?other .*; name another file, or remove this one"):
        training.fit_batches(model, training.batches(source, label, rows=rows), classes=classes, **terms)
    assert checkpoint.read_bytes() == kept


def test_a_checkpoint_goes_on_with_the_same_model_made_anew_and_with_more_files(source: Path, tmp_path: Path) -> None:
    """Also where the model that was given has learned meanwhile, and classes come as an array."""
    checkpoint, less = tmp_path / "learner", tmp_path / "less"
    shutil.copytree(source, less)
    (less / "3.parquet").unlink()
    training.fit_batches(
        LEARNER, training.batches(less, "late", rows=1000), classes=[0, 1], checkpoint=checkpoint, progress=quiet
    )
    again = make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", random_state=0))
    for X, y in training.batches(source, "late", rows=100):
        again[0].partial_fit(X, y)
    said: list[Any] = []
    terms: dict[str, Any] = {"classes": np.array([0, 1]), "checkpoint": checkpoint, "progress": said.append}
    resumed = training.fit_batches(again, training.batches(source, "late", rows=1000), **terms)
    assert [loss.batch for loss in said] == [7, 8]
    whole = training.fit_batches(LEARNER, training.batches(source, "late", rows=1000), classes=[0, 1], progress=quiet)
    assert resumed[-1].coef_ == pytest.approx(whole[-1].coef_)


def test_a_checkpoint_of_an_older_version_does_not_say_what_it_is_of_and_is_refused(
    source: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "learner"
    terms: dict[str, Any] = {"classes": [0, 1], "checkpoint": checkpoint, "progress": quiet}
    training.fit_batches(LEARNER, training.batches(source, "late", rows=1000), **terms)
    _, _, data = checkpoint.read_bytes().partition(b"\n")
    checkpoint.write_bytes(b"cellwork-checkpoint 8\n" + data)
    with pytest.raises(BadInput, match="does not say of which model; name another file, or remove this one"):
        training.fit_batches(LEARNER, training.batches(source, "late", rows=1000), **terms)


def test_what_cannot_learn_in_batches_is_told(source: Path) -> None:
    with pytest.raises(BadInput, match="can't learn in batches"):
        training.fit_batches(training.catalogue.get("ridge").make("regressor"), [])
    with pytest.raises(BadInput, match="classes: are missing"):
        training.fit_batches(LEARNER, training.batches(source, "late"))
    with pytest.raises(BadInput, match="are none"):
        training.fit_batches(SGDRegressor(), [])


@pytest.mark.parametrize("name", ["xgboost", "lightgbm"])
def test_boosted_trees_fit_files_that_only_the_workers_read(
    workers: training.Cluster, source: Path, rows: pl.DataFrame, name: Any
) -> None:
    model = training.fit_partitioned(
        name, source, "late", cluster=workers, n_estimators=20, progress=quiet, timeout=240
    )
    rates = model.predict_proba(rows.select("a", "b", "c", "flag").cast(pl.Float64).to_pandas())
    assert ((rates[:, 1] > 0.5) == rows["late"].to_numpy()).mean() > 0.85
    with pytest.raises(BadInput, match="did you mean 'late'"):
        training.fit_partitioned(name, source, "latee", cluster=workers)


def test_texts_are_refused_before_anything_is_read(workers: training.Cluster, tmp_path: Path) -> None:
    pl.DataFrame({"carrier": ["AA"], "late": [1]}).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(BadInput, match="column 'carrier': holds"):
        training.fit_partitioned("xgboost", tmp_path, "late", cluster=workers)


def kill_one(cluster: training.Cluster) -> None:
    pids = cluster.client.run(os.getpid, on_error="ignore")
    os.kill(int(next(iter(pids.values()))), signal.SIGKILL)


@pytest.mark.parametrize("seed", [0, *(pytest.param(k, marks=pytest.mark.soak) for k in range(1, 20))])
def test_a_worker_killed_while_trees_are_boosted_ends_right_or_with_a_clear_error(source: Path, seed: int) -> None:
    """Killed at a seeded moment of the fit; either way in bounded time."""
    started = time.monotonic()
    with training.cluster(workers=2) as opened:
        delay = float(np.random.default_rng(seed).uniform(0.2, 4.0))
        killer = threading.Timer(delay, kill_one, args=(opened,))
        killer.start()
        said: list[str] = []
        terms: dict[str, Any] = {"n_estimators": 300, "progress": said.append, "timeout": 200}
        try:
            model = training.fit_partitioned("xgboost", source, "late", cluster=opened, **terms)
            assert model.n_classes_ == 2
        except Unavailable as error:
            said.append(str(error))
        killer.join()
    print(f"| {seed} | {delay:.2f} | {time.monotonic() - started:.1f} | {said[-1] if said else 'right'} |")


# Requests


def test_a_request_is_a_record_that_trains_on_the_first_part_and_measures_on_the_second(
    rows: pl.DataFrame, workers: training.Cluster
) -> None:
    whole = split.local(rows, label="late")
    recipe = split.shuffled(whole, 0.25).recipe
    request = TrainingRequest(dataset="", budget_seconds=100, models=["constant"], split=recipe)
    found, trained = carry_out(request, rows=whole, cluster=workers, progress=quiet)
    assert len(trained) == 6000
    assert found.leaderboard["model"].to_list() == ["constant"]
    with pytest.raises(BadInput, match="is not the one that was asked for"):
        carry_out(TrainingRequest(dataset="ds_1", budget_seconds=1), rows=whole)
