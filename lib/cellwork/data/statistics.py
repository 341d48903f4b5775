"""What people read of a sketch: one line a column, times as text. Sealed values are never in it, as no sketch is made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cellwork.wire.batches import ColumnStatistics, Frequent

if TYPE_CHECKING:
    import polars as pl

    from cellwork.data.sketches import Column, Sketch

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the quantiles shown."""
FREQUENT = 10
"""Texts shown with their counts."""


def of(frame: pl.DataFrame) -> list[ColumnStatistics]:
    """Return the statistics of each column of a canonical frame, in its order; `mean` of a bool is its rate of true."""
    from cellwork.data import sketches

    return said(sketches.of(frame), dates=[name for name, dtype in frame.schema.items() if str(dtype) == "Date"])


def said(sketch: Sketch, *, dates: Sequence[str] = ()) -> list[ColumnStatistics]:
    """Return the statistics that `sketch` holds; `dates` are the columns whose times are whole days."""
    return [_column(name, column, name in dates) for name, column in sketch.columns.items()]


def _column(name: str, column: Column, day: bool) -> ColumnStatistics:
    time, number = column.kind == "time", column.kind == "number"
    distinct, exact = _distinct(column)
    found = ColumnStatistics(
        name=name,
        kind=column.kind,
        nulls=column.nulls,
        nan=column.nan,
        infinite=column.infinite,
        distinct=distinct,
        exact=exact,
        mean=None if time else _finite(column.mean),
        deviation=None if time else _finite(column.deviation),
    )
    if column.counts:
        pairs = list(column.counts.items().items())[:FREQUENT]
        found.frequent = [Frequent(text=text, rows=rows) for text, rows in pairs]
    if column.ranks and (time or number):
        values = [float(value) for value in column.ranks.quantile(SHARES)]
        found.quantiles = [_moment(value, day) if time else value for value in values]
    if column.kind != "bool":
        found.min, found.max = (_plain(value, time, day) for value in (column.least, column.greatest))
    return found


def _distinct(column: Column) -> tuple[int, bool]:
    """Return how many distinct values there are, and whether that is exact: ranks that kept every value know it too."""
    if column.ranks and column.ranks.exact and abs(column.ranks.values).max() < 2**53:
        return len(column.ranks.values), True
    return column.distinct.count, column.distinct.exact


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _plain(value: str | float | None, time: bool, day: bool) -> str | float | None:
    return _moment(value, day) if time and isinstance(value, float) else value


def _moment(micros: float, day: bool) -> str:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=round(micros))
    return at.date().isoformat() if day else at.isoformat().replace("+00:00", "Z")
