"""Times that have passed are run as if the job had been there: each once, some at once, behind what is due now."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import postgres_server
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs_world import USERS, RunTokens, shortly_after_noon
from jobs_world import state as make_state
from test_jobs_fires import add, runs
from test_jobs_policies import by_hand, end, take

from cellwork import db
from cellwork.cli.backfill import moment
from cellwork.errors import BadInput, Conflict, TooLarge
from cellwork.wire.jobs import Backfill, BackfillRequest, Policy, Schedule
from cellwork.wire.origin import Origin
from cellwork_hub.jobs import app, attempts, backfill, claims, fires, retention, store
from cellwork_hub.jobs import runs as queue
from cellwork_hub.jobs.store import State
from cellwork_hub.records import micros
from cellwork_hub.route import Call

DAILY = Schedule(cron="0 6 * * *", timezone="America/New_York")
FIRST, LAST = datetime(2013, 11, 1, tzinfo=UTC), datetime(2013, 11, 6, tzinfo=UTC)


@pytest.fixture(autouse=True)
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    shortly_after_noon(monkeypatch)


@pytest.fixture(params=["sqlite", "postgresql"])
def state(tmp_path: Path, request: pytest.FixtureRequest) -> State:
    made = make_state(tmp_path, RunTokens())
    if request.param == "sqlite":
        return made
    return replace(made, engine=db.open_database(postgres_server.database(), app.MIGRATIONS))


def ask(state: State, **fields: object) -> Backfill:
    request = BackfillRequest(**{"first": FIRST, "last": LAST, **fields})  # type: ignore[arg-type]
    call = Call(USERS["ada-token"], "req_1", Origin(), {"project": "flights", "name": "score"}, {}, request, {})
    return backfill.start(state, call)


def test_each_day_gets_its_own_date_once_however_often_it_is_asked_for(state: State) -> None:
    """The clocks of New York changed on 3 November 2013."""
    add(state, schedule=DAILY, parameters={"name": "${date} after ${last_success}"})
    assert len(ask(state).queued) == 5
    assert ask(state) == Backfill(queued=[], left_alone=5)
    found = runs(state)
    assert [run.due.hour for run in found if run.due] == [10, 10, 11, 11, 11]
    assert [run.parameters["name"] for run in found] == [f"2013-11-0{day} after " for day in range(1, 6)]
    assert {run.cause for run in found} == {"backfill"}


def test_only_what_failed_is_asked_for_again_and_all_of_it_if_one_insists(state: State) -> None:
    add(state, schedule=DAILY)
    ask(state, parallel=5)
    for k in range(5):
        of = take(state)
        assert of is not None
        end(state, of, "failed" if k == 2 else "succeeded")
    second = ask(state)
    assert (len(second.queued), second.left_alone) == (1, 4)
    of = take(state)
    assert of is not None
    assert of.run.due is not None
    assert of.run.due.day == 3
    end(state, of)
    assert len(ask(state, again=True).queued) == 5


def test_a_time_that_has_succeeded_is_left_alone_however_little_is_kept_of_its_run(state: State) -> None:
    add(state, schedule=DAILY, parameters={"name": "${last_success}"}, policy=Policy(keep_runs=2))
    ask(state)
    for _ in range(5):
        of = take(state)
        assert of is not None
        end(state, of)
    assert retention.forget(state) == 3
    assert ask(state) == Backfill(queued=[], left_alone=5)
    assert len(ask(state, again=True, first=FIRST + timedelta(days=1)).queued) == 4
    of = take(state)
    assert of is not None
    assert of.run.parameters == {"name": "2013-11-01T10:00:00+00:00"}
    end(state, of, "failed")
    assert ask(state, last=FIRST + timedelta(days=2)).left_alone == 1, "its newest run failed"


def test_successes_from_before_they_were_written_down_are_known(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'old.sqlite'}"
    before = app.MIGRATIONS[: app.MIGRATIONS.index(store.SUCCESSES)]
    old = replace(make_state(tmp_path, RunTokens()), engine=db.open_database(url, before))
    add(old, schedule=DAILY)
    due = datetime(2013, 11, 1, 10, tzinfo=UTC)
    run = by_hand(old, "score")
    with old.engine.begin() as connection:
        store.write(connection, "UPDATE runs SET state = 'succeeded', ended = 1, due = :due", due=micros(due))
    new = replace(old, engine=db.open_database(url, app.MIGRATIONS))
    assert retention.remove(new, run)
    with new.engine.connect() as connection:
        assert queue.last_success(connection, "flights/score") == due
    assert ask(new).left_alone == 1


def test_no_more_run_at_once_than_asked_for_and_what_is_due_now_goes_first(state: State) -> None:
    add(state, schedule=DAILY)
    ask(state, parallel=2)
    now = by_hand(state, "score")
    first = take(state)
    assert first is not None
    assert first.run.id == now
    claims = [take(state) for _ in range(3)]
    assert [c is not None for c in claims] == [True, True, False]
    assert claims[0] is not None
    end(state, claims[0])
    assert take(state) is not None


def test_last_success_is_what_it_was_for_that_day(state: State) -> None:
    add(state, schedule=DAILY, parameters={"name": "${last_success}"})
    ask(state, last=datetime(2013, 11, 3, tzinfo=UTC))
    for _ in range(2):
        of = take(state)
        assert of is not None
        end(state, of)
    ask(state, first=datetime(2013, 11, 2, tzinfo=UTC), last=datetime(2013, 11, 3, tzinfo=UTC), again=True)
    of = take(state)
    assert of is not None
    assert of.run.parameters == {"name": "2013-11-01T10:00:00+00:00"}


@given(st.datetimes(datetime(2013, 1, 1), datetime(2013, 6, 1), timezones=st.just(UTC)), st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_a_job_without_a_clock_has_each_day_of_its_zone_once(first: datetime, days: int) -> None:
    last = first + timedelta(days=days)
    found = backfill.times(Schedule(timezone="Europe/Berlin"), first, last)
    assert all(first <= due <= last for due in found)
    assert days - 1 <= len(found) <= days + 1


def test_what_makes_no_sense_is_refused(state: State) -> None:
    add(state, schedule=Schedule(every_seconds=1))
    for fields in ({"last": FIRST - timedelta(days=1)}, {"parallel": 0}, {}):
        with pytest.raises(BadInput):
            ask(state, **fields)
    assert runs(state) == []
    with pytest.raises(BadInput, match="no day and no time"):
        moment("yesterday!", "UTC")


def test_what_is_still_to_come_is_left_to_the_clock(state: State) -> None:
    """A time that was backfilled before it came would be run again when it comes."""
    due = add(state, schedule=Schedule(every_seconds=3600)).next_due
    assert due is not None
    with pytest.raises(BadInput, match="has not come yet"):
        ask(state, first=due - timedelta(hours=2), last=due)
    assert runs(state) == []
    assert len(ask(state, first=due - timedelta(hours=2), last=due - timedelta(microseconds=1)).queued) == 2


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Europe/Berlin"])
@pytest.mark.parametrize("first", [datetime(1, 1, 1, tzinfo=UTC), datetime(1, 1, 2, tzinfo=UTC)])
def test_the_first_year_of_the_calendar_is_answered_too(zone: str, first: datetime) -> None:
    for plan in (Schedule(timezone=zone), Schedule(every_seconds=60), Schedule(cron="0 6 * * *", timezone=zone)):
        with pytest.raises(BadInput):
            backfill.times(plan, first, LAST)


def test_many_times_are_queued_in_parts_and_what_was_queued_is_not_again(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others write between two parts. Killed after two of them, the same request once more queues the rest."""
    monkeypatch.setattr(backfill, "PART", 2)
    add(state, schedule=DAILY)
    right, parts = backfill._queue_part, []

    def until_killed(*given: Any) -> list[str]:
        parts.append(given)
        if len(parts) == 3:
            raise KeyboardInterrupt
        return right(*given)

    monkeypatch.setattr(backfill, "_queue_part", until_killed)
    with pytest.raises(KeyboardInterrupt):
        ask(state)
    assert len(runs(state)) == 4
    assert (len(ask(state).queued), len(ask(state).queued), len(runs(state))) == (1, 0, 5)


