"""Events pushed over HTTP: what the twins put online is what the pipelines write, whatever the events, and reaches the offline side."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from feature_world import DAY, definitions, flights, new_state, service, work
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cellwork.client import Client
from cellwork.errors import BadInput
from cellwork.features.row import BATCH, CREATED, EVENT
from cellwork.wire.batches import RawDataset
from cellwork.wire.features import Definitions, OnlineValue, Streamed
from cellwork_hub.platform import feature_online, feature_queue, feature_twins
from cellwork_hub.platform.state import State

MINUTE = timedelta(minutes=1)
ORIGINS = ["JFK", "LGA", "EWR"]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    return new_state(tmp_path_factory.mktemp("twins") / "home")


@pytest.fixture(scope="module")
def client(state: State) -> Iterator[Client]:
    with service(state) as connected:
        yield connected


@pytest.fixture
def air(client: Client, request: pytest.FixtureRequest) -> str:
    """A project of its own, with definitions and no data yet."""
    return begun(client, f"p{abs(hash(request.node.name)) % 10**12}")


def begun(client: Client, project: str) -> str:
    client.batches.declare(project, RawDataset(name="flights"))
    client.features.apply(short(project))
    return project


def short(project: str) -> Definitions:
    """Windows of an hour on a grid of a quarter, and times that come as texts."""
    known = definitions(project, window="1h")
    known.views[0].pipeline.every, known.views[0].pipeline.until = "15m", "planned"
    known.prepared[0].sql = (
        "SELECT id, origin, delay, planned::TIMESTAMPTZ AS planned, landed::TIMESTAMPTZ AS landed, "
        "planned::TIMESTAMPTZ - INTERVAL 1 HOUR AS asked FROM flights"
    )
    return known


def event(number: int, origin: str, minute: int, later: int, delay: float | None) -> dict[str, Any]:
    planned = DAY + minute * MINUTE
    landed = (planned + later * MINUTE).isoformat()
    return {"id": number, "origin": origin, "planned": planned.isoformat(), "landed": landed, "delay": delay}


def online(client: Client, project: str, view: str = "late") -> list[OnlineValue]:
    key, values = ("origin", ORIGINS) if view == "late" else ("id", list(range(40)))
    return client.features.online(project, [view], {key: values}).views[view]


def emptied(state: State, project: str) -> None:
    with feature_online.opened(state, project) as store:
        for view in ("late", "plan"):
            store.activate(view, None)


events = st.builds(
    event, st.integers(0, 39), st.sampled_from(ORIGINS), st.integers(0, 240), st.integers(-30, 90),
    st.one_of(st.none(), st.floats(-1e5, 1e5, allow_subnormal=False)),
)  # fmt: skip
pushes = st.lists(
    st.tuples(st.lists(events, min_size=1, max_size=6), st.sampled_from(["on", "again", "restart", "piped"])),
    min_size=1,
    max_size=5,
)


@settings(
    max_examples=12, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pushes)
def test_online_is_what_the_pipelines_write_whatever_comes_and_when(client, state, parts):
    """Late, double and out of order; sent again, with the service started anew or the pipelines run in between."""
    test_online_is_what_the_pipelines_write_whatever_comes_and_when.count += 1
    project = begun(client, f"any{test_online_is_what_the_pipelines_write_whatever_comes_and_when.count}")
    for rows, then in parts:
        client.features.stream(project, "flights", rows)
        if then == "again":
            assert client.features.stream(project, "flights", rows).new is False
        elif then == "restart":
            feature_twins.drop(state, project)
        elif then == "piped":
            work(state)
    pushed = {view: online(client, project, view) for view in ("late", "plan")}
    emptied(state, project)
    with state.engine.begin() as db:  # as if no pipeline had run: all of them write again
        db.exec_driver_sql(f"UPDATE pipeline_runs SET state = 'queued' WHERE project = '{project}'")
    work(state)
    assert {view: online(client, project, view) for view in ("late", "plan")} == pushed


test_online_is_what_the_pipelines_write_whatever_comes_and_when.count = 0


def test_a_push_counts_at_once_and_reaches_the_offline_side(client: Client, state: State, air: str) -> None:
    told = client.features.stream(air, "flights", [event(n, "JFK", 10 * n, 0, float(n)) for n in range(7)])
    assert (told.new, told.batch.rows, told.behind) == (True, 7, {})
    assert told.online == {"late": 1, "plan": 7}
    now = online(client, air)
    assert (now[0].values["flights"], now[0].event, now[0].batch) == (6, DAY + 60 * MINUTE, told.batch.id)
    assert now[1].values["flights"] is None
    work(state)
    rows = client.features.rows(air, "late").sort(EVENT)
    newest = rows.row(-1, named=True)
    assert (newest["flights"], newest[EVENT], newest[CREATED], newest[BATCH]) == (
        6,
        now[0].event,
        now[0].created,
        told.batch.id,
    )
    assert online(client, air) == now


def test_a_store_that_was_lost_gets_back_what_no_pipeline_has_seen(client: Client, state: State, air: str) -> None:
    client.features.stream(air, "flights", [event(1, "JFK", 15, 0, 1.0)])
    before = online(client, air)
    assert before[0].values["flights"] == 1
    emptied(state, air)
    client.features.stream(air, "flights", [event(2, "LGA", 10, 0, 1.0)])
    assert online(client, air) == before
    work(state)
    assert online(client, air) == before


def test_an_event_that_comes_late_counts_from_the_next_grid_time_in_both(
    client: Client, state: State, air: str
) -> None:
    client.features.stream(air, "flights", [event(1, "JFK", 60, 0, 1.0)])
    late = client.features.stream(air, "flights", [event(2, "JFK", 30, 0, 2.0)])
    assert late.online["late"] == 0
    client.features.stream(air, "flights", [event(3, "LGA", 75, 0, 3.0)])
    assert online(client, air)[0].values["flights"] == 2
    before = online(client, air)
    work(state)
    assert online(client, air) == before


def test_the_same_events_again_are_the_same_batch_and_another_name_is_another(client: Client, air: str) -> None:
    rows = [event(1, "JFK", 15, 0, 1.0)]
    first, again = client.features.stream(air, "flights", rows), client.features.stream(air, "flights", rows)
    assert (again.new, again.batch.id) == (False, first.batch.id)
    named = client.features.stream(air, "flights", rows, delivery="second-click")
    assert (named.new, named.batch.partition) == (True, "second-click")


def test_a_correction_is_left_to_the_pipeline_and_the_twin_goes_on_from_it(
    client: Client, state: State, air: str
) -> None:
    client.features.stream(air, "flights", [event(1, "JFK", 60, 0, 1.0), event(2, "JFK", 61, 0, 1.0)], delivery="a")
    corrected = client.features.stream(air, "flights", [event(1, "JFK", 60, 0, 5.0)], delivery="a")
    assert "correction" in corrected.behind["late"]
    assert "correction" in corrected.behind["plan"]
    work(state)
    assert online(client, air)[0].values == {"flights": 1, "delay": 5.0}
    told = client.features.stream(air, "flights", [event(3, "JFK", 75, 0, 7.0)])
    assert told.behind == {}
    assert online(client, air)[0].values == {"flights": 2, "delay": 6.0}
    before = online(client, air)
    work(state)
    assert online(client, air) == before


def test_a_failed_run_stops_the_twin_until_it_is_mended(client: Client, state: State, air: str) -> None:
    client.features.stream(air, "flights", [event(1, "JFK", 15, 0, 1.0)])
    run = feature_queue.claim(state)
    assert run is not None
    with state.engine.begin() as db:
        db.exec_driver_sql(f"UPDATE pipeline_runs SET state = 'queued' WHERE project = '{air}'")
        db.exec_driver_sql(f"UPDATE pipeline_runs SET state = 'failed' WHERE project = '{air}' AND view = 'late'")
    told = client.features.stream(air, "flights", [event(2, "JFK", 30, 0, 1.0)])
    assert "failed" in told.behind["late"]
    assert client.features.run(air, "late") == 1
    work(state)
    assert client.features.stream(air, "flights", [event(3, "JFK", 45, 0, 1.0)]).behind == {}
    assert online(client, air)[0].values["flights"] == 3


def test_a_changed_view_is_counted_anew(client: Client, state: State, air: str) -> None:
    client.features.stream(air, "flights", [event(1, "JFK", 0, 0, 1.0), event(2, "JFK", 60, 0, 1.0)])
    work(state)
    changed = short(air)
    changed.views[0].pipeline.window = "2h"
    client.features.apply(changed)
    assert "being filled" in client.features.stream(air, "flights", [event(3, "JFK", 61, 0, 1.0)]).behind["late"]
    work(state)
    assert client.features.stream(air, "flights", [event(4, "JFK", 75, 0, 1.0)]).behind == {}
    assert online(client, air)[0].values["flights"] == 4


def test_what_is_no_event_is_refused_and_nothing_of_it_is_kept(client: Client, air: str) -> None:
    client.features.stream(air, "flights", [event(1, "JFK", 15, 0, 1.0)])
    with pytest.raises(BadInput, match="is empty"):
        client.features.stream(air, "flights", [])
    with pytest.raises(BadInput, match="partition key"):
        client.features.stream(air, "flights", [event(2, "JFK", 15, 0, 1.0)], delivery="two words")
    with pytest.raises(BadInput, match="origin"):
        client.features.stream(air, "flights", [{"id": 3}])
    assert client.batches.rows(air, "flights").height == 1


def test_batches_that_were_ingested_otherwise_are_counted_with_the_next_push(client: Client, air: str) -> None:
    frame = flights(0).with_columns(landed="planned").head(4)
    client.batches.ingest(air, "flights", frame, "day0")
    told: Streamed = client.features.stream(
        air, "flights", frame.head(0).vstack(flights(0).with_columns(landed="planned")[4:5])
    )
    assert told.online["late"] == 2
