"""The questions of a point-in-time join: observations as groups (one a distinct entity) and times, on plain numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cellwork.errors import BadInput
from cellwork.features.row import require

if TYPE_CHECKING:
    import polars as pl
    from polars import Schema

GROUP = "_group"
UNITS = ("ms", "us", "ns")
PER_SECOND = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
LEAST, MOST = -(2**63) + 1, 2**63 - 1


@dataclass(frozen=True)
class Asked:
    """Those observations that have keys and a time, in the order of group and time; m of them."""

    total: int
    """Number of all observations."""
    place: Any
    """Number of the observation of each question, shape (m,)."""
    group: Any
    """Its group, an index into `groups`, shape (m,)."""
    at: Any
    """Its time since 1970, in `unit`, shape (m,)."""
    unit: str
    groups: pl.DataFrame
    """The join keys of each group, in the types of the view's rows, and its number ``_group``."""

    def parts(self, count: int) -> Iterator[Asked]:
        """Yield the questions in `count` parts of whole groups; together they are all."""
        import numpy as np

        bounds = [self.groups.height * part // count for part in range(count + 1)]
        edges = np.searchsorted(self.group, bounds)
        for part in range(count):
            inside = slice(edges[part], edges[part + 1])
            groups = self.groups.slice(bounds[part], bounds[part + 1] - bounds[part])
            yield replace(self, place=self.place[inside], group=self.group[inside], at=self.at[inside], groups=groups)

    def buckets(self, bucket: Any, count: int) -> Iterator[Asked]:
        """Yield the questions of the groups in each of `count` buckets; together they are all.

        Parameters
        ----------
        bucket : the bucket of each group, shape (groups,).
        """
        import polars as pl

        for number in range(count):
            inside = bucket[self.group] == number
            groups = self.groups.filter(pl.Series(bucket == number))
            yield replace(self, place=self.place[inside], group=self.group[inside], at=self.at[inside], groups=groups)

    def spread(self, rows: Any) -> Any:
        """Return `rows`, one a question, as one an observation; -1 for those without a question."""
        import numpy as np

        whole = np.full(self.total, -1, dtype=np.int64)
        whole[self.place] = rows
        return whole


def ask(observations: pl.DataFrame, at: str, keys: Mapping[str, str], kept: Schema, unit: str, *, view: str) -> Asked:
    """Return the questions that `observations` put to `view`.

    Parameters
    ----------
    at : column of `observations`, a time with a zone.
    keys : join key of the view -> column of `observations`.
    kept : types of the view's rows.
    unit : of the times in the answer, at least as fine as those of `at`.
    """
    import polars as pl

    typed = observations.select(
        *casts(observations, keys, kept, view), instants(pl.col(at), observations.schema[at], unit).alias("_at")
    )
    names = [f"_key:{key}" for key in keys]
    groups = typed.select(names).drop_nulls().unique().with_row_index(GROUP)
    numbered = typed.with_row_index("_place").join(groups, on=names, how="inner").drop_nulls("_at")
    ordered = numbered.select("_place", GROUP, "_at").sort(GROUP, "_at")
    place, group, time = (ordered.get_column(name).cast(pl.Int64).to_numpy() for name in ("_place", GROUP, "_at"))
    return Asked(observations.height, place, group, time, unit, groups.rename(dict(zip(names, keys, strict=True))))


def casts(observations: pl.DataFrame, keys: Mapping[str, str], kept: Schema, view: str) -> list[pl.Expr]:
    """Return the keys of `observations` in the types of the view's rows; what does not fit is null.

    Raises
    ------
    BadInput
        A column is missing, or of a type that is never equal to the key's.
    """
    import polars as pl

    require("observations", observations, list(keys.values()))
    found = []
    for key, column in keys.items():
        asked, there = observations.schema[column], kept[key]
        if not _comparable(asked, there):
            raise BadInput(
                f"column {column!r} of the observations", asked, f"is not {there}, as the key {key!r} of view {view!r} is",
                "cast one of them in the SQL of its rows",
            )  # fmt: skip
        found.append(pl.col(column).cast(asked if there == pl.Null else there, strict=False).alias(f"_key:{key}"))
    return found


def _comparable(asked: pl.DataType, there: pl.DataType) -> bool:
    import polars as pl

    words = (pl.String, pl.Categorical, pl.Enum)
    same = asked == there or (asked.is_integer() and there.is_integer())
    return same or pl.Null in (asked, there) or (isinstance(asked, words) and isinstance(there, words))


def finest(types: Sequence[pl.DataType]) -> str:
    """Return the finest time unit of `types`, all of them times."""
    return max((str(dtype.time_unit) for dtype in types), key=UNITS.index)  # type: ignore[attr-defined]


def instants(time: pl.Expr, dtype: pl.DataType, unit: str) -> pl.Expr:
    """Return `time` as a whole number of `unit` since 1970; what lies beyond 64 bits becomes the last that does not."""
    factor = PER_SECOND[unit] // PER_SECOND[str(dtype.time_unit)]  # type: ignore[attr-defined]
    number = time.to_physical()
    return number if factor == 1 else number.clip(LEAST // factor + 1, MOST // factor) * factor
