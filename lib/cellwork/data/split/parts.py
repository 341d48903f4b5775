"""Parts of a dataset: rows in the dataset's order, a name, the recipe, and what a careful colleague would say of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cellwork.data.dataset import Rows
from cellwork.data.split import leaks, shape
from cellwork.errors import BadInput, near_miss
from cellwork.wire.datasets import Dataset as Record

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

Recipe = dict[str, Any]


class Part(Rows):
    """One part of a split: rows in the dataset's order, its name, its recipe and its warnings."""

    def __init__(self, record: Record, rows: pl.DataFrame, name: str, recipe: Recipe, *, first: bool = False) -> None:
        super().__init__(record, rows)
        self.name, self.recipe, self.first = name, {**recipe, "part": name}, first
        self.warnings: list[str] = []

    def title(self) -> str:
        return f"{super().title()}, part {self.name!r}"

    def facts(self) -> list[tuple[str, str]]:
        shown = {key: value for key, value in self.recipe.items() if key != "places"}
        facts = [*super().facts(), ("part", ", ".join(f"{key} {value}" for key, value in shown.items()))]
        return [*facts, ("mean label", f"{self.y().mean():.4g}")] if self.labelled else facts

    def warnings_of(self) -> list[str]:
        return self.warnings

    def oversampled(self, ratio: float = 1.0, *, by: str = "", seed: int = 0) -> Part:
        """Return the part with rows of the rarer values drawn again until each has `ratio` of the most frequent one's rows.

        Parameters
        ----------
        by : a column; default: the label, which has to have few values.

        Raises
        ------
        BadInput
            It is not the part to train on, or `ratio` is not between 0 and 1.
        """
        return self._resampled("oversampled", ratio, by, seed)

    def undersampled(self, ratio: float = 1.0, *, by: str = "", seed: int = 0) -> Part:
        """Return the part with rows of the more frequent values left out until the rarest has `ratio` of each one's rows."""
        return self._resampled("undersampled", ratio, by, seed)

    def weights(self, *, by: str = "") -> np.ndarray[Any, Any]:
        """Return one weight a row of `X()`, mean 1, so that each value of `by` (default: the label) weighs the same in all."""
        from cellwork.data.split import resample

        self._refuse_unless_first("weights")
        rows = self._labelled() if self.record.label else self._rows
        return resample.weights(rows, by or self._label())

    def _resampled(self, how: Literal["oversampled", "undersampled"], ratio: float, by: str, seed: int) -> Part:
        from cellwork.data.split import resample

        self._refuse_unless_first(how)
        column = by or self._label()
        rows = resample.drawn(self._rows, column, how, ratio, seed)
        told: Recipe = {how: {"by": column, "ratio": ratio, "seed": seed}}
        made = Part(self.record, rows, self.name, {**self.recipe, **told}, first=True)
        made.warnings = [
            *self.warnings,
            f"{how} from {len(self):,} to {rows.height:,} rows: its rates are not the world's",
        ]
        return made

    def _label(self) -> str:
        if not self.record.label:
            raise BadInput(f"part {self.name!r}", "", "has no label to balance", "name a column: by=…")
        return self.record.label

    def _refuse_unless_first(self, what: str) -> None:
        if not self.first:
            verdict = f"is not what the model is trained on, so {what} of it would flatter the model"
            raise BadInput("part", self.name, verdict, "do it to the first part only")


@dataclass(frozen=True)
class Split:
    """Parts in order; unpack it: ``train, valid = split.by_time(dataset, "2013-09-01")``."""

    parts: tuple[Part, ...]
    recipe: Recipe
    left_out: int = 0
    """Rows in no part: those in the gap before a cut, and those a strategy did not choose."""

    @property
    def warnings(self) -> list[str]:
        return [f"{part.name}: {text}" for part in self.parts for text in part.warnings]

    @property
    def digest(self) -> str:
        """SHA-256 over which rows are in which part, in hex: two splits of one dataset are equal if and only if these are."""
        total = hashlib.sha256()
        for part in self.parts:
            ids = part.frame().get_column(part.record.id_column).cast(str).to_list()
            total.update(json.dumps([part.name, ids]).encode())
        return total.hexdigest()

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts)

    def __getitem__(self, name: str) -> Part:
        parts = {part.name: part for part in self.parts}
        if name not in parts:
            raise BadInput("part", name, "is not in the split", near_miss(name, parts))
        return parts[name]

    def __repr__(self) -> str:
        return "\n".join(repr(part) for part in self.parts)

    def _repr_html_(self) -> str:
        return "".join(part._repr_html_() for part in self.parts)


USUAL = ("train", "valid", "test")


def names_of(names: Sequence[str], count: int) -> list[str]:
    """Return `names` if they are `count` different ones, or the usual ones for none."""
    usual = [*USUAL, *(f"part{k}" for k in range(4, count + 1))]
    if names and len(set(names)) != count:
        raise BadInput(
            "names of the parts", ", ".join(names), f"are not {count} different ones", "give one name a part"
        )
    return list(names) or usual[:count]


def made(
    dataset: Rows, places: np.ndarray[Any, Any], names: Sequence[str], recipe: Mapping[str, Any], *, group: str = ""
) -> Split:
    """Return the split in which row k is in part ``places[k]``, or in none if that is negative, with its warnings.

    Parameters
    ----------
    group : a column whose values should not be in two parts; looked at, not enforced.

    Raises
    ------
    BadInput
        A part has no rows.
    """
    parts = []
    for number, name in enumerate(names):
        chosen = dataset.frame().filter(places == number)
        if not chosen.height:
            raise BadInput(f"part {name!r} of dataset {dataset.record.name!r}", "", "has no rows", "cut elsewhere")
        parts.append(Part(dataset.record, chosen, name, dict(recipe), first=number == 0))
    frames = [part.frame() for part in parts]
    for part, said in zip(parts, shape.said_of(dataset.record, frames), strict=True):
        part.warnings += said
    for part, said in zip(parts, leaks.said_of(dataset.record, frames, list(names), recipe, group), strict=True):
        part.warnings += said
    return Split(tuple(parts), dict(recipe), int((places < 0).sum()))
