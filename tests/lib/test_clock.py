from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellwork import clock
from cellwork.errors import BadInput


def test_a_time_without_a_zone_is_refused_and_never_guessed() -> None:
    with pytest.raises(BadInput, match="no time zone"):
        clock.utc("2013-11-01T00:00:00")


@pytest.mark.parametrize("at", [1757000000000, 1.5, True, None, ["2013-11-01T00:00:00Z"]])
def test_what_is_neither_a_time_nor_text_is_refused(at: object) -> None:
    with pytest.raises(BadInput, match="is no ISO 8601 text"):
        clock.utc(at)  # type: ignore[arg-type]


@given(st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=st.timezones()))
def test_utc_keeps_the_instant(at: datetime) -> None:
    assert clock.utc(at).timestamp() == at.timestamp()
    assert clock.utc(at).tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("36h", 129_600), ("7d", 604_800), ("2w", 1_209_600)]
)
def test_durations(text: str, seconds: int) -> None:
    assert clock.duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "15", "0m", "-3h", "1.5h", "15 m", "1y"])
def test_a_text_that_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="write 90s"):
        clock.duration(text)


def test_a_daily_job_stays_at_its_local_hour_when_the_clocks_change() -> None:
    """New York left daylight saving on 3 November 2013."""
    dues = list(islice(clock.fires("0 6 * * *", datetime(2013, 11, 2, tzinfo=UTC), "America/New_York"), 3))
    assert [due.hour for due in dues] == [10, 11, 11]


def test_a_weekday_range_means_monday_to_friday() -> None:
    dues = islice(clock.fires("0 6 * * 1-5", datetime(2026, 11, 20, 12, tzinfo=UTC)), 5)  # a Friday
    assert [due.isoweekday() for due in dues] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["Mars/Base", "America", "America/Argentina", "..", "", "x" * 300, "a\0b"])
def test_a_time_zone_that_is_none_is_refused(name: str) -> None:
    """A folder of zones is no zone."""
    with pytest.raises(BadInput, match="is not known"):
        clock.zone(name)


@pytest.mark.parametrize("cron", ["", "61 * * * *", "* * *", "every day"])
def test_cron_nonsense_is_refused(cron: str) -> None:
    with pytest.raises(BadInput, match="five fields"):
        next(clock.fires(cron, datetime(2026, 1, 1, tzinfo=UTC)))


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_time_comes_back_from_its_microseconds_whatever_its_year(at: datetime) -> None:
    assert clock.moment(clock.micros(at)) == at


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+01:00"])
def test_a_time_that_utc_has_no_year_for_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="outside the years 1 to 9999"):
        clock.utc(text)


ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize(
    "cron", ["30 2 * * *", "0 * * * *", "*/30 * * * *", "15 1 * * *", "45 1,2 * * *", "*/7 * * * *"]
)
@pytest.mark.parametrize(
    "day", [(2024, 3, 9), (2024, 3, 30), (2024, 4, 6), (2024, 10, 5), (2024, 10, 26), (2024, 11, 2)]
)
def test_what_is_due_comes_after_the_time_that_was_asked_for_also_when_an_hour_comes_twice(
    zone: str, cron: str, day: tuple[int, int, int]
) -> None:
    """From wherever in a change of clocks one counts on, the times are the same, in order, and none comes again."""
    start = datetime(*day, tzinfo=UTC)
    whole = list(takewhile(lambda due: due < start + timedelta(days=4), clock.fires(cron, start, zone)))
    assert whole == sorted(set(whole))
    for minutes in range(0, 36 * 60, 17):
        at = start + timedelta(minutes=minutes)
        assert next(clock.fires(cron, at, zone)) == next(due for due in whole if due > at)
