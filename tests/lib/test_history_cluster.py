"""The point-in-time join on two worker processes: equal cell by cell to the local one, cancelled, and with workers that die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from deltalake import write_deltalake

from cellwork.errors import BadInput, Unavailable
from cellwork.features import cluster, history
from cellwork.features.history import JoinView, Progress
from cellwork.wire.features import Field, Select, View

START = datetime(2013, 6, 1, tzinfo=UTC)
PIPELINE = Select(rows="r", event="event", known="known")


@pytest.fixture(scope="module")
def dask() -> Iterator[Any]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as made,
        Client(made) as client,
    ):
        yield client


def view(name: str, keys: list[str], ttl: str = "") -> View:
    fields = [Field(name="temp", type="Int64"), Field(name="wind", type="Float64")]
    return View(name=name, entities=keys, fields=fields, pipeline=PIPELINE, ttl=ttl)


def rows(seed: int, count: int, keys: dict[str, list[Any]]) -> pl.DataFrame:
    """Feature rows with ties in event and created, late arrivals and null values."""
    generator = np.random.default_rng(seed)
    event = generator.integers(0, 400, count)
    created = event + generator.integers(-2, 20, count)
    frame = pl.DataFrame({name: generator.choice(np.array(values), count) for name, values in keys.items()})
    minutes = [pl.Series(name, [START + timedelta(minutes=int(m)) for m in each]) for name, each in (("event_timestamp", event), ("created_timestamp", created))]  # fmt: skip
    temp = pl.Series("temp", generator.integers(0, 4, count)).replace(3, None)
    return frame.with_columns(
        temp, pl.Series("wind", generator.integers(0, 3, count) / 2), *(m.cast(pl.Datetime("us", "UTC")) for m in minutes),
        pl.Series("_batch", [f"b{n % 7}" for n in range(count)]),
    )  # fmt: skip


def observed(seed: int, count: int) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "origin": generator.choice(np.array(["JFK", "LGA", "EWR", "XXX", None], dtype=object), count).tolist(),
            "number": generator.integers(0, 30, count),
            "at": [START + timedelta(minutes=int(m)) for m in generator.integers(-10, 450, count)],
        },
        schema={"origin": pl.String, "number": pl.Int64, "at": pl.Datetime("us", "UTC")},
    )


@pytest.mark.parametrize(
    ("seed", "partitions", "arrival"), [(1, 1, True), (2, 3, True), (3, 7, False), (4, None, True)]
)
def test_the_frame_and_its_coverage_are_those_of_one_process(
    dask: Any, tmp_path: Path, seed: int, partitions: int | None, arrival: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two views: one eager, with two keys and a ttl; one a Delta table that the workers read in stretches."""
    monkeypatch.setattr(cluster, "ROWS_AT_ONCE", 300)
    eager = rows(seed, 900, {"origin": ["JFK", "LGA", "EWR"], "number": list(range(30))})
    write_deltalake(
        tmp_path / "table", rows(seed + 50, 1000, {"origin": ["JFK", "LGA"]}).to_arrow(), partition_by=["_batch"]
    )
    views = [
        JoinView(
            view("flight", ["origin", "number"], "45m"),
            {"origin": "origin", "number": "number"},
            ["temp", "wind"],
            eager,
        ),
        JoinView(view("weather", ["origin"]), {"origin": "origin"}, ["temp"], pl.scan_delta(str(tmp_path / "table"))),
    ]
    wanted = observed(seed + 100, 500)
    told: list[Progress] = []
    frame, coverage = cluster.join(
        wanted, at="at", views=views, client=dask, arrival=arrival, partitions=partitions, progress=told.append
    )
    local, said = history.join(wanted, at="at", views=views, arrival=arrival)
    assert frame.equals(local)
    assert coverage == said
    assert (told[-1].done, told[-1].steps) == (2 * (partitions or 4),) * 2
    assert [step.done for step in told] == sorted(step.done for step in told)


def test_no_rows_and_no_observations_are_joined_as_in_one_process(dask: Any) -> None:
    there = rows(1, 5, {"origin": ["JFK"]})
    for frame, wanted in ((there.clear(), observed(1, 5)), (there, observed(1, 5).clear())):
        views = [JoinView(view("weather", ["origin"]), {"origin": "origin"}, ["temp"], frame)]
        assert cluster.join(wanted, at="at", views=views, client=dask)[0].equals(
            history.join(wanted, at="at", views=views)[0]
        )


def test_what_one_process_refuses_is_refused(dask: Any) -> None:
    views = [JoinView(view("weather", ["origin"]), {"origin": "airport"}, ["temp"], rows(1, 5, {"origin": ["JFK"]}))]
    with pytest.raises(BadInput, match="'airport'"):
        cluster.join(observed(1, 5), at="at", views=views, client=dask)


def test_a_cancel_ends_what_runs_and_leaves_nothing_on_the_cluster(dask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ROWS_AT_ONCE", 100)
    views = [
        JoinView(view("weather", ["origin"]), {"origin": "origin"}, ["temp"], rows(1, 2000, {"origin": ["JFK", "LGA"]}))
    ]

    def cancel(step: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cluster.join(observed(1, 50), at="at", views=views, client=dask, partitions=20, progress=cancel)
    end = time.monotonic() + 60
    while dask.run_on_scheduler(tasks) and time.monotonic() < end:
        time.sleep(0.05)
    assert dask.run_on_scheduler(tasks) == 0
    assert cluster.join(observed(1, 50), at="at", views=views, client=dask)[0].height == 50


def tasks(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


def test_a_worker_killed_in_the_middle_costs_no_row(dask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ROWS_AT_ONCE", 500)
    frame, wanted = rows(5, 5000, {"origin": ["JFK", "LGA", "EWR"]}), observed(6, 3000)
    views = [JoinView(view("weather", ["origin"], "1h"), {"origin": "origin"}, ["temp", "wind"], frame)]
    pids = list(dask.run(os.getpid).values())
    killed: list[int] = []

    def kill(step: Progress) -> None:
        if step.done >= 2 and not killed:
            killed.append(pids[0])
            os.kill(pids[0], signal.SIGKILL)

    joined, _ = cluster.join(wanted, at="at", views=views, client=dask, partitions=12, progress=kill)
    assert killed
    assert joined.equals(history.join(wanted, at="at", views=views)[0])


def test_a_cluster_without_a_worker_is_said_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import Client, LocalCluster

    monkeypatch.setattr(cluster, "PATIENCE", 1.0)
    views = [JoinView(view("weather", ["origin"]), {"origin": "origin"}, ["temp"], rows(1, 5, {"origin": ["JFK"]}))]
    with (
        LocalCluster(n_workers=0, processes=True, dashboard_address=None, host="127.0.0.1") as none,
        Client(none) as client,
        pytest.raises(Unavailable, match="no worker"),
    ):
        cluster.join(observed(1, 5), at="at", views=views, client=client)
