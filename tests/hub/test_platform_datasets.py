"""Datasets over HTTP: every observation once, in order, with what was known then; equal requests give equal datasets."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from click.testing import CliRunner
from feature_world import DAY, definitions, flights, work
from raw_platform import serving, state_in

from cellwork import client as clients
from cellwork import data, training
from cellwork.cli import main
from cellwork.client import Client
from cellwork.data import dataset, split
from cellwork.errors import BadInput, CellworkError, Conflict, NotFound
from cellwork.wire.batches import RawDataset, Seal
from cellwork.wire.datasets import DatasetRequest
from cellwork.wire.features import Definitions, Field, Observations
from cellwork_hub import records
from cellwork_hub.platform import batches, dataset_builds, datasets, features, splits
from cellwork_hub.platform.state import State

ROUTERS = [batches, features, datasets, dataset_builds, splits]
END = DAY + timedelta(days=3)
KEPT = RawDataset(name="flights", key=["id"], seals=[Seal(holdout="last", partitions=["d2"], columns=["delay"])])


def airport() -> Definitions:
    known = definitions()
    known.observations[0].keys = {"origin": "origin", "id": "id"}
    known.prepared[0].sql = known.prepared[0].sql.replace(" FROM", ", hour(planned) AS hour FROM")
    known.views[1].fields = [Field(name="hour", type="Float32")]
    known.services[0].features = ["late", "plan:hour"]
    return known


@pytest.fixture
def state(tmp_path: Path) -> State:
    return state_in(tmp_path, ROUTERS, on_batch=(features.enqueue,))


@pytest.fixture
def air(state: State, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Three days of flights, the delays of the third sealed; features applied and computed."""
    with serving(state, ROUTERS) as url:
        monkeypatch.setenv("CELLWORK_URL", url)
        monkeypatch.setenv("CELLWORK_TOKEN", "author")
        client = clients.connect()
        data.declare(KEPT, project="air")
        for day in range(3):
            data.ingest("air/flights", flights(day), f"d{day}")
        client.features.apply(airport())
        work(state)
        yield client
        client.close()


def build(name: str = "training", **changed: Any) -> dataset.Dataset:
    wanted: dict[str, Any] = {
        "observations": "departures",
        "features": ["all"],
        "start": DAY - timedelta(hours=1),
        "end": END,
    }
    return dataset.build(f"air/{name}", **{**wanted, **changed}, wait=5)


def test_every_observation_comes_out_once_in_order_with_all_columns(air: Client) -> None:
    built = build()
    assert built.frame().columns == [
        "id", "asked", "origin", "late__flights", "late__delay", "plan__hour", "late__event_timestamp", "late___batch",
        "plan__event_timestamp", "plan___batch", "delay", "landed", "_batch",
    ]  # fmt: skip
    everything = pl.concat([flights(day) for day in range(3)])
    assert built.frame()["id"].to_list() == everything["id"].to_list()
    assert built.frame()["delay"].to_list() == [*everything["delay"][:48], *[None] * 24]
    assert (built.record.rows, built.record.labelled, built.record.label_known) == (72, 48, "landed")
    assert [(c.view, c.rows, c.found > 0) for c in built.record.coverage] == [("late", 72, True), ("plan", 72, True)]


def test_the_features_are_those_of_a_plain_count_of_what_was_known(air: Client) -> None:
    """At `asked`: flights of the origin that were planned in the last six hours of the grid and had landed by then."""
    everything = pl.concat([flights(day) for day in range(3)]).rows(named=True)
    for row in build().frame().rows(named=True):
        grid = row["asked"].replace(minute=0, second=0)
        known = [
            other for other in everything
            if other["origin"] == row["origin"] and grid - timedelta(hours=6) < other["planned"] and other["planned"] + timedelta(hours=2) <= grid
        ]  # fmt: skip
        assert (row["late__flights"] or 0) == len(known), row


