"""How far the weeks of a reference are from all of it: a single day has one weather, whatever the year has.

A window without all weekdays is compared with the same hours of the reference (`season`); of these, no single week is like all of them
together. Only what is farther than any of them is news. PSI and missing values are those of `drift.compare`, of all weeks in one reading
of the rows: a sketch of every week would take fifty times as long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cellwork.monitoring import distances, drift
from cellwork.monitoring.distances import Floats
from cellwork.wire.drift import DriftRules, Usual

if TYPE_CHECKING:
    import polars as pl

    from cellwork.data.sketches import Column, Sketch

LEAST_WEEKS = 8
"""With fewer weeks nothing is known of what is usual."""

Whole = NDArray[np.int64]


def of(frame: pl.DataFrame, time: str, reference: Sketch) -> dict[str, Usual]:
    """Return what is usual of the columns of `reference`, the sketch of `frame`, week by week of `time`; nothing for too few weeks."""
    import polars as pl

    week = frame.get_column(time).dt.truncate("1w").rank("dense").cast(pl.Int64).to_numpy() - 1
    weeks = int(week.max()) + 1 if len(week) else 0
    if weeks < LEAST_WEEKS:
        return {}
    return {name: _usual(frame.get_column(name), week, weeks, known) for name, known in reference.columns.items()}


def _usual(column: pl.Series, week: Whole, weeks: int, reference: Column) -> Usual:
    if reference.kind in ("time", "other"):
        return Usual()
    there = (column.is_not_null() & ~_is_nan(column)).to_numpy()
    rows = np.bincount(week, minlength=weeks)
    missing = 1 - np.bincount(week[there], minlength=weeks) / rows
    of_all = (reference.nulls + reference.nan) / reference.rows
    found = Usual(missing=float(np.abs(missing - of_all).max()))
    if reference.kind == "null":
        return found
    places, expected = _binned(column, reference)
    kept = places >= 0
    counts = np.zeros((weeks, len(expected)))
    np.add.at(counts, (week[kept], places[kept]), 1)
    values = counts.sum(axis=1)
    enough = values >= DriftRules().least_rows
    if enough.any() and reference.values >= DriftRules().least_rows:
        shares = counts[enough] / values[enough, None]
        found.psi = max(distances.psi(expected, each) for each in shares)
    return found


def _binned(column: pl.Series, reference: Column) -> tuple[Whole, Floats]:
    """Return in which bin of `reference` each value is, -1 what is in none, and the reference's shares of the bins."""
    import polars as pl

    if reference.kind == "number" and reference.ranks:
        edges, expected = distances.bins(reference.ranks)
        values = column.cast(pl.Float64).to_numpy()
        finite = np.isfinite(values)
        return np.where(finite, np.searchsorted(edges, values), -1), expected
    chosen, counts = drift.categories(reference)
    index = {text: place for place, text in enumerate(chosen)}
    texts = column.cast(pl.String)
    places = texts.replace_strict(index, default=len(chosen), return_dtype=pl.Int64)
    return places.set(texts.is_null(), -1).to_numpy(), counts / counts.sum()


def _is_nan(column: pl.Series) -> pl.Series:
    import polars as pl

    return column.is_nan().fill_null(False) if column.dtype.is_float() else pl.repeat(False, len(column), eager=True)
