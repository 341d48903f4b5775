"""Rows drawn again, left out or weighted, so that the values of a column count alike. For the part to train on alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from cellwork.errors import BadInput, near_miss

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

VALUES = 50
"""A column of more values than this can't be balanced."""


def drawn(
    rows: pl.DataFrame, column: str, how: Literal["oversampled", "undersampled"], ratio: float, seed: int
) -> pl.DataFrame:
    """Return `rows` over- or undersampled by `column`, in their order; rows whose value is missing stay as they are."""
    import numpy as np

    if not 0 < ratio <= 1:
        raise BadInput("ratio", ratio, "is not between 0 and 1", "1 makes all values as frequent, 0.5 half as much")
    random = np.random.default_rng(seed)
    kept = [np.flatnonzero(rows.get_column(column).is_null().to_numpy())] if column in rows.columns else []
    for members, goal in _goals(rows, column, how, ratio):
        if goal <= len(members):
            kept.append(random.choice(members, goal, replace=False))
        else:
            kept.append(np.concatenate([members, random.choice(members, goal - len(members), replace=True)]))
    return rows[np.sort(np.concatenate(kept))]


def _goals(rows: pl.DataFrame, column: str, how: str, ratio: float) -> list[tuple[Any, int]]:
    """Return the positions of each value's rows, and how many of them there shall be."""
    members = _members(rows, column)
    counts = [len(each) for each in members]
    if how == "oversampled":
        return [(each, max(len(each), round(ratio * max(counts)))) for each in members]
    return [(each, min(len(each), round(min(counts) / ratio))) for each in members]


def _members(rows: pl.DataFrame, column: str) -> list[np.ndarray[Any, Any]]:
    import numpy as np

    if column not in rows.columns:
        raise BadInput("column to balance", column, "is not in the part", near_miss(column, rows.columns))
    values = rows.get_column(column)
    found = values.drop_nulls().unique().sort()
    if not 2 <= len(found) <= VALUES:
        verdict = f"has {len(found)} values, and 2 to {VALUES} can be balanced"
        raise BadInput("column to balance", column, verdict, "choose a class, or a column of segments")
    return [np.flatnonzero((values == value).fill_null(False).to_numpy()) for value in found]


def weights(rows: pl.DataFrame, column: str) -> np.ndarray[Any, Any]:
    """Return one weight a row, mean 1: the sum is the same for each value of `column`; a missing value's row weighs 1."""
    import numpy as np

    members = _members(rows, column)
    answer = np.ones(rows.height)
    known = sum(len(each) for each in members)
    for each in members:
        answer[each] = known / (len(members) * len(each))
    return answer
