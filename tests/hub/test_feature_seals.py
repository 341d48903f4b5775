"""Sealed values and features: views that would tell one are refused, rows of sealed batches are kept from readers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import polars as pl
import pytest
from feature_world import DAY, definitions, flights, new_state, service, work

from cellwork import errors
from cellwork.client import Client
from cellwork.wire.batches import Batch, RawDataset, Seal
from cellwork.wire.features import Definitions, Field, Select, View
from cellwork_hub.platform import features
from cellwork_hub.platform.state import State

HOUR = timedelta(hours=1)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return new_state(tmp_path / "home")


@pytest.fixture
def client(state: State) -> Iterator[Client]:
    with service(state) as connected:
        yield connected


def ingest(client: Client, *days: int, delay: float = 10.0) -> list[Batch]:
    return [client.batches.ingest("air", "flights", flights(day, delay=delay), f"day{day}").batch for day in days]


def view(name: str = "late"):
    return next(v for v in definitions().views if v.name == name)


def aggregates(**changes: object) -> Definitions:
    """Return the definitions without the view that shows a flight's own delay, with the changed fields of the other."""
    known = definitions()
    known.views = [msgspec.structs.replace(known.views[0], **changes)]
    known.services = []
    return known


SECRET = Seal(holdout="secret", partitions=["day1"], columns=["delay"])


def select(field: str, event: str = "asked") -> View:
    pipeline = Select(rows="landed", event=event, known=event)
    return View(name="plan", entities=["flight"], pipeline=pipeline, fields=[Field(name=field, type="Float32")])


@pytest.mark.parametrize(
    ("sql", "view"),
    [
        ("SELECT *, planned AS asked FROM flights", select("delay")),
        ("SELECT *, planned AS asked, CAST(delay > 15 AS INTEGER) AS late FROM flights", select("late")),
        ("SELECT *, planned + to_minutes(CAST(delay AS INTEGER)) AS asked FROM flights", select("id")),
        ("SELECT *, planned AS asked FROM flights WHERE delay > 15", select("id")),
    ],
    ids=["itself", "derived", "as a time", "by its presence"],
)
def test_a_view_that_would_tell_a_sealed_value_by_its_entity_is_refused(client, sql, view):
    """The newest value of each entity is readable online, so the truth of every flight could be asked for."""
    client.batches.declare("air", RawDataset(name="flights", seals=[SECRET]))
    ingest(client, 0, 1)
    wanted = aggregates()
    wanted.views, wanted.observations = [view], []
    wanted.prepared = [msgspec.structs.replace(wanted.prepared[0], sql=sql)]
    with pytest.raises(
        errors.Refused, match=r"view 'plan'.*delay.*'flights', and is sealed \(holdout 'secret'\).*Rolling"
    ):
        client.features.apply(wanted)
    wanted.views, wanted.prepared = (
        [select("id")],
        [msgspec.structs.replace(wanted.prepared[0], sql="SELECT *, planned AS asked FROM flights")],
    )
    assert client.features.apply(wanted).changed


def test_an_aggregate_by_what_identifies_a_row_is_refused(client):
    client.batches.declare("air", RawDataset(name="flights", key=["id"], seals=[SECRET]))
    ingest(client, 0)
    with pytest.raises(errors.Refused, match=r"keys of view 'late'.*id.*identify the rows of 'flights'"):
        client.features.apply(aggregates(entities=["flight"]))
    assert client.features.apply(aggregates()).changed


def test_a_seal_that_is_declared_later_stops_the_runs_that_would_tell(client, state):
    """Without a key and observations nothing says that `id` identifies; the sealed rows do."""
    ingest(client, 0)
    wanted = definitions()
    wanted.observations = []
    client.features.apply(wanted)
    by_id = msgspec.structs.replace(wanted.views[0], name="by_id", entities=["flight"])
    wanted.views.append(by_id)
    client.features.apply(wanted)
    client.batches.declare("air", RawDataset(name="flights", seals=[SECRET]))
    sealed = ingest(client, 1)[0]
    work(state)
    failed = {run.view: run.error for run in client.features.runs("air", batch=sealed.id, state="failed")}
    assert set(failed) == {"plan", "by_id"}
    assert "is sealed (holdout 'secret')" in failed["plan"]
    assert "have 1.0 rows each in sealed batch" in failed["by_id"]
    assert client.features.online("air", ["plan"], {"id": [100]}).views["plan"][0].event is None


def test_rows_of_sealed_batches_are_kept_from_readers(client, state):
    client.batches.declare(
        "air", RawDataset(name="flights", seals=[Seal(holdout="secret", partitions=["day1"], columns=["delay"])])
    )
    _, sealed, later = ingest(client, 0, 1, 2)
    client.features.apply(aggregates())
    work(state)
    assert not client.features.rows("air", "late", batch=sealed.id).height
    hidden = features.view_rows(state, "air", view(), sealed=True).filter(pl.col("_batch") == sealed.id)
    assert hidden["delay"].null_count() < hidden.height
    first_of_later = client.features.rows("air", "late", batch=later.id).sort("event_timestamp").row(0, named=True)
    assert first_of_later["delay"] is not None
    prepared = features.prepared_rows(state, aggregates(), "landed", batches=[sealed])
    assert prepared["delay"].null_count() == prepared.height
    assert (
        features.prepared_rows(state, aggregates(), "landed", batches=[sealed], sealed=True)["delay"].null_count() == 0
    )
    assert client.features.online("air", ["late"], {"origin": ["JFK"]}).views["late"][0].batch == later.id


def test_a_correction_of_an_open_batch_does_not_tell_sealed_values(client, state):
    client.batches.declare(
        "air", RawDataset(name="flights", seals=[Seal(holdout="secret", partitions=["day1"], columns=["delay"])])
    )
    _, sealed = ingest(client, 0, 1)
    client.features.apply(aggregates())
    work(state)
    better = ingest(client, 0, delay=1000.0)[0]
    work(state)
    told = client.features.rows("air", "late", batch=better.id)
    assert told["event_timestamp"].max() <= DAY + 23 * HOUR
    kept = features.view_rows(state, "air", view(), sealed=True).filter(pl.col("_batch") == better.id)
    assert kept["event_timestamp"].max() > DAY + 23 * HOUR
    assert sealed.sealed == "secret"