def test_a_dataset_is_saved_as_it_is_and_trained_on_a_batch_at_a_time(air: Client, tmp_path: Path) -> None:
    built = build()
    file = built.save(tmp_path / "some" / "rows.parquet")
    assert pl.read_parquet(file).equals(built.frame())
    learned = list(training.batches(file, built.record.label, built.columns, rows=10))
    assert pd.concat([X for X, _ in learned], ignore_index=True).equals(built.X().reset_index(drop=True))
    assert [value for _, y in learned for value in y] == built.y().to_list()
    said = CliRunner().invoke(main, ["dataset", "save", built.id, str(tmp_path / "again.parquet")])
    assert said.output == f"wrote 72 rows to {tmp_path}/again.parquet\n"
    assert (tmp_path / "again.parquet").read_bytes() == file.read_bytes()
    with pytest.raises(NotFound, match="does not exist"):
        air.datasets.save(f"ds_{'0' * 26}", tmp_path / "none.parquet")
    assert not list(tmp_path.glob("*none*"))


def test_neither_the_platform_nor_who_saves_it_has_a_dataset_in_memory_whole(
    air: Client, state: State, tmp_path: Path
) -> None:
    """Both are this process: what they hold of it at a time is what Python counts."""
    built, size = build(), 256 << 20
    with (state.home.dataset(built.id) / "data.parquet").open("r+b") as file:
        file.truncate(size)
    tracemalloc.start()
    try:
        built.save(tmp_path / "rows.parquet")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "rows.parquet").stat().st_size == size
    assert peak < size / 10


def test_the_time_asked_for_includes_its_start_and_not_its_end(air: Client) -> None:
    built = build(start=DAY, end=DAY + timedelta(hours=2), features=["late:flights"])
    assert built.frame()["asked"].to_list() == [DAY, DAY + timedelta(hours=1)]
    assert built.columns == ["late__flights"]
    assert "late__delay" not in built.frame().columns


def test_the_same_request_gives_the_same_dataset_and_builds_nothing(air: Client, state: State) -> None:
    first, again = build(), build()
    assert again.record == first.record
    other = build("other")
    assert (other.id != first.id, other.record.content_sha256 == first.record.content_sha256) == (True, True)
    data.ingest("air/flights", flights(9), "d9")
    work(state)
    later = build()
    assert later.id == first.id
    assert [event.subject for event in records.events(state.engine, 0, "dataset.built")] == [first.id, other.id]


def test_a_corrected_batch_makes_another_dataset_and_the_first_stays(air: Client, state: State) -> None:
    first = build()
    before = first.frame()
    data.ingest("air/flights", flights(1, delay=99.0), "d1")
    work(state)
    second = build()
    assert second.id != first.id
    assert second.frame().filter(pl.col("id") == 100)["delay"].to_list() == [99.0]
    assert second.frame()["id"].sort().equals(before["id"].sort())
    assert dataset.get(first.id).frame().equals(before)
    assert [d.id for d in dataset.listing("air")] == [first.id, second.id]


def test_it_tells_the_batches_and_feature_sets_it_was_built_from(air: Client) -> None:
    """A rolling value of the second day's first hours counts flights of the first day."""
    built = build(start=DAY + timedelta(days=1), end=DAY + timedelta(hours=47), features=["late"])
    d0, d1, _ = (batch.id for batch in data.batches("air/flights"))
    assert set(built.frame()["late___batch"].drop_nulls()) == {d1}
    assert built.record.batches == sorted([d0, d1])
    runs = {run.batch: run.feature_set for run in air.features.runs("air", view="late")}
    edges = air.connection.call("cellwork", "GET", "/api/v1/lineage", list[dict[str, Any]], subject=built.id)
    assert sorted(edge["to"] for edge in edges if edge["relation"] == "built_from") == sorted([d0, d1, runs[d1]])


