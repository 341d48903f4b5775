"""What is due fires once: by the clock, after an absence, and by the platform's events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs_world import USERS, RunTokens
from jobs_world import state as make_state

from cellwork import clock, ids
from cellwork.wire.jobs import Job, JobRequest, Run, Schedule
from cellwork.wire.origin import Origin
from cellwork.wire.records import Event
from cellwork_hub.jobs import fires, store
from cellwork_hub.jobs.definitions import ensure
from cellwork_hub.jobs.store import State
from cellwork_hub.records import micros
from cellwork_hub.route import Call

WORKS = (Path(__file__).resolve().parents[1] / "notebooks" / "works.ipynb").read_text()


@pytest.fixture
def state(tmp_path: Path) -> State:
    return make_state(tmp_path, RunTokens())


def add(state: State, name: str = "score", **fields: object) -> Job:
    call = Call(USERS["ada-token"], "req_1", Origin(), {}, {}, None, {})
    return ensure(
        state,
        call,
        JobRequest(**{"project": "flights", "name": name, "notebook": "n.ipynb", "content": WORKS, **fields}),
    )  # type: ignore[arg-type]


def runs(state: State) -> list[Run]:
    with state.engine.connect() as db:
        return [store.as_run(db, row) for row in store.select(db, "SELECT * FROM runs ORDER BY seq")]


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
