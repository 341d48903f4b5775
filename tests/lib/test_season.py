"""The season of a window, and what is usual of a reference's own weeks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(600, 2500))
def test_what_is_usual_is_the_farthest_that_the_sketch_of_a_week_is_from_all_of_them(seed: int, rows: int) -> None:
    dice = np.random.default_rng(seed)
    texts = np.array([f"t{k}" for k in range(70)] + [None], dtype=object)
    numbers = dice.normal(dice.normal(0, 2, rows), 1).round(1)
    numbers[dice.random(rows) < 0.1] = np.nan
    numbers[dice.random(rows) < 0.02] = np.inf
    frame = pl.DataFrame(
        {
            "at": [MONDAY + int(hour) * HOUR for hour in dice.integers(0, 12 * 168, rows)],
            "number": numbers,
            "whole": pl.Series(np.where(dice.random(rows) < 0.2, None, dice.poisson(3, rows)).tolist(), dtype=pl.Int64),
            "text": pl.Series(texts[np.minimum(dice.geometric(0.05, rows), 70)].tolist(), dtype=pl.String),
            "flag": dice.random(rows) < 0.3,
            "empty": pl.Series([None] * rows, dtype=pl.Float64),
            "time": [MONDAY] * rows,
        }
    )
    reference = sketches.of(frame.drop("at"))
    found = usual.of(frame, "at", reference)
    farthest: dict[str, list[float]] = {name: [0.0, 0.0] for name in reference.columns}
    for week in frame.with_columns(week=pl.col("at").dt.truncate("1w")).partition_by("week", include_key=False):
        for column in compare(reference, sketches.of(week.drop("at"))):
            psi, missing = farthest[column.column]
            apart = abs(column.missing_window - column.missing_reference)
            farthest[column.column] = [max(psi, column.psi or 0.0), max(missing, apart)]
    assert {name: [each.psi, each.missing] for name, each in found.items()} == {
        name: pytest.approx(far, abs=1e-9) for name, far in farthest.items()
    }


def test_a_few_weeks_say_nothing_of_what_is_usual() -> None:
    days = weather(usual.LEAST_WEEKS - 1, seed=1)
    assert usual.of(days, "at", sketches.of(days.select("temp"))) == {}