def test_one_batch_or_no_labels_can_be_asked_for(air: Client) -> None:
    batch = data.batches("air/flights")[2].id
    built = build(batch=batch, labels=False)
    assert built.frame()["_batch"].unique().to_list() == [batch]
    assert (len(built), built.record.label) == (24, "")
    assert "delay" not in built.frame().columns
    assert built.X().shape == (24, 3)
    with pytest.raises(BadInput, match="labels=True"):
        built.y()


def test_a_label_that_never_became_known_is_null(air: Client, state: State) -> None:
    known = airport()
    sql = "SELECT *, planned - INTERVAL 1 HOUR AS asked, hour(planned) AS hour, CASE WHEN id % 2 = 0 THEN planned END AS landed FROM flights"
    known.prepared.append(type(known.prepared[0])(name="half", sources=["flights"], sql=sql))
    known.observations = [
        Observations(
            name="half",
            rows="half",
            id="id",
            at="asked",
            keys={"origin": "origin"},
            inputs=[],
            label="delay",
            label_known="landed",
        )
    ]
    air.features.apply(known)
    built = build(observations="half", features=["late"], end=DAY + timedelta(hours=23))
    assert built.record.labelled == 12
    assert built.frame().filter(pl.col("id") % 2 == 1)["delay"].null_count() == 12
    assert len(built.X()) == len(built.y()) == 12


def test_what_is_wrong_with_a_request_is_said_with_the_near_miss(air: Client) -> None:
    d0 = data.batches("air/flights")[0].id
    other = data.ingest("air/weather", pl.DataFrame({"origin": ["JFK"], "temp": [1.0]}), "d0").batch.id
    cases: list[tuple[type[CellworkError], str, dict[str, Any]]] = [
        (BadInput, "did you mean 'departures'", {"observations": "departure"}),
        (BadInput, "did you mean 'late'", {"features": ["lat"]}),
        (BadInput, "did you mean 'flights'", {"features": ["late:flight"]}),
        (BadInput, "has no rows", {"start": END, "end": END + timedelta(days=1)}),
        (BadInput, "is not after its start", {"end": DAY - timedelta(days=1)}),
        (BadInput, "no time zone", {"start": "2013-06-01T00:00:00"}),
        (BadInput, "is not of data set 'air/flights'", {"batch": other}),
        (NotFound, "does not exist", {"batch": "bat_" + "0" * 26}),
        (BadInput, "has no rows", {"batch": d0, "start": DAY + timedelta(days=2)}),
    ]
    for kind, words, changed in cases:
        with pytest.raises(kind, match=words):
            build(**changed)
    with pytest.raises(NotFound, match="does not exist"):
        dataset.get("ds_" + "0" * 26)
    with pytest.raises(NotFound, match="never applied"):
        air.datasets.build(
            DatasetRequest(project="nobody", name="x", observations="y", features=[], start=DAY, end=END)
        )


def test_a_view_needs_keys_that_the_observations_have(air: Client) -> None:
    known = airport()
    known.observations[0].keys = {}
    air.features.apply(known)
    with pytest.raises(BadInput, match="join key 'origin': is needed by view 'late'"):
        build()


def test_nothing_is_built_while_features_are_still_to_be_computed(air: Client, state: State) -> None:
    data.ingest("air/flights", flights(3), "d3")
    request = DatasetRequest(project="air", name="t", observations="departures", features=["late"], start=DAY, end=END)
    with pytest.raises(Conflict, match=r"feature view 'late'.*queued"):
        air.datasets.build(request)
    work(state)
    assert air.datasets.build(request).rows


def test_what_a_crash_left_of_a_dataset_is_replaced(air: Client, state: State) -> None:
    built = build()
    before = built.frame()
    folder = state.home.dataset(built.id)
    assert sorted(path.name for path in folder.iterdir()) == ["data.parquet", "manifest.json"]
    with state.engine.begin() as db:
        db.exec_driver_sql("DELETE FROM datasets")
        db.exec_driver_sql("DELETE FROM dataset_builds")
    (folder / "data.parquet").write_bytes(b"half of it")
    assert build().frame().equals(before)


