"""Statistics of a batch's columns, computed once at ingest from the readable rows: sealed values are never in them."""

from __future__ import annotations

from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from cellwork.wire.batches import ColumnStatistics

if TYPE_CHECKING:
    import polars as pl

TEXT = 200
"""Characters kept of the smallest and the largest text."""


def of(frame: pl.DataFrame) -> list[ColumnStatistics]:
    """Return the statistics of each column of a canonical frame: in its order; `mean` of a bool is its rate of true."""
    import polars as pl

    asked: list[pl.Expr] = []
    for name, dtype in frame.schema.items():
        column = pl.col(name)
        asked += [column.null_count().alias(f"nulls:{name}"), column.drop_nulls().n_unique().alias(f"distinct:{name}")]
        if dtype not in (pl.Null, pl.Boolean):
            asked += [column.min().alias(f"min:{name}"), column.max().alias(f"max:{name}")]
        if dtype.is_numeric() or dtype == pl.Boolean:
            asked.append(column.mean().alias(f"mean:{name}"))
    values: dict[str, Any] = frame.select(asked).row(0, named=True) if asked else {}
    return [
        ColumnStatistics(
            name=name,
            nulls=values[f"nulls:{name}"],
            distinct=values[f"distinct:{name}"],
            min=_plain(values.get(f"min:{name}")),
            max=_plain(values.get(f"max:{name}")),
            mean=values.get(f"mean:{name}"),
        )
        for name in frame.columns
    ]


def _plain(value: Any) -> str | float | None:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    return value[:TEXT] if isinstance(value, str) else None if value is None else float(value)
