"""The sketch of one column: what its batch statistics, checks, drift and search read. Merged, never changed.

Times count as microseconds since 1970 (UTC) and dates as microseconds of their midnight, true as 1. Integers beyond
2**53 are distinguished when they are counted but become the nearest float in `ranks`, `least` and `greatest`.
NaN and infinite values are counted and left out of everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cellwork.data.sketches import counts, distinct, ordered, ranks
from cellwork.data.sketches.counts import Counts
from cellwork.data.sketches.distinct import Distinct
from cellwork.data.sketches.ranks import Ranks
from cellwork.errors import BadInput

if TYPE_CHECKING:
    import polars as pl

Kind = Literal["null", "bool", "number", "time", "text", "other"]
"""``null``: no value yet, merges with any. ``other``: nested or binary, only its rows and nulls are counted."""

_DAY = 86_400_000_000
_NONE = Distinct(np.empty(0, np.uint64), 0, 0)


@dataclass(frozen=True)
class Column:
    kind: Kind
    rows: int
    nulls: int = 0
    nan: int = 0
    infinite: int = 0
    mean: float | None = None
    squares: float = 0.0
    """Sum of squared distances to the mean (Welford 1962; merged as Chan et al. 1979)."""
    least: float | str | None = None
    greatest: float | str | None = None
    """Of texts: the first and last by code point, cut to 200 characters."""
    distinct: Distinct = _NONE
    ranks: Ranks | None = None
    """Of numbers, times and true/false, if there is a finite one."""
    counts: Counts | None = None
    """Of texts."""

    @property
    def values(self) -> int:
        """How many values are neither null nor NaN nor infinite."""
        return self.rows - self.nulls - self.nan - self.infinite

    @property
    def variance(self) -> float | None:
        """The sample variance (n - 1), in the column's unit squared; None below two values."""
        return self.squares / (self.values - 1) if self.mean is not None and self.values > 1 else None

    @property
    def deviation(self) -> float | None:
        return None if self.variance is None else self.variance**0.5


def of(series: pl.Series, *, count_distinct: bool = True) -> Column:
    """Return the sketch of `series`, of any type; without `count_distinct` that of numbers and times takes half as long and has none."""
    import polars as pl

    dtype, base = series.dtype, Column("other", len(series), series.null_count())
    if base.nulls == base.rows:
        return replace(base, kind="null")
    values = series.drop_nulls()
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return _texts(base, values.cast(pl.String))
    if dtype == pl.Date:
        return _numbers(replace(base, kind="time"), values.to_physical().to_numpy(), count_distinct, unit=_DAY)
    if dtype.is_temporal() and dtype != pl.Time:
        return _numbers(replace(base, kind="time"), _micros(values).to_numpy(), count_distinct)
    if dtype == pl.Boolean:
        return _numbers(replace(base, kind="bool"), values.cast(pl.Int8).to_numpy(), count_distinct)
    if dtype.is_numeric():
        kept = values if dtype.is_integer() else values.cast(pl.Float64)
        return _numbers(replace(base, kind="number"), kept.to_numpy(), count_distinct)
    return base


def _micros(values: pl.Series) -> pl.Series:
    import polars as pl

    if isinstance(values.dtype, pl.Duration):
        return values.dt.total_microseconds()
    return values.dt.cast_time_unit("us").cast(pl.Int64)


def _numbers(base: Column, values: NDArray[Any], count_distinct: bool, unit: int = 1) -> Column:
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            nan = int(np.isnan(values).sum())
            base = replace(base, nan=nan, infinite=int((~finite).sum()) - nan)
            values = values[finite]
    if not len(values):
        return base
    column = ordered.of(values, unit)
    mean, squares = column.moments()
    return replace(
        base, mean=mean, squares=squares, least=float(column.values[0]), greatest=float(column.values[-1]),
        distinct=distinct.of_ordered(column.values) if count_distinct else _NONE, ranks=ranks.of(column),
    )  # fmt: skip


def _texts(base: Column, values: pl.Series) -> Column:
    texts, times = counts.recurring(values)
    listed, hashes = counts.of(texts, times)
    least, greatest = (str(text)[: counts.CHARACTERS] for text in (texts.min(), texts.max()))
    return replace(base, kind="text", least=least, greatest=greatest, distinct=distinct.of(hashes), counts=listed)


def merge(parts: Sequence[Column], name: str = "") -> Column:
    """Return the sketch of all rows of `parts` together.

    Raises
    ------
    BadInput
        They are of kinds that don't mix, such as texts and numbers; `name` is said in the message.
    """
    kind = _common_kind(parts, name)
    full = [part for part in parts if part.values]
    mean, squares = _moments([part for part in full if part.mean is not None])
    merged = Column(
        kind, rows=sum(p.rows for p in parts), nulls=sum(p.nulls for p in parts), nan=sum(p.nan for p in parts),
        infinite=sum(p.infinite for p in parts), mean=mean, squares=squares,
    )  # fmt: skip
    if kind == "other" or not full:
        return merged
    with_ranks, with_counts = [p.ranks for p in full if p.ranks], [p.counts for p in full if p.counts]
    extremes: list[Any] = [[p.least for p in full], [p.greatest for p in full]]
    return replace(
        merged, least=min(extremes[0]), greatest=max(extremes[1]),
        distinct=distinct.merge([p.distinct for p in full]),
        ranks=ranks.merge(with_ranks) if with_ranks else None,
        counts=counts.merge(with_counts) if with_counts else None,
    )  # fmt: skip


def _common_kind(parts: Sequence[Column], name: str) -> Kind:
    kinds: list[Kind] = sorted({part.kind for part in parts if part.kind != "null"})
    if kinds == ["bool", "number"]:
        return "number"
    if len(kinds) > 1:
        verdict = "are of kinds that don't mix"
        raise BadInput(f"sketches of column {name!r}", " and ".join(kinds), verdict, "merge columns of one type")
    return kinds[0] if kinds else "null"


def _moments(parts: Sequence[Column]) -> tuple[float | None, float]:
    if not parts:
        return None, 0.0
    sizes = np.array([part.values for part in parts], np.float64)
    means = np.array([part.mean for part in parts], np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(np.average(means, weights=sizes))
        return mean, float(sum(part.squares for part in parts) + np.sum(sizes * (means - mean) ** 2))
