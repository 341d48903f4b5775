"""Times that have passed are run as if the job had been there: each once, some at once, behind what is due now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs_world import USERS, RunTokens
from jobs_world import state as make_state
from test_jobs_fires import add, runs
from test_jobs_policies import by_hand, end, take

from cellwork.cli.backfill import moment
from cellwork.errors import BadInput
from cellwork.wire.jobs import Backfill, BackfillRequest, Schedule
from cellwork.wire.origin import Origin
from cellwork_hub.jobs import backfill
from cellwork_hub.jobs.store import State
from cellwork_hub.route import Call

DAILY = Schedule(cron="0 6 * * *", timezone="America/New_York")
FIRST, LAST = datetime(2013, 11, 1, tzinfo=UTC), datetime(2013, 11, 6, tzinfo=UTC)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return make_state(tmp_path, RunTokens())


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


def test_a_day_is_meant_on_the_jobs_own_clocks() -> None:
    start, stop = moment("2013-11-03", "America/New_York"), moment("2013-11-03", "America/New_York", end=True)
    assert (start.utcoffset(), stop.utcoffset()) == (timedelta(hours=-4), timedelta(hours=-5))
