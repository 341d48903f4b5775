"""Split a dataset into parts, with the warnings that a careful colleague would give.

A time split cuts between moments: rows of one moment stay together, what is later is never in an earlier part. A random split
depends on the seed and on each row's id only, so a row stays on its side when rows are added. The recipe of a split goes with its parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cellwork.data.dataset import Rows, moment
from cellwork.errors import BadInput
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


class Part(Rows):
    """One part of a split: rows in the dataset's order, its name, its recipe and its warnings."""

    def __init__(self, record: Record, rows: pl.DataFrame, name: str, recipe: dict[str, Any]) -> None:
        super().__init__(record, rows)
        self.name, self.recipe = name, {**recipe, "part": name}
        self.warnings: list[str] = []

    def title(self) -> str:
        return f"{super().title()}, part {self.name!r}"

    def facts(self) -> list[tuple[str, str]]:
        facts = [*super().facts(), ("part", ", ".join(f"{key} {value}" for key, value in self.recipe.items()))]
        return [*facts, ("mean label", f"{self.y().mean():.4g}")] if self.labelled else facts

    def warnings_of(self) -> list[str]:
        return self.warnings


@dataclass(frozen=True)
class Split:
    """Parts in order; unpack it: ``train, valid = split.by_time(dataset, "2013-09-01")``."""

    parts: tuple[Part, ...]
    recipe: dict[str, Any]

    @property
    def warnings(self) -> list[str]:
        return [f"{part.name}: {text}" for part in self.parts for text in part.warnings]

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts)

    def __getitem__(self, name: str) -> Part:
        return {part.name: part for part in self.parts}[name]

    def __repr__(self) -> str:
        return "\n".join(repr(part) for part in self.parts)

    def _repr_html_(self) -> str:
        return "".join(part._repr_html_() for part in self.parts)


def by_time(dataset: Rows, *cuts: datetime | str, names: Sequence[str] = ()) -> Split:
    """Return the rows before the first of `cuts`, from each to the next, and from the last on.

    Parameters
    ----------
    cuts : increasing times with a zone, or dates (midnight UTC); a row at a cut belongs to the later part.
    names : of the parts; by default ``train, valid`` or ``train, valid, test``, and numbers beyond.

    Raises
    ------
    BadInput
        The cuts do not increase, or a part has no rows.
    """
    import polars as pl

    times = [moment(cut) for cut in cuts]
    if not times or sorted(set(times)) != times:
        raise BadInput("cuts", ", ".join(map(str, cuts)), "do not increase", "give one time or more, earliest first")
    recipe = {"kind": "time", "cuts": [time.isoformat() for time in times]}
    place = sum((pl.col(dataset.record.time_column) >= time).cast(pl.Int64) for time in times)
    made = _made(dataset, pl.lit(0) + place, _names(names, len(times) + 1), recipe)
    for part, cut in zip(made.parts, times, strict=False):
        _warn_of_late_labels(part, cut)
    return made


def random(dataset: Rows, share: float = 0.2, *, seed: int = 0, names: Sequence[str] = ()) -> Split:
    """Return about ``1 - share`` and about `share` of the rows, chosen by a hash of seed and id; equal ids stay together.

    Raises
    ------
    BadInput
        `share` is not between 0 and 1, or a part has no rows.
    """
    import polars as pl

    if not 0 < share < 1:
        raise BadInput(
            "share", share, "is not between 0 and 1", "give the second part's share of the rows, such as 0.2"
        )
    identity = dataset.frame().get_column(dataset.record.id_column).cast(pl.String).fill_null("")
    second = pl.Series("second", [_unit(seed, text) < share for text in identity]).cast(pl.Int64)
    made = _made(dataset, pl.lit(second), _names(names, 2), {"kind": "random", "share": share, "seed": seed})
    _warn_of_shared_moments(made, dataset.record.time_column)
    return made


