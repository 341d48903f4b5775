"""Which times of a reference are like those of a window.

A single day has one weekday, a night has no noon: beside ten months they differ whatever happens. So a window that lacks a weekday is
compared with the same hours of the week (UTC) of its reference; one with all seven with all of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

Hours = frozenset[int]
"""Hours of the week: 0 is Monday, midnight to one o'clock UTC; none means all."""

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
ALL: Hours = frozenset()


MOST_OF_A_DAY = 12


def of(hours: Iterable[datetime]) -> Hours:
    """Return the hours of the week of a window that has rows in these hours (UTC); most of a day stand for the day."""
    found = {24 * at.weekday() + at.hour for at in hours}
    days = {day: sum(hour // 24 == day for hour in found) for day in range(len(DAYS))}
    if all(days.values()):
        return ALL
    whole = [range(24 * day, 24 * day + 24) for day, there in days.items() if there >= MOST_OF_A_DAY]
    return frozenset(found.union(*whole))


def rows(frame: pl.DataFrame, time: str, hours: Hours) -> pl.DataFrame:
    """Return the rows of `frame` whose `time` (with a zone) lies in `hours`."""
    import polars as pl

    at = pl.col(time).dt.convert_time_zone("UTC")
    return frame.filter((24 * (at.dt.weekday().cast(pl.Int32) - 1) + at.dt.hour().cast(pl.Int32)).is_in(sorted(hours)))


def say(hours: Hours) -> str:
    """Return `hours` in words such as ``its hours of Mon, Tue``; nothing for all."""
    days = ", ".join(DAYS[day] for day in sorted({hour // 24 for hour in hours}))
    return f"its hours of {days}" if days else ""
