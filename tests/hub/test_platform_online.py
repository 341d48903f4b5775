"""The online side of the platform: materialize, its watermark, prewarming, and stores that do not answer."""

from __future__ import annotations

import dataclasses
import socket
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from feature_world import DAY, definitions, flights, new_state, service, work
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork import clock
from cellwork.client import Client
from cellwork.errors import BadInput, Conflict, Unavailable
from cellwork.settings import Settings
from cellwork.wire.batches import RawDataset
from cellwork.wire.features import MaterializeRequest, PushRequest
from cellwork_hub.context import Context
from cellwork_hub.platform import feature_online, feature_worker
from cellwork_hub.platform.state import State

HOUR = timedelta(hours=1)


@pytest.fixture(params=["sqlite", "redis"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> State:
    made = new_state(tmp_path / "home")
    return on_redis(made, request.getfixturevalue("redis_url")) if request.param == "redis" else made


def on_redis(state: State, url: str) -> State:
    settings = Settings(home=state.home.root, online_url=url)
    return dataclasses.replace(state, context=Context(settings, {}))


@pytest.fixture
def project() -> str:
    """A name of its own: the tests share one Redis."""
    return f"air{clock.now().timestamp():.6f}".replace(".", "-")


@pytest.fixture
def client(state: State) -> Iterator[Client]:
    with service(state) as connected:
        yield connected


def fill(client: Client, state: State, project: str, days: int = 2) -> None:
    for day in range(days):
        client.batches.ingest(project, "flights", flights(day), f"day{day}")
    client.features.apply(definitions(project))
    work(state)


def online(client: Client, project: str) -> list[tuple[object, object]]:
    found = client.features.online(project, ["late"], {"origin": ["JFK", "LGA", "XXX"]}).views["late"]
    return [(value.values["flights"], value.event) for value in found]


def forget(state: State, project: str) -> None:
    """Lose the store, as a Redis without persistence does."""
    with feature_online.opened(state, project) as store:
        for view in ("late", "plan"):
            store.activate(view, None)


def test_a_lost_store_is_filled_again_as_it_was(client, state, project):
    fill(client, state, project)
    before = online(client, project)
    assert before[0][0] is not None
    forget(state, project)
    assert online(client, project) == [(None, None)] * 3
    done = client.features.materialize(MaterializeRequest(project=project))
    assert online(client, project) == before
    assert {m.view: (m.entities, m.written) for m in done} == {"late": (2, 2), "plan": (48, 48)}
    forget(state, project)
    assert set(feature_online.prewarm(state)) == {f"{project}/late", f"{project}/plan"}
    assert online(client, project) == before
    assert feature_online.prewarm(state) == []


def test_the_next_one_starts_where_the_last_ended(client, state, project):
    fill(client, state, project)
    client.features.materialize(MaterializeRequest(project=project, views=["late"], end=DAY + 5 * HOUR))
    second = client.features.materialize(MaterializeRequest(project=project, views=["late"]))[0]
    assert second.start == DAY + 5 * HOUR
    third = client.features.materialize(MaterializeRequest(project=project, views=["late"]))[0]
    assert (third.rows, third.written) == (0, 0)
    assert client.features.materialize(MaterializeRequest(project=project, views=["late"], start=DAY))[0].rows > 0


@pytest.mark.parametrize("asked", [{}, {"start": DAY + 12 * HOUR}, {"end": DAY + 12 * HOUR}])
def test_a_lost_store_is_filled_whole_though_it_was_materialized_before(client, state, project, asked):
    fill(client, state, project)
    client.features.materialize(MaterializeRequest(project=project))
    before = online(client, project), planned(client, project)
    assert before[1] == 48
    forget(state, project)
    done = client.features.materialize(MaterializeRequest(project=project, **asked))
    assert (online(client, project), planned(client, project)) == before
    assert all(each.start is None and each.end > DAY + 48 * HOUR for each in done)
    assert client.features.materialize(MaterializeRequest(project=project))[0].start == done[0].end


def planned(client: Client, project: str) -> int:
    """Return of how many flights there is an online value."""
    ids = [day * 100 + hour for day in range(3) for hour in range(24)]
    found = client.features.online(project, ["plan"], {"id": ids}).views["plan"]
    return sum(value.values["delay"] is not None for value in found)


def test_a_batch_after_a_loss_hides_nothing(client, state, project):
    fill(client, state, project)
    forget(state, project)
    client.batches.ingest(project, "flights", flights(2), "day2")
    work(state)
    assert planned(client, project) == 72


def test_a_push_after_a_loss_hides_nothing(client, state, project):
    fill(client, state, project)
    before = online(client, project)
    forget(state, project)
    row = {"id": 1, "delay": 1.0, "event_timestamp": "2020-01-01T00:00:00Z"}
    client.features.push("plan", PushRequest(project=project, rows=[row]))
    assert planned(client, project) == 48
    row = {"origin": "XXX", "flights": 7, "delay": 1.0, "event_timestamp": "2020-01-01T00:00:00Z"}
    client.features.push("late", PushRequest(project=project, rows=[row]))
    assert [count for count, _ in online(client, project)] == [before[0][0], before[1][0], 7]


def test_a_push_after_a_loss_waits_for_no_run(client, state, project):
    """A run or an erasure of any project may take minutes, and a push waits in one of a few threads."""
    fill(client, state, project)
    forget(state, project)
    row = {"id": 1, "delay": 1.0, "event_timestamp": "2020-01-01T00:00:00Z"}
    with feature_worker.working:
        client.features.push("plan", PushRequest(project=project, rows=[row]))
        assert planned(client, project) == 48


def test_events_pushed_after_a_loss_hide_nothing(client, state, project):
    fill(client, state, project)
    forget(state, project)
    assert client.features.stream(project, "flights", flights(2, count=1)).behind == {}
    assert planned(client, project) == 49
    after = online(client, project)
    work(state)
    assert (online(client, project), planned(client, project)) == (after, 49)


def test_an_end_in_the_future_is_refused_and_moves_nothing(client, state, project):
    fill(client, state, project)
    with pytest.raises(BadInput, match="lies in the future"):
        client.features.materialize(MaterializeRequest(project=project, end=clock.now() + HOUR))
    assert client.features.materialize(MaterializeRequest(project=project, views=["late"]))[0].start is None


def test_materialize_does_not_bring_back_an_older_value(client, state, project):
    fill(client, state, project)
    row = {"origin": "JFK", "flights": 99, "delay": 1.0, "event_timestamp": "2020-01-01T00:00:00Z"}
    client.features.push("late", PushRequest(project=project, rows=[row]))
    client.features.materialize(
        MaterializeRequest(project=project, views=["late"], end=datetime(2019, 1, 1, tzinfo=UTC))
    )
    assert online(client, project)[0][0] == 99


def test_a_store_that_keeps_too_little_stops_the_watermark(tmp_path):
    state = new_state(tmp_path / "home")
    with service(state) as client:
        fill(client, state, "air")
        client.features.materialize(MaterializeRequest(project="air"))
        forget(state, "air")
        with sqlite3.connect(state.home.online("air")) as file:
            file.execute(
                "CREATE TRIGGER lose AFTER INSERT ON online BEGIN DELETE FROM online WHERE entity = NEW.entity; END"
            )
        with pytest.raises(Conflict, match="are fewer than"):
            client.features.materialize(MaterializeRequest(project="air"))
        with sqlite3.connect(state.home.online("air")) as file:
            file.execute("DROP TRIGGER lose")
        assert client.features.materialize(MaterializeRequest(project="air"))[0].start is None


def test_a_run_waits_for_a_store_that_does_not_answer_and_nothing_is_lost(state, project, redis_url):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        gone = on_redis(state, f"redis://127.0.0.1:{taken.getsockname()[1]}/0")
        with service(gone) as client:
            client.batches.ingest(project, "flights", flights(0), "day0")
            client.features.apply(definitions(project))
            assert work(gone) == 0
            waiting = list(client.features.runs(project, state="queued"))
            assert any("start Redis" in run.error for run in waiting)
            row = {"origin": "JFK", "flights": 1, "delay": 1.0, "event_timestamp": "2020-01-01T00:00:00Z"}
            with pytest.raises(Unavailable, match="start Redis"):
                client.features.push("late", PushRequest(project=project, rows=[row]))
    back = on_redis(state, redis_url)
    assert work(back) == 2
    with service(back) as client:
        assert online(client, project)[1][0] is not None


pushes = st.lists(
    st.tuples(st.sampled_from(["JFK", "LGA"]), st.integers(0, 4), st.integers(0, 4), st.integers(0, 3)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=15, deadline=None)
@given(given_rows=pushes)
def test_offline_and_online_agree_on_the_newest_value_whatever_the_order_of_pushes(given_rows, tmp_path_factory):
    state = new_state(tmp_path_factory.mktemp("pushes") / "home")
    with service(state) as client:
        client.batches.declare("air", RawDataset(name="flights"))
        client.features.apply(definitions())
        for origin, event, created, count in given_rows:
            row = {
                "origin": origin, "flights": count, "delay": float(count),
                "event_timestamp": (DAY + event * HOUR).isoformat(), "created_timestamp": (DAY + created * HOUR).isoformat(),
            }  # fmt: skip
            client.features.push("late", PushRequest(project="air", rows=[row]))
        pushed = online(client, "air")
        forget(state, "air")
        client.features.materialize(MaterializeRequest(project="air"))
        assert online(client, "air") == pushed
