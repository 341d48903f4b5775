"""How often the texts of a column occur: all of them exactly where they are few, else the most frequent ones and the rest.

Merging adds counts. A text that a part did not list occurred there at most as often as the rarest that it listed, so
each summary knows how many occurrences it may have missed of any text: its `doubt` (Misra and Gries 1982).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cellwork.content import Hashes, hash_texts

if TYPE_CHECKING:
    import polars as pl

LISTED = 256
"""Texts that are listed with their counts."""
CHARACTERS = 200
"""Characters kept of a text."""
SAMPLE = 32_768
"""Rows that tell whether a column says the same few texts again and again, and that are hashed at once."""


@dataclass(frozen=True)
class Counts:
    """Texts by falling count, those of one count by alphabet."""

    texts: tuple[str, ...]
    counts: tuple[int, ...]
    rest: int = 0
    """Rows with a text that is not listed."""
    doubt: int = 0
    """At most so many occurrences of any one text are not in its count."""

    @property
    def exact(self) -> bool:
        """Whether every text is listed with its true count."""
        return self.rest == 0 and self.doubt == 0

    def items(self) -> dict[str, int]:
        return dict(zip(self.texts, self.counts, strict=True))


def recurring(texts: pl.Series) -> tuple[pl.Series, NDArray[np.int64] | None]:
    """Return the distinct ones of `texts` (no nulls) and how often each occurs; of a column that hardly repeats itself, itself and None."""
    if texts.head(SAMPLE).n_unique() > SAMPLE // 8:
        return texts, None
    each = texts.value_counts()
    return each.to_series(0), each.to_series(1).to_numpy().astype(np.int64)


def of(texts: pl.Series, times: NDArray[np.int64] | None) -> tuple[Counts, Hashes]:
    """Return the counts of `texts` that occur so many `times` (None: each row once), and the distinct hashes."""
    hashes = np.concatenate([hash_texts(texts.slice(start, SAMPLE)) for start in range(0, len(texts), SAMPLE)])
    ordered = np.sort(hashes)
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    distinct, counts = ordered[first], np.diff(np.append(first, len(ordered)))
    if times is not None:
        counts = np.add.reduceat(times[np.argsort(hashes)], first)
    frequent = np.sort(np.lexsort((distinct, -counts))[:LISTED]) if len(counts) > LISTED else np.arange(len(counts))
    chosen = distinct[frequent]
    place = np.searchsorted(chosen, hashes).clip(max=len(chosen) - 1)
    matching = chosen[place] == hashes
    rows = np.empty(len(chosen), np.int64)
    rows[place[matching]] = np.flatnonzero(matching)
    names = texts.gather(rows).str.slice(0, CHARACTERS).to_list()
    found: Counter[str] = Counter()
    for name, count in zip(names, counts[frequent].tolist(), strict=True):
        found[name] += count
    missed = int(counts[frequent].min()) if len(counts) > LISTED else 0
    return _listed(found, int(counts.sum()), missed), distinct


def merge(parts: Sequence[Counts]) -> Counts:
    found: Counter[str] = Counter()
    for part in parts:
        found.update(part.items())
    rows = sum(sum(part.counts) + part.rest for part in parts)
    return _listed(found, rows, sum(part.doubt for part in parts))


def _listed(found: Counter[str], rows: int, doubt: int) -> Counts:
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    listed, left = ranked[:LISTED], ranked[LISTED:]
    texts, counts = tuple(text for text, _ in listed), tuple(count for _, count in listed)
    return Counts(texts, counts, rows - sum(counts), doubt + (left[0][1] if left else 0))
