"""The season of a window, and what is usual of a reference's own weeks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from cellwork.data import sketches
from cellwork.monitoring import season, usual
from cellwork.monitoring.drift import compare
from cellwork.wire.drift import DriftRules

MONDAY = datetime(2024, 4, 29, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("hours", "expected"),
    [
        ([0, 1], {0, 1}),
        ([*range(24)], {*range(24)}),
        ([*range(5, 24), 24 + 3], {*range(24), 24 + 3}),
        ([24 * day for day in range(7)], set()),
        ([7 * 24 + 2], {2}),
    ],
)
def test_a_season_is_the_hours_of_the_week_of_a_window_that_lacks_a_weekday(
    hours: list[int], expected: set[int]
) -> None:
    assert season.of(MONDAY + hour * HOUR for hour in hours) == expected


def test_rows_are_those_of_the_hours_in_whatever_zone_their_time_is() -> None:
    times = pl.Series([MONDAY + k * HOUR for k in range(24 * 14)])
    frame = pl.DataFrame({"at": times.dt.convert_time_zone("America/New_York"), "hour": range(24 * 14)})
    assert season.rows(frame, "at", frozenset({3, 30})).get_column("hour").to_list() == [3, 30, 7 * 24 + 3, 7 * 24 + 30]
    assert season.say(frozenset({3, 30})) == "its hours of Mon, Tue"


def weather(weeks: int, seed: int) -> pl.DataFrame:
    """One Monday a week; each has a temperature of its own, around which its hours lie."""
    dice = np.random.default_rng(seed)
    parts = [
        pl.DataFrame(
            {"at": [MONDAY + week * 168 * HOUR + k % 24 * HOUR for k in range(240)], "temp": dice.normal(t, 1, 240)}
        )
        for week, t in enumerate(dice.normal(0, 5, weeks))
    ]
    return pl.concat(parts)


def test_a_day_like_other_days_of_the_reference_is_no_drift_and_one_like_none_is() -> None:
    """Each day has one weather, so beside all days any of them differs."""
    days = weather(40, seed=1)
    reference = sketches.of(days.select("temp"))
    known = usual.of(days, "at", reference)
    later = [sketches.of(part.select("temp")) for part in weather(20, seed=2).iter_slices(240)]
    verdicts = [
        [compare(reference, day, DriftRules(), usual=apart)[0].verdict for day in later] for apart in ({}, known)
    ]
    assert verdicts[0].count("drift") >= 18
    assert verdicts[1].count("drift") <= 1
    odd = sketches.of(pl.DataFrame({"temp": np.random.default_rng(3).normal(40, 1, 240)}))
    assert compare(reference, odd, DriftRules(), usual=known)[0].verdict == "drift"


def test_a_few_weeks_say_nothing_of_what_is_usual() -> None:
    days = weather(usual.LEAST_WEEKS - 1, seed=1)
    assert usual.of(days, "at", sketches.of(days.select("temp"))) == {}
