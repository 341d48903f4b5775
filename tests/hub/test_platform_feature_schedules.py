"""Views with a schedule: batches that came wait for it, nobody waits for them, and somebody may say now."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from feature_world import DAY, definitions, flights, work
from hypothesis import given
from hypothesis import strategies as st
from raw_platform import serving, state_in

from cellwork import clock
from cellwork.cli import main
from cellwork.client import Client
from cellwork.errors import BadInput, NotFound
from cellwork.features.feast import PipelineSource
from cellwork.wire.datasets import DatasetRequest
from cellwork.wire.features import Select
from cellwork_hub.platform import batches, dataset_builds, datasets, feature_queue, features, splits
from cellwork_hub.platform.state import State

ROUTERS = [batches, features, datasets, dataset_builds, splits]
TIMES = st.datetimes(datetime(1999, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))


@pytest.fixture
def state(tmp_path: Path) -> State:
    return state_in(tmp_path, ROUTERS, on_batch=(features.enqueue,))


@pytest.fixture
def client(state: State) -> Iterator[Client]:
    with serving(state, ROUTERS) as url, Client(url, "author") as connected:
        yield connected


def applied(client: Client, schedule: str) -> None:
    known = definitions()
    known.views[0] = msgspec.structs.replace(known.views[0], schedule=schedule)
    client.features.apply(known)


def states(client: Client, view: str = "late") -> list[str]:
    return [run.state for run in client.features.runs("air", view=view)]


def test_a_batch_waits_for_the_schedule_of_the_view_and_of_no_other(client: Client, state: State) -> None:
    client.batches.ingest("air", "flights", flights(0), "day0")
    applied(client, "520w")
    work(state)
    assert states(client) == ["succeeded"]  # the first filling is not kept waiting
    client.batches.ingest("air", "flights", flights(1), "day1")
    assert feature_queue.queue_due(state) == 0
    work(state)
    assert (states(client), states(client, "plan")) == (["succeeded", "scheduled"], ["succeeded", "succeeded"])
    client.features.wait("air", timeout=5)
    request = DatasetRequest(
        project="air", name="now", observations="departures", features=["late"], start=DAY, end=DAY + timedelta(days=1)
    )
    assert client.datasets.build(request).rows > 0


def test_when_it_is_due_it_is_computed(client: Client, state: State) -> None:
    client.batches.ingest("air", "flights", flights(0), "day0")
    applied(client, "1s")
    work(state)
    client.batches.ingest("air", "flights", flights(1), "day1")
    end = datetime.now(UTC) + timedelta(seconds=30)
    while not feature_queue.queue_due(state) and datetime.now(UTC) < end:
        pass
    work(state)
    assert states(client) == ["succeeded", "succeeded"]
    assert client.features.rows("air", "late").height > 0


def test_a_schedule_that_is_taken_away_lets_its_runs_go(client: Client, state: State) -> None:
    client.batches.ingest("air", "flights", flights(0), "day0")
    applied(client, "0 3 1 1 *")
    work(state)
    client.batches.ingest("air", "flights", flights(1), "day1")
    before = client.features.definitions("air")
    client.features.apply(definitions())
    assert before.views[0].pipeline == definitions().views[0].pipeline
    assert feature_queue.queue_due(state) == 1
    work(state)
    assert states(client) == ["succeeded", "succeeded"]


def test_somebody_may_say_now(client: Client, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    client.batches.ingest("air", "flights", flights(0), "day0")
    applied(client, "520w")
    work(state)
    client.batches.ingest("air", "flights", flights(1), "day1")
    monkeypatch.setenv("CELLWORK_URL", client.connection.url)
    monkeypatch.setenv("CELLWORK_TOKEN", "author")
    listed = CliRunner().invoke(main, ["feature", "list", "--project", "air"])
    assert "every 520w" in listed.output
    said = CliRunner().invoke(main, ["feature", "run", "late", "--project", "air", "--json"])
    assert json.loads(said.output) == {"view": "late", "queued": 1}
    work(state)
    assert states(client) == ["succeeded", "succeeded"]
    with pytest.raises(NotFound, match="late"):
        client.features.run("air", "lat")


@pytest.mark.parametrize("schedule", ["6", "0h", "every day", "61 * * * *"])
def test_a_schedule_that_means_nothing_is_refused(client: Client, schedule: str) -> None:
    client.batches.ingest("air", "flights", flights(0), "day0")
    with pytest.raises(BadInput):
        applied(client, schedule)
    with pytest.raises(BadInput):
        PipelineSource(Select(rows="landed", event="asked", known="asked"), schedule=schedule)


def test_a_schedule_travels_through_feasts_registry() -> None:
    source = PipelineSource(Select(rows="landed", event="asked", known="asked"), schedule="6h")
    assert PipelineSource.from_proto(source.to_proto()).schedule == "6h"


@given(TIMES, st.sampled_from(["90s", "15m", "6h", "1d", "0 3 * * *", "*/5 8-18 * * 1-5"]))
def test_the_next_time_is_after_the_last_and_nothing_is_due_between(after: datetime, schedule: str) -> None:
    due = clock.next_due(schedule, after)
    assert due > after
    middle = after + (due - after) / 2
    assert clock.next_due(schedule, middle) == due
