"""What is said of knowledge that gets from one part into another: later moments, late labels, groups, near-duplicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cellwork import clock
from cellwork.wire.datasets import Dataset as Record

if TYPE_CHECKING:
    import polars as pl

TWINS = 0.01
"""Share of a part's rows with a near-duplicate in the first part that is worth a word."""
CONTINUOUS = 100
"""A number of more values than this is continuous: where no column is, equal rows are to be expected."""
FINE = 200
"""Numbers that differ by less than 1/200 of a standard deviation are near-duplicates."""


def said_of(
    record: Record, frames: Sequence[pl.DataFrame], names: Sequence[str], recipe: Mapping[str, Any], group: str
) -> list[list[str]]:
    """Return the sentences about each of `frames`, the parts in order."""
    said: list[list[str]] = [[] for _ in frames]
    if record.time_column:
        _moments(record.time_column, frames, names, said)
    for told, frame, cut in zip(said, frames, recipe.get("cuts", []), strict=False):
        told += _late_labels(record, frame, clock.utc(datetime.fromisoformat(cut)))
    for column in dict.fromkeys([record.id_column, *([group] if group else [])]):
        _groups(column, frames, names, said)
    _twins(record, frames, names, said)
    return said


def _moments(time: str, frames: Sequence[pl.DataFrame], names: Sequence[str], said: list[list[str]]) -> None:
    """A row of the first part that is later than one of another part shows the model that one's future."""
    first = frames[0].get_column(time).drop_nulls()
    for k, frame in enumerate(frames[1:], start=1):
        times = frame.get_column(time).drop_nulls()
        if not len(first) or not len(times):
            continue
        shared = int(times.is_in(first.unique().implode()).sum())
        if shared:
            said[k].append(
                f"{shared:,} of its rows have a moment in common with {names[0]!r}: what happens to many at once is in both; a time split is honest"
            )
        later = int((first > times.min()).sum())
        if later:
            said[k].append(
                f"{later:,} of {len(first):,} rows of {names[0]!r} are later than its first row, so the model sees the future; split.by_time or split.sequential does not"
            )


def _late_labels(record: Record, frame: pl.DataFrame, cut: datetime) -> list[str]:
    """Labels that were known only after the cut: someone who trained at the cut would not have had them."""
    import polars as pl

    known = record.label_known
    if not record.label or not known:
        return []
    late = frame.filter(pl.col(record.label).is_not_null() & (pl.col(known) > cut)).height
    at = f"{cut:%Y-%m-%d %H:%M}Z"
    return [f"{late:,} of its labels became known only after the cut at {at}; a gap leaves them out"] if late else []


def _groups(column: str, frames: Sequence[pl.DataFrame], names: Sequence[str], said: list[list[str]]) -> None:
    first = frames[0].get_column(column).drop_nulls().unique()
    for k, frame in enumerate(frames[1:], start=1):
        values = frame.get_column(column)
        rows = int(values.is_in(first.implode()).sum())
        if rows:
            both = values.unique().is_in(first.implode()).sum()
            said[k].append(
                f"{rows:,} of its rows have a {column} that is in {names[0]!r} too ({both:,} values): the model may know them by heart; split.by_group keeps them apart"
            )


def _twins(record: Record, frames: Sequence[pl.DataFrame], names: Sequence[str], said: list[list[str]]) -> None:
    keys = _keys(record, frames)
    if not keys:
        return
    first = keys[0].unique()
    for k, key in enumerate(keys[1:], start=1):
        rows = int(key.is_in(first.implode()).sum())
        if rows > TWINS * len(key):
            said[k].append(
                f"{rows:,} of its {len(key):,} rows have a near-duplicate in {names[0]!r}: metrics on it flatter; drop them, or split.by_group by what they share"
            )


def _keys(record: Record, frames: Sequence[pl.DataFrame]) -> list[pl.Series]:
    """Return a hash of each row's model columns, numbers coarsened and texts without case and spaces; none where no column is continuous."""
    import polars as pl

    columns = [*record.inputs, *record.features]
    if not columns:
        return []
    rows = pl.concat([frame.select(columns) for frame in frames], how="vertical_relaxed")
    numbers = [name for name in columns if rows.schema[name].is_numeric()]
    fine = [name for name in numbers if rows.get_column(name).head(100_000).n_unique() > CONTINUOUS]
    if not fine:
        return []
    coarse = [(pl.col(name) / pl.col(name).std() * FINE).round().cast(pl.Float64).fill_nan(None) for name in fine]
    texts = [
        pl.col(name).str.to_lowercase().str.replace_all(r"\s+", " ")
        for name in columns
        if rows.schema[name] == pl.String
    ]
    hashed = rows.with_columns(*coarse, *texts).hash_rows()
    starts = [sum(frame.height for frame in frames[:k]) for k in range(len(frames))]
    return [hashed.slice(start, frame.height) for start, frame in zip(starts, frames, strict=True)]
