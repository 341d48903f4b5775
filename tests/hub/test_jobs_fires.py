"""What is due fires once: by the clock, after an absence, and by the platform's events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import postgres_server
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs_world import USERS, RunTokens, shortly_after_noon
from jobs_world import state as make_state

from cellwork import clock, db, ids
from cellwork.errors import BadInput, NotFound
from cellwork.wire.jobs import Job, JobRequest, Policy, Progress, Run, RunRequest, Schedule
from cellwork.wire.origin import Origin
from cellwork.wire.records import Event
from cellwork_hub.jobs import app, claims, fires, store
from cellwork_hub.jobs import runs as queue
from cellwork_hub.jobs.definitions import ensure
from cellwork_hub.jobs.store import State
from cellwork_hub.records import micros
from cellwork_hub.route import Call

WORKS = (Path(__file__).resolve().parents[1] / "notebooks" / "works.ipynb").read_text()


@pytest.fixture(autouse=True)
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    shortly_after_noon(monkeypatch)


@pytest.fixture(params=["sqlite", "postgresql"])
def state(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[State]:
    made = make_state(tmp_path, RunTokens())
    if request.param == "postgresql":
        made = replace(made, engine=db.open_database(postgres_server.database(), app.MIGRATIONS))
    yield made
    made.engine.dispose()


def add(state: State, name: str = "score", **fields: object) -> Job:
    call = Call(USERS["ada-token"], "req_1", Origin(), {}, {}, None, {})
    return ensure(
        state,
        call,
        JobRequest(**{"project": "flights", "name": name, "notebook": "n.ipynb", "content": WORKS, **fields}),
    )  # type: ignore[arg-type]


def runs(state: State) -> list[Run]:
    with state.engine.connect() as found:
        return [store.as_run(found, row) for row in store.select(found, "SELECT * FROM runs ORDER BY seq")]


def due_since(state: State, at: datetime) -> None:
    """As if the service had been away since `at`."""
    with state.engine.begin() as db:
        store.write(db, "UPDATE jobs SET next_due = :at", at=micros(at))


def event(
    seq: int, subject: str = "", *, dataset: str = "flights", project: str = "flights", name: str = "batch.ready"
) -> Event:
    return Event(
        seq=seq,
        id=f"evt_{seq}",
        name=name,
        project=project,
        subject=subject or f"bat_{seq}",
        at=clock.now(),
        data={"dataset": dataset, "rows": 3},
    )


def test_a_due_job_fires_once_however_often_the_clock_looks(state: State) -> None:
    add(state, schedule=Schedule(cron="* * * * *"), parameters={"name": "${date}"})
    assert fires.tick(state) == 0
    due = clock.now().replace(second=0, microsecond=0)
    due_since(state, due)
    assert [fires.tick(state) for _ in range(3)] == [1, 0, 0]
    due_since(state, due)  # as if it died between the fire and the next due time
    assert fires.tick(state) == 0
    (run,) = runs(state)
    assert (run.due, run.cause, run.job, run.parameters) == (
        due,
        "schedule",
        "flights/score",
        {"name": due.date().isoformat()},
    )


def test_after_an_absence_only_the_last_missed_time_is_made_up_for(state: State) -> None:
    add(state, schedule=Schedule(cron="*/5 * * * *"))
    due_since(state, clock.now().replace(minute=0, second=0, microsecond=0) - timedelta(days=400))
    assert fires.tick(state) == 1
    (run,) = runs(state)
    assert run.due is not None
    assert timedelta() <= clock.now() - run.due < timedelta(minutes=5)


def test_a_paused_job_does_not_fire(state: State) -> None:
    add(state, schedule=Schedule(cron="* * * * *"))
    due_since(state, clock.now() - timedelta(minutes=3))
    with state.engine.begin() as db:
        store.write(db, "UPDATE jobs SET paused = 1")
    assert fires.tick(state) == 0


@given(
    st.sampled_from(
        ["* * * * *", "*/7 * * * *", "30 2 * * *", "0 9-17 * * 1-5", "0 0 1 * *", "15 4 29 2 *", "59 23 31 12 *"]
    ),
    st.sampled_from(["UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe"]),
    st.datetimes(datetime(2012, 1, 1), datetime(2014, 1, 1), timezones=st.just(UTC)),
    st.timedeltas(timedelta(), timedelta(days=2)),
)
@settings(max_examples=80, deadline=None)
def test_the_last_due_time_is_what_counting_through_all_of_them_gives(
    cron: str, zone: str, start: datetime, away: timedelta
) -> None:
    first = next(clock.fires(cron, start, zone))
    now, last = first + away, first
    for due in clock.fires(cron, first, zone):
        if due > now:
            break
        last = due
    assert fires.last_due(Schedule(cron=cron, timezone=zone), first, now) == last


def test_each_event_fires_the_jobs_that_wait_for_it_once(state: State) -> None:
    add(
        state,
        schedule=Schedule(event="batch.ready", match={"dataset": "flights"}),
        parameters={"name": "${batch}", "x": "${event.rows}"},
    )
    add(state, "weather", schedule=Schedule(event="batch.ready", match={"dataset": "weather"}))
    add(state, "cron", schedule=Schedule(cron="0 3 * * *"))
    seen = [event(1), event(2, dataset="planes"), event(3, project="other"), event(4, name="batch.rejected"), event(5)]
    assert fires.take_events(state, seen) == 2
    assert fires.cursor(state) == 5
    assert fires.take_events(state, seen) == 0, "the same events again, as after a crash"
    assert [(run.job, run.cause, run.parameters) for run in runs(state)] == [
        ("flights/score", f"event evt_{seq}", {"name": f"bat_{seq}", "x": 3}) for seq in (1, 5)
    ]


def test_events_from_before_the_job_do_not_fire_it(state: State) -> None:
    old = event(1)
    add(state, schedule=Schedule(event="batch.ready"))
    assert fires.take_events(state, [old, event(2)]) == 1


def test_cursor_and_fires_are_one_transaction(state: State) -> None:
    add(state, schedule=Schedule(event="batch.ready"))

    def breaks() -> object:
        yield event(1)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        fires.take_events(state, breaks())  # type: ignore[arg-type]
    assert (fires.cursor(state), runs(state)) == (0, [])


def test_a_fire_whose_parameters_do_not_fit_is_a_failed_run_that_says_why(state: State) -> None:
    add(state, schedule=Schedule(event="batch.ready"), parameters={"x": "${event.nothing}"})
    assert fires.take_events(state, [event(1)]) == 1
    (run,) = runs(state)
    assert run.state == "failed"
    assert "event.nothing" in run.attempts[0].error
    assert ids.check(run.id, "run")


def test_a_clock_that_is_set_back_fires_nothing_twice_and_one_set_forward_is_an_absence(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(state, schedule=Schedule(every_seconds=60))
    due_since(state, clock.now() - timedelta(seconds=1))
    assert fires.tick(state) == 1
    right, wrong = clock.now, timedelta(hours=-1)
    monkeypatch.setattr(clock, "now", lambda: right() + wrong)
    assert [fires.tick(state) for _ in range(3)] == [0, 0, 0], "an hour that comes again is not fired again"
    wrong = timedelta(hours=1)
    assert [fires.tick(state) for _ in range(3)] == [1, 0, 0], "the hour that never was counts as missed"
    wrong = timedelta()
    assert fires.tick(state) == 0
    dues = [run.due for run in runs(state)]
    assert len(set(dues)) == len(dues) == 2


def test_a_job_whose_kept_notebook_is_gone_fails_and_says_so_and_the_others_fire(state: State) -> None:
    gone = add(state, "gone", schedule=Schedule(every_seconds=60), content=WORKS.replace("\n", "\n "))
    add(state, "there", schedule=Schedule(every_seconds=60))
    state.home.source(gone.notebook_sha256).unlink()
    due_since(state, clock.now() - timedelta(seconds=1))
    assert fires.tick(state) == 2
    states = {run.job: run for run in runs(state)}
    assert (states["flights/gone"].state, states["flights/there"].state) == ("failed", "queued")
    assert "apply the job again" in states["flights/gone"].attempts[0].error


@pytest.mark.parametrize("cell", [3, None, {"metadata": 3}, {"metadata": {"tags": None}, "source": "x = 1"}])
def test_a_job_is_refused_when_it_is_applied_if_its_parameters_can_not_be_set_when_it_fires(
    state: State, cell: Any
) -> None:
    """Each value comes with the event, so that nothing but the names can be looked at before."""
    content = json.dumps({**json.loads(WORKS), "cells": [cell]})
    with pytest.raises(BadInput, match="notebook"):
        add(state, schedule=Schedule(event="batch.ready"), parameters={"x": "${event.rows}"}, content=content)
    with pytest.raises(BadInput, match="is unknown"):
        add(state, schedule=Schedule(event="batch.ready"), parameters={"y": "${event.rows}"})


BREAKS = ["parameters = '3'", f"policy = '{{\"priority\": {10**30}}}'", "policy = 'no JSON'"]
"""Not what can be applied today; what an older version, or a fault not thought of, may have left."""


def broken(state: State, change: str) -> None:
    with state.engine.begin() as db:
        store.write(db, f"UPDATE jobs SET {change} WHERE name = 'poison'")


def told(state: State) -> dict[str, str]:
    return {run.job: run.attempts[0].error if run.state == "failed" else run.state for run in runs(state)}


@pytest.mark.parametrize("change", BREAKS)
def test_a_job_that_breaks_at_an_event_keeps_no_other_from_it(state: State, change: str) -> None:
    for name in ("before", "poison", "behind"):
        add(state, name, schedule=Schedule(event="batch.ready"))
    broken(state, change)
    assert fires.take_events(state, [event(1)]) == (3 if "parameters" in change else 2)
    assert fires.cursor(state) == 1
    found = told(state)
    assert (found["flights/before"], found["flights/behind"]) == ("queued", "queued")
    assert "TypeError" in found.get("flights/poison", "TypeError")
    with state.engine.connect() as reading:
        assert store.select(reading, "SELECT count(*) AS n FROM fires")[0]["n"] == len(found), "nothing half written"


@pytest.mark.parametrize("change", [*BREAKS, 'schedule = \'{"cron": "* * * * *", "timezone": "No/Where"}\''])
def test_a_job_that_breaks_at_its_time_keeps_no_other_from_theirs(state: State, change: str) -> None:
    for name in ("before", "poison", "behind"):
        add(state, name, schedule=Schedule(every_seconds=60))
    broken(state, change)
    due_since(state, clock.now() - timedelta(seconds=1))
    fires.tick(state)
    found = told(state)
    assert (found["flights/before"], found["flights/behind"]) == ("queued", "queued")
    if "policy" not in change:
        assert "TypeError" in found["flights/poison"] or "resume it" in found["flights/poison"]
    count = len(runs(state))
    fires.tick(state)
    assert len(runs(state)) == count, "it is not said again each time the clock looks"


@pytest.mark.parametrize("change", BREAKS)
def test_a_job_that_breaks_undoes_no_success_of_the_one_before_it(state: State, change: str) -> None:
    add(state, "first")
    add(state, "poison", schedule=Schedule(after="flights/first"))
    add(state, "behind", schedule=Schedule(after="flights/first"))
    broken(state, change)
    run = queue.start(state, asks("ada", RunRequest(job="flights/first")))
    claim = claims.take(state, asks("runner"), "r")
    assert claim is not None
    said = Progress(fence=claim.fence, state="succeeded", cell=1, cells=1)
    assert (
        claims.report(
            state,
            asks("runner", said, run=run.id),
        ).state
        == "succeeded"
    )
    found = told(state)
    assert (found["flights/first"], found["flights/behind"]) == ("succeeded", "queued")


def asks(who: str, body: Any = None, **path: str) -> Call:
    return Call(USERS[f"{who}-token"], "req_1", Origin(), path, {}, body, {})


def test_whatever_the_clock_or_the_events_stumble_over_their_threads_go_on(state: State) -> None:
    add(state, schedule=Schedule(event="batch.ready"))
    add(state, "poison", schedule=Schedule(every_seconds=60), policy=Policy(keep_runs=1))
    broken(state, BREAKS[1])
    asked = list[int]()

    def events(after: int) -> list[Event]:
        asked.append(after)
        if len(asked) == 1:
            raise ZeroDivisionError
        return [event(1)] if after == 0 else []

    with state.engine.begin() as db:  # a run that can't be taken back: its attempt's end tells people, by its policy
        row = {**queue.of_job(store.job_row(db, "flights", "score")), "parameters": "{}", "cause": "x"}
        lost = queue.queue(db, row)
        store.write(db, "UPDATE runs SET policy = 'no JSON', state = 'running', lost = 9, lease_until = 1 WHERE id = :id", id=lost)  # fmt: skip
    ticker = fires.Ticker(state, events)
    ticker.start()
    with state.engine.begin() as db:
        store.write(db, "UPDATE runs SET lease_until = 1 WHERE id = :id", id=lost)
    due_since(state, clock.now() - timedelta(seconds=1))
    add(state, "good", schedule=Schedule(every_seconds=60))
    due_since(state, clock.now() - timedelta(seconds=1))
    end = time.monotonic() + 60
    while time.monotonic() < end and ("flights/good" not in told(state) or fires.cursor(state) < 1):
        time.sleep(0.1)
    alive = ticker.alive()
    ticker.stop()
    assert alive
    assert fires.cursor(state) == 1
    assert told(state)["flights/good"] == "queued"


def test_who_is_no_member_of_a_project_can_not_wait_for_its_events(state: State) -> None:
    groups = ("project:flights", "project:planes")
    member = replace(asks("ada"), bounded=True, principal=msgspec.structs.replace(USERS["ada-token"], groups=groups))

    def wait_for(project: str) -> Job:
        schedule = Schedule(event="batch.ready", match={"project": project})
        wanted = JobRequest(project="flights", name="spy", notebook="n.ipynb", content=WORKS, schedule=schedule)
        return ensure(state, member, wanted)

    for project in ("secrets", "*", ""):
        with pytest.raises(NotFound, match="not a member"):
            wait_for(project)
    assert [wait_for(project).schedule.match["project"] for project in ("flights", "planes")] == ["flights", "planes"]