def _unit(seed: int, text: str) -> float:
    """Return a number in [0, 1) that depends on nothing but `seed` and `text`."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:7], "big") / 2**56


def _names(names: Sequence[str], count: int) -> list[str]:
    usual = ["train", "valid", "test", *(f"part{k}" for k in range(4, count + 1))]
    if names and len(set(names)) != count:
        raise BadInput(
            "names of the parts", ", ".join(names), f"are not {count} different ones", "give one name a part"
        )
    return list(names) or usual[:count]


def _made(dataset: Rows, place: pl.Expr, names: Sequence[str], recipe: dict[str, Any]) -> Split:
    import polars as pl

    rows = dataset.frame().with_columns(_part=place)
    parts = []
    for number, name in enumerate(names):
        chosen = rows.filter(pl.col("_part") == number).drop("_part")
        if not chosen.height:
            raise BadInput(f"part {name!r} of dataset {dataset.record.name!r}", "", "has no rows", "cut elsewhere")
        parts.append(Part(dataset.record, chosen, name, recipe))
    if dataset.record.label:
        _warn_of_labels(parts, dataset.record.label)
    return Split(tuple(parts), recipe)


def _warn_of_labels(parts: Sequence[Part], label: str) -> None:
    import polars as pl

    everywhere = pl.concat([part.frame().get_column(label).cast(pl.Float64) for part in parts]).drop_nulls()
    classes = everywhere.unique().sort()
    for part in parts:
        values = part.frame().get_column(label).cast(pl.Float64)
        known = values.drop_nulls()
        part.warnings += _missing(values, known)
        if not len(known):
            continue
        if len(classes) <= 20:
            part.warnings += _classes(known, everywhere, classes.to_list(), label)
        else:
            part.warnings += _shifted(known, everywhere, label)


def _missing(values: pl.Series, known: pl.Series) -> list[str]:
    if not len(known):
        return ["none of its rows has a label: they are sealed, or not known yet"]
    said = []
    if values.null_count() > MISSING * len(values):
        said.append(f"{values.null_count():,} of {len(values):,} rows have no label; X and y leave them out")
    if len(known) < SMALL:
        said.append(f"only {len(known)} labelled rows: metrics on it say little")
    return said


def _classes(known: pl.Series, everywhere: pl.Series, classes: list[float], label: str) -> list[str]:
    said = []
    for value in classes:
        count = int((known == value).sum())
        share = count / len(known)
        usual = int((everywhere == value).sum()) / len(everywhere)
        if count == 0:
            said.append(f"{label} is never {value:g} in it")
        elif count < RARE:
            said.append(f"{label} is {value:g} in only {count} rows")
        elif abs(share - usual) > max(UNEVEN * usual, 3 * (usual * (1 - usual) / len(known)) ** 0.5):
            said.append(f"{label} is {value:g} in {share:.1%} of its rows, in {usual:.1%} of all")
    return said[:5]


def _shifted(known: pl.Series, everywhere: pl.Series, label: str) -> list[str]:
    spread, mean, usual = (_number(value) for value in (everywhere.std(), known.mean(), everywhere.mean()))
    if spread and abs(mean - usual) > UNEVEN * spread:
        return [f"mean of {label} is {mean:.4g} in it, {usual:.4g} in all"]
    return []


def _number(value: object) -> float:
    """Return a statistic of a float series as a number; of no values it is 0."""
    return value if isinstance(value, float) else 0.0


def _warn_of_late_labels(part: Part, cut: datetime) -> None:
    """Labels that were known only after the cut: someone who trained at the cut would not have had them."""
    import polars as pl

    known = part.record.label_known
    if part.record.label and known:
        late = part.frame().filter(pl.col(part.record.label).is_not_null() & (pl.col(known) > cut)).height
        if late:
            part.warnings.append(f"{late:,} of its labels became known only after the cut at {cut:%Y-%m-%d %H:%M}Z")


def _warn_of_shared_moments(made: Split, time: str) -> None:
    first, second = made.parts
    moments = set(first.frame().get_column(time).to_list())
    shared = sum(at in moments for at in second.frame().get_column(time).to_list())
    if shared:
        text = f"{shared:,} of its rows have a moment in common with {first.name!r}: what happens to many at once is in both; a time split is honest"
        second.warnings.append(text)
