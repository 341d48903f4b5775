"""The values of a column in order, which moments, ranks and distinct values are read from: as they came, counted, or sorted.

Sorting is most of the work of a sketch. Numbers and times that come in order (as most ids and times do) are taken as they are, and
whole numbers in a narrow range are counted instead. Many rows are sorted by NumPy or by polars, whichever is quicker on this machine:
NumPy's sort with AVX-512 takes five times as long on Zen 4 as the same with AVX2, and twice as long as polars'.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 32_768
_WIDEST = 1 << 20
"""Whole numbers in a range up to this are counted; their counts fit into the processor's cache."""
_MANY = 1 << 18
"""Rows from which on it is worth to know which sort is quicker."""


@dataclass(frozen=True)
class Ordered:
    """At least one finite number."""

    values: NDArray[Any]
    """Shape (k,), in order."""
    times: NDArray[np.int64] | None = None
    """How often each of `values` occurs; None: they stand there as often as they occur."""

    def moments(self) -> tuple[float, float]:
        """Return the mean and the sum of squared distances to it, block by block: no second column is made on the way."""
        with np.errstate(over="ignore"):
            if self.times is not None:
                mean = float(np.average(self.values, weights=self.times))
                return mean, float(np.sum(self.times * (self.values - mean) ** 2))
            mean, squares = float(np.mean(self.values, dtype=np.float64)), 0.0
            for start in range(0, len(self.values), _BLOCK):
                apart = self.values[start : start + _BLOCK] - mean
                apart *= apart  # not a dot product, whose threads would wait for each other
                squares += float(apart.sum())
        return mean, squares


def of(values: NDArray[Any], unit: int = 1) -> Ordered:
    """Return `values`, integers or finite floats, in order; each times `unit`."""
    column = _ordered(values)
    return column if unit == 1 else Ordered(column.values.astype(np.int64) * unit, column.times)


def _ordered(values: NDArray[Any]) -> Ordered:
    if _in_order(values):
        return Ordered(values)
    if values.dtype.kind in "iu":
        least, greatest = values.min(), values.max()
        if int(greatest) - int(least) < min(_WIDEST, len(values)):
            return _counted(values, least)
    return Ordered(np.sort(values) if len(values) < _MANY else _quickest_sort()(values))


def _in_order(values: NDArray[Any]) -> bool:
    """Return whether `values` are sorted; of those that are not, usually only the beginning is read."""
    parts = (values[at : at + _BLOCK + 1] for at in range(0, len(values), _BLOCK))
    return all(bool((part[1:] >= part[:-1]).all()) for part in parts)


def _counted(values: NDArray[Any], least: Any) -> Ordered:
    wide = np.int64 if values.dtype.kind == "i" else values.dtype
    counts = np.bincount(np.subtract(values, least, dtype=wide).astype(np.int64, copy=False))
    found = np.flatnonzero(counts)
    return Ordered(found.astype(wide) + least, counts[found])


def _sort_by_numpy(values: NDArray[Any]) -> NDArray[Any]:
    return np.sort(values)


def _sort_by_polars(values: NDArray[Any]) -> NDArray[Any]:
    import polars as pl

    return pl.Series(values).sort().to_numpy()


@functools.cache
def _quickest_sort() -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return the sort that is quicker here, tried once a process on a quarter of a million rows; both give the same."""
    rows = np.random.default_rng(0).random(_MANY)

    def seconds(sort: Callable[[NDArray[Any]], NDArray[Any]]) -> float:
        started = time.perf_counter()
        sort(rows)
        return time.perf_counter() - started

    return min(_sort_by_numpy, _sort_by_polars, key=lambda sort: min(seconds(sort) for _ in range(3)))