def test_a_job_that_is_changed_meanwhile_is_not_run_as_it_was(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill, "PART", 2)
    add(state, schedule=DAILY)
    right = backfill._queue_part

    def and_change(*given: Any) -> list[str]:
        queued = right(*given)
        add(state, schedule=DAILY, timeout_seconds=7)
        return queued

    monkeypatch.setattr(backfill, "_queue_part", and_change)
    with pytest.raises(Conflict, match="was changed"):
        ask(state)
    assert (len(runs(state)), len(ask(state).queued)) == (2, 3)


def test_the_notebook_is_read_once_and_the_last_success_only_for_those_who_ask(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, asked = backfill.parameters.read, queue.last_success
    calls: list[str] = []
    monkeypatch.setattr(backfill.parameters, "read", lambda *given: (calls.append("read"), read(*given))[1])
    monkeypatch.setattr(queue, "last_success", lambda *given, **more: (calls.append("asked"), asked(*given, **more))[1])
    add(state, schedule=DAILY, parameters={"name": "${date}"})
    calls.clear()
    ask(state)
    assert calls == ["read"]
    add(state, schedule=DAILY, parameters={"name": "${last_success}"})
    calls.clear()
    ask(state, again=True, first=FIRST - timedelta(days=2), last=FIRST)
    assert calls == ["read", "asked", "asked"]


def test_more_than_a_backfill_may_hold_is_refused_before_anything_is_queued(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "MOST_BYTES", 7_000)
    add(state, schedule=DAILY, parameters={"name": "${date}" + "x" * 2_000})
    with pytest.raises(TooLarge, match="in parts"):
        ask(state)
    assert runs(state) == []
    assert len(ask(state, last=FIRST + timedelta(days=2)).queued) == 2


def test_what_is_asked_under_the_write_lock_reads_no_history(tmp_path: Path) -> None:
    """Each of these is asked every second or more often, while nobody else may write."""
    asked = {
        claims.OLDEST: {"runs_waiting", "runs_leased"}, attempts.LOST: {"runs_leased"}, attempts.LATE: {"runs_late"},
        queue.LAST_SUCCESS: {"successes_job"}, fires.UNDER_WAY: {"runs_open"},
    }  # fmt: skip
    with make_state(tmp_path, RunTokens()).engine.connect() as connection:
        for query, indexes in asked.items():
            known = {name: 1 for name in ("now", "job", "before") if f":{name}" in query}
            plan = [row["detail"] for row in store.select(connection, f"EXPLAIN QUERY PLAN {query}", **known)]
            read = [step for step in plan if "runs" in step or "successes" in step]
            assert {name for name in indexes for step in read if f"INDEX {name}" in step} == indexes, plan
            assert all(step.startswith("SEARCH") for step in read), plan
            assert not any("ORDER BY" in step for step in plan), "it would sort all that waits"


def test_a_day_is_meant_on_the_jobs_own_clocks() -> None:
    start, stop = moment("2013-11-03", "America/New_York"), moment("2013-11-03", "America/New_York", end=True)
    assert (start.utcoffset(), stop.utcoffset()) == (timedelta(hours=-4), timedelta(hours=-5))
