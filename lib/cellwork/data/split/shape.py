"""What is said of a part's size and make-up: too small, labels missing, classes or segments uneven."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellwork.wire.datasets import Dataset as Record

if TYPE_CHECKING:
    import polars as pl

SMALL = 100
"""Labelled rows below which a part says little."""
RARE = 30
"""Rows below which a class of a part says little."""
UNEVEN = 0.1
"""Difference of class shares (or of label means, in standard deviations) between parts that is worth a word."""
MISSING = 0.05
"""Share of rows without a label that is worth a word."""
CLASSES = 20
"""A label of more values than this is a number, not a class."""
SEGMENTS = 50
"""A column of more values than this is no segment."""
UNSEEN = 0.01
"""Share of a part's rows in segments that the first part lacks that is worth a word."""


def said_of(record: Record, frames: Sequence[pl.DataFrame]) -> list[list[str]]:
    """Return the sentences about each of `frames`, the parts in order."""
    labels: list[list[str]] = _labels(frames, record.label) if record.label else [[] for _ in frames]
    return [[*about, *more] for about, more in zip(labels, _segments(record, frames), strict=True)]


def _labels(frames: Sequence[pl.DataFrame], label: str) -> list[list[str]]:
    import polars as pl

    values = [frame.get_column(label).cast(pl.Float64) for frame in frames]
    everywhere = pl.concat(values).drop_nulls()
    classes = everywhere.unique().sort()
    said = [_missing(each, each.drop_nulls()) for each in values]
    for told, each in zip(said, values, strict=True):
        known = each.drop_nulls()
        if len(known) and len(classes) == 1:
            told.append(f"{label} is {classes[0]:g} in every row: there is nothing to learn; look at how it is made")
        elif len(known) and len(classes) <= CLASSES:
            told += _classes(known, everywhere, classes.to_list(), label)
        elif len(known):
            told += _shifted(known, everywhere, label)
    return said


def _missing(values: pl.Series, known: pl.Series) -> list[str]:
    if not len(known):
        return ["none of its rows has a label: they are sealed, or not known yet"]
    said = []
    if values.null_count() > MISSING * len(values):
        said.append(f"{values.null_count():,} of {len(values):,} rows have no label; X and y leave them out")
    if len(known) < SMALL:
        said.append(f"only {len(known)} labelled rows: metrics on it say little; take a larger share, or folds")
    return said


def _classes(known: pl.Series, everywhere: pl.Series, classes: list[float], label: str) -> list[str]:
    said = []
    for value in classes:
        count = int((known == value).sum())
        share = count / len(known)
        usual = int((everywhere == value).sum()) / len(everywhere)
        if count == 0:
            said.append(f"{label} is never {value:g} in it; split.stratified keeps every class in every part")
        elif count < RARE:
            said.append(f"{label} is {value:g} in only {count} rows; take a larger share")
        elif abs(share - usual) > max(UNEVEN * usual, 3 * (usual * (1 - usual) / len(known)) ** 0.5):
            said.append(
                f"{label} is {value:g} in {share:.1%} of its rows, in {usual:.1%} of all; if time is not the reason, split.stratified evens it"
            )
    return said[:5]


def _shifted(known: pl.Series, everywhere: pl.Series, label: str) -> list[str]:
    spread, mean, usual = (_number(value) for value in (everywhere.std(), known.mean(), everywhere.mean()))
    if spread and abs(mean - usual) > UNEVEN * spread:
        return [
            f"mean of {label} is {mean:.4g} in it, {usual:.4g} in all; expect metrics to differ from those in training"
        ]
    return []


def _number(value: object) -> float:
    """Return a statistic of a float series as a number; of no values it is 0."""
    return value if isinstance(value, float) else 0.0


def _segments(record: Record, frames: Sequence[pl.DataFrame]) -> list[list[str]]:
    """Say which part has segments (values of a text column) that the first part hardly knows, or in other shares."""
    import polars as pl

    said: list[list[str]] = [[] for _ in frames]
    for name in [*record.inputs, *record.features]:
        columns = [frame.get_column(name) for frame in frames]
        if columns[0].dtype not in (pl.String, pl.Categorical, pl.Enum):
            continue
        texts = [column.cast(pl.String).fill_null("missing") for column in columns]
        if pl.concat(texts).n_unique() > SEGMENTS:
            continue
        first = _shares(texts[0])
        for told, text in zip(said[1:], texts[1:], strict=True):
            told += _against(name, first, _shares(text))
    return said


def _shares(texts: pl.Series) -> dict[str, float]:
    counts = texts.value_counts()
    return dict(zip(counts[texts.name], (counts["count"] / len(texts)).to_list(), strict=True))


def _against(name: str, first: dict[str, float], here: dict[str, float]) -> list[str]:
    unseen = {value: share for value, share in here.items() if value not in first}
    if sum(unseen.values()) > UNSEEN:
        shown = ", ".join(sorted(unseen, key=lambda value: -unseen[value])[:3])
        return [
            f"{sum(unseen.values()):.1%} of its rows have a {name} the first part never shows ({shown}); cut elsewhere, or group them"
        ]
    apart = sum(abs(here.get(value, 0.0) - first.get(value, 0.0)) for value in {*first, *here}) / 2
    if apart > UNEVEN:
        most = max(here, key=lambda value: abs(here[value] - first.get(value, 0.0)))
        return [
            f"{name} is spread otherwise than in the first part ({most}: {here[most]:.1%} here, {first.get(most, 0.0):.1%} there); look at metrics by {name}"
        ]
    return []