# What is sealed


def test_the_holdout_has_the_truth_and_no_route_has_it(air: Client, state: State) -> None:
    held = datasets.holdout_frame(state, "air", "last", "departures", ["all"])
    truth = flights(2)
    assert held["id"].to_list() == truth["id"].to_list()
    assert held["delay"].to_list() == truth["delay"].to_list()
    assert held["plan__hour"].to_list() == truth["planned"].dt.hour().to_list()
    seen = build(start=DAY + timedelta(days=2)).frame()
    assert held.columns == seen.columns
    assert seen["delay"].null_count() == seen.height
    assert set(seen["plan___batch"].drop_nulls()) <= {batch.id for batch in data.batches("air/flights")[:2]}
    with pytest.raises(NotFound, match="did you mean 'last'"):
        datasets.holdout_frame(state, "air", "lasst", "departures", ["all"])


def test_a_request_that_asks_for_sealed_values_does_not_get_them(air: Client) -> None:
    request = {
        "project": "air", "name": "t", "observations": "departures", "features": ["all"], "start": (DAY + timedelta(days=2)).isoformat(),
        "end": END.isoformat(), "sealed": True, "holdout": "last",
    }  # fmt: skip
    body = json.dumps(request).encode()
    made = json.loads(air.connection.raw("cellwork", "POST", "/api/v1/datasets?sealed=true", body).content)
    frame = air.datasets.frame(made["id"])
    assert frame["delay"].null_count() == frame.height


# In a notebook and on the command line


def test_a_dataset_is_split_and_handed_to_a_model(air: Client) -> None:
    built = build(end=DAY + timedelta(days=2))
    train, valid = split.by_time(built, DAY + timedelta(days=1))
    assert len(train) + len(valid) == len(built)
    assert train.X().dtypes.unique().tolist() == [float]
    assert list(train.X().columns) == built.columns
    assert (train.frame()["asked"] < DAY + timedelta(days=1)).all()
    assert "became known only after the cut" in " ".join(train.warnings)


def test_a_split_is_kept_with_its_dataset_and_recalled_with_equal_parts(air: Client) -> None:
    built = build(end=DAY + timedelta(days=2))
    made = split.by_time(built, DAY + timedelta(days=1), gap="1h")
    kept = split.keep(made)
    assert split.keep(made) == kept
    assert list(air.datasets.splits(built.id)) == [kept]
    assert kept.rows == {part.name: len(part) for part in made}
    again = split.recall(built.id, kept.digest)
    assert isinstance(again, split.Split)
    assert [part.frame().to_dicts() for part in again] == [part.frame().to_dicts() for part in made]
    folds = split.keep(split.folds(built, 2))
    assert split.recall(built.id, folds.digest).recipe == folds.recipe
    with pytest.raises(NotFound, match="is not kept"):
        split.recall(built.id, "0" * 64)


def test_the_command_line_builds_lists_and_shows(air: Client) -> None:
    def run(*words: str, code: int = 0) -> str:
        answer = CliRunner().invoke(main, ["dataset", *words])
        assert answer.exit_code == code, answer.output
        return answer.output

    wanted = [
        "build",
        "air/t",
        "--observations",
        "departures",
        "--feature",
        "late",
        "--feature",
        "plan:hour",
        "--start",
        "2013-06-01",
        "--end",
        "2013-06-03",
    ]
    said = run(*wanted)
    assert "Dataset air/t" in said
    made = json.loads(run(*wanted, "--json"))
    assert made["id"] in said
    assert made["id"] in run("list", "--project", "air")
    assert "rows found a value" in run("show", made["id"])
    assert json.loads(run("show", made["id"], "--json")) == made
    assert "did you mean 'departures'" in run(*[word.replace("departures", "departurs") for word in wanted], code=2)
