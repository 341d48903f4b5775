"""Folds: several splits of one dataset into train and valid, and a splitter that scikit-learn's searches and ours take.

Each row is in the valid part of one fold at most; with time, a fold trains on what is earlier than what it validates on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from cellwork.data.dataset import Rows
from cellwork.data.split import ways
from cellwork.data.split.packed import from_splitter, name_of, pack
from cellwork.data.split.parts import Split, made
from cellwork.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

How = Literal["random", "shuffled", "group", "stratified", "time"]
HOWS: tuple[How, ...] = ("random", "shuffled", "group", "stratified", "time")


class Folds:
    """Splits in order; ``folds[0]`` has the parts train and valid. A splitter for `cellwork.training.search` as it is."""

    def __init__(
        self, dataset: Rows, places: Sequence[np.ndarray[Any, Any]], recipe: dict[str, Any], group: str
    ) -> None:
        self.dataset, self.recipe, self._places, self._group = dataset, recipe, list(places), group
        self._made: dict[int, Split] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> Split:
        if not 0 <= number < len(self):
            raise IndexError(f"fold {number} of {len(self)}")
        if number not in self._made:
            recipe = {**self.recipe, "fold": number}
            self._made[number] = made(self.dataset, self._places[number], ("train", "valid"), recipe, group=self._group)
        return self._made[number]

    def __iter__(self) -> Iterator[Split]:
        return (self[number] for number in range(len(self)))

    @property
    def warnings(self) -> list[str]:
        return [f"fold {number}, {text}" for number, fold in enumerate(self) for text in fold.warnings]

    @property
    def digest(self) -> str:
        """SHA-256 over which rows are in which part of which fold, in hex."""
        return hashlib.sha256("".join(fold.digest for fold in self).encode()).hexdigest()

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        return len(self)

    def split(self, X: Any = None, y: Any = None, groups: Any = None) -> Iterator[tuple[Any, Any]]:
        """Yield the positions of training and validation rows in ``dataset.X()``, as scikit-learn's splitters do."""
        import numpy as np

        label = self.dataset.record.label
        frame = self.dataset.frame()
        known = frame.get_column(label).is_not_null().to_numpy() if label else np.ones(frame.height, dtype=bool)
        if X is not None and len(X) != known.sum():
            verdict = f"are not the {known.sum():,} rows of X() that the folds were made of"
            raise BadInput("rows to split", f"{len(X):,}", verdict, "give dataset.X() and dataset.y()")
        for places in self._places:
            yield np.flatnonzero(places[known] == 0), np.flatnonzero(places[known] == 1)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{(p == 0).sum():,} + {(p == 1).sum():,}" for p in self._places)
        head = f"{len(self)} folds ({self.recipe['how']}) of {self.dataset.title()}; rows of train + valid: {sizes}"
        return "\n".join([head, *(f"  ! {text}" for text in self.warnings)])


def folds(
    dataset: Rows, k: int | Any = 5, how: How = "random", *, by: str = "", gap: ways.Gap = "", seed: int = 0
) -> Folds:
    """Return `k` folds, or those of a splitter of scikit-learn.

    Parameters
    ----------
    k : how many, at least 2; or a splitter: its choice is kept in the recipe, row by row.
    how : by a hash of the id (``random``), exactly equal (``shuffled``), with whole groups of `by`, with equal shares of `by`
        (default: the label), or ``time``: fold i trains on the first i + 1 of k + 1 stretches of time and validates on the next.
    gap : with ``time``, how long before a validation stretch rows are left out.

    Raises
    ------
    BadInput
        `k` is larger than the number of rows, groups or moments; or `how` is not known.
    """
    if hasattr(k, "split"):
        return _injected(dataset, k, by)
    if how not in HOWS:
        raise BadInput("way to make folds", how, "is not known", f"use one of {', '.join(HOWS)}")
    if k < 2:
        raise BadInput("folds", k, "are too few", "take at least 2; for one split there is split.random")
    recipe = {"kind": "folds", "how": how, "k": k, "seed": seed, "by": by, "gap": _seconds(gap)}
    if how == "time":
        places = _stretches(dataset, k, gap)
    else:
        number = _numbers(dataset, k, how, by, seed)
        places = [(number == fold).astype(int) for fold in range(k)]
    return Folds(
        dataset, places, {key: value for key, value in recipe.items() if value != ""}, by if how == "group" else ""
    )


def _seconds(gap: ways.Gap) -> str:
    span = ways.duration(gap)
    return f"{round(span.total_seconds())}s" if span else ""


def _injected(dataset: Rows, splitter: Any, by: str) -> Folds:
    places = from_splitter(dataset, splitter, by)
    recipe: dict[str, Any] = {"kind": "folds", "how": "using", "strategy": name_of(splitter), "k": len(places)}
    if by:
        recipe["by"] = by
    return Folds(dataset, places, {**recipe, "places": [pack(each) for each in places]}, by)


def _stretches(dataset: Rows, k: int, gap: ways.Gap) -> list[np.ndarray[Any, Any]]:
    import numpy as np

    times = ways.times_of(dataset)
    cuts = ways.quantile_cuts(times, [1 / (k + 1)] * (k + 1))
    places = []
    for fold in range(k):
        here = ways.timed(times, cuts[: fold + 2], ways.duration(""))
        early = ways.timed(times, [cuts[fold]], ways.duration(gap))
        places.append(np.where(here == fold + 1, 1, np.where(early == 0, 0, -1)))
    return places


def _numbers(dataset: Rows, k: int, how: How, by: str, seed: int) -> np.ndarray[Any, Any]:
    """Return the fold in which each row is validated."""
    import numpy as np

    rows = dataset.frame().height
    if how == "group":
        return _groups(dataset, k, by, seed)
    if k > rows:
        raise BadInput("folds", k, f"are more than the {rows} rows", "take fewer")
    if how == "random":
        return ways.hashed(ways.column_of(dataset, dataset.record.id_column), [1 / k] * k, seed)
    if how == "shuffled":
        return np.random.default_rng(seed).permutation(rows) % k
    column = ways.stratum_of(dataset, by)
    return ways.in_strata(ways.column_of(dataset, column), seed, lambda order: order % k)


def _groups(dataset: Rows, k: int, by: str, seed: int) -> np.ndarray[Any, Any]:
    """Whole groups, the largest first, each to the fold with the fewest rows so far; a hash of the seed decides between equals."""
    import polars as pl

    if not by:
        raise BadInput("folds of groups", "", "have no column", "name it: by=…")
    texts = ways.column_of(dataset, by).cast(pl.String).fill_null("missing").alias("group")
    counts = sorted(texts.value_counts().iter_rows(), key=lambda pair: (-pair[1], ways.unit(seed, pair[0])))
    if k > len(counts):
        raise BadInput("folds", k, f"are more than the {len(counts)} values of {by}", "take fewer")
    sizes, place = [0] * k, {}
    for group, rows in counts:
        place[group] = sizes.index(min(sizes))
        sizes[place[group]] += rows
    return texts.replace_strict(place, return_dtype=pl.Int64).to_numpy().copy()
