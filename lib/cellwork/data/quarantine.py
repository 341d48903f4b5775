"""Rows that can't be kept go into quarantine with the reason; the rest of the batch is taken.

A row is refused if a key column is null, if its key occurs with different contents (which of them is right can't be told, so
none is taken), if it repeats a row with the same key (one is kept), or if a number in it is infinite. The verdict
depends on the rows only, never on their order, because a batch id does not either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellwork.errors import BadInput, near_miss

if TYPE_CHECKING:
    import polars as pl


def divide(frame: pl.DataFrame, key: Sequence[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the rows to keep, and those refused with the column `_reason`.

    Parameters
    ----------
    frame : canonical rows with their number in the column `_row`.
    key : columns that identify a row; empty checks no key.

    Raises
    ------
    BadInput
        A key column does not exist.
    """
    import polars as pl

    for name in key:
        if name not in frame.columns:
            raise BadInput("key column", name, "is not in the batch", near_miss(name, frame.columns))
    reasons = [_infinite(name) for name, dtype in frame.schema.items() if dtype.is_float()]
    if key:
        reasons = [*(_null_key(name) for name in key), *_repeated(frame, key), *reasons]
    if not reasons:
        return frame, frame.head(0).with_columns(_reason=pl.lit(""))
    judged = frame.with_columns(_reason=pl.coalesce(*reasons, pl.lit("")))
    return judged.filter(pl.col("_reason") == "").drop("_reason"), judged.filter(pl.col("_reason") != "")


def _when(condition: pl.Expr, reason: str) -> pl.Expr:
    import polars as pl

    return pl.when(condition).then(pl.lit(reason))


def _null_key(name: str) -> pl.Expr:
    import polars as pl

    return _when(pl.col(name).is_null(), f"key column {name!r} is null")


def _infinite(name: str) -> pl.Expr:
    import polars as pl

    return _when(pl.col(name).is_infinite(), f"column {name!r} is infinite")


def _repeated(frame: pl.DataFrame, key: Sequence[str]) -> list[pl.Expr]:
    import polars as pl

    if not frame.select(key).is_duplicated().any():
        return []
    contents = [name for name in frame.columns if name != "_row"]
    differing = pl.struct(contents).n_unique().over(key) > 1
    again = pl.struct(contents).is_first_distinct().not_()
    text = ", ".join(key)
    return [_when(differing, f"key ({text}) has different rows"), _when(again, f"repeats the row of its key ({text})")]
