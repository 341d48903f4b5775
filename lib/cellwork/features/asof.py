"""The as-of search on plain numbers: which row of a group was the newest one known at a time. Knows no frames.

Rows are put in the order of their group and of (event, created, rank). In that order a row is ever the newest only if every
row behind it in its group became known later than it did; the rows that remain have increasing times, so one binary search
answers each question. Group and time are packed into one 64-bit number (time counted in the coarsest unit that loses nothing, or by
its rank), which makes it a sort and a search of plain integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]

BITS = 63
UNITS = (1_000_000_000, 1_000_000, 1_000)


@dataclass(frozen=True)
class Scale:
    """Times as small numbers of `bits` bits, in their order: counted in `unit`s from `start`, or their place in `levels`."""

    bits: int
    start: int = 0
    unit: int = 1
    levels: Numbers | None = None

    def numbers(self, times: Numbers) -> Numbers:
        """Return the number of the last time on the scale that is not after each of `times`; -1 or less if there is none."""
        import numpy as np

        if self.levels is None:
            return (times - self.start) // self.unit
        return np.searchsorted(self.levels, times, side="right") - 1


def scale_of(groups: int, *times: Numbers) -> Scale:
    """Return a scale for all `times` (each array has at least one) that leaves room for the numbers of `groups` groups."""
    import numpy as np

    start = min(int(each.min()) for each in times)
    width = max(int(each.max()) for each in times) - start
    fits = (unit for unit in UNITS if all(not ((each - start) % unit).any() for each in times))
    unit = next(fits, 1)
    bits = (width // unit).bit_length()
    if bits + groups.bit_length() <= BITS:
        return Scale(bits, start, unit)
    levels = np.unique(np.concatenate(times))
    return Scale(len(levels).bit_length(), levels=levels)


@dataclass(frozen=True)
class Track:
    """The rows that were ever the newest of their group: packed group and time of becoming known, ascending, and row."""

    scale: Scale
    packed: Numbers
    rows: Numbers


def track(
    group: Numbers,
    event: Numbers,
    created: Numbers,
    known: Numbers,
    scale: Scale,
    rank: Callable[[Numbers], Numbers],
) -> Track:
    """Return the track of rows given by their parallel arrays, shape (n,), n >= 1.

    Parameters
    ----------
    group : from 0, less than the `groups` of `scale_of`.
    event, created, known : times; a row is seen from `known` on. All events and known times are on `scale`.
    rank : returns for some rows, given by number, what puts those of one group, event and creation in order.
    """
    import numpy as np

    packed, order = _sorted(_pack(group, event, scale), scale.bits + int(group.max()).bit_length())
    tied = packed[1:] == packed[:-1]
    if tied.any():
        order = _settle(order, packed, tied, created, rank)
    seen = packed if known is event else _pack(group, known, scale)[order]
    later = np.minimum.accumulate(seen[::-1])[::-1]
    kept = np.append(seen[:-1] < later[1:], True)
    return Track(scale, seen[kept], order[kept])


def search(found: Track, group: Numbers, at: Numbers) -> Numbers:
    """Return for each question the row that was the newest of `group` at `at`; -1 where none was known.

    It is quickest where the questions come in the order of group and time.
    """
    import numpy as np

    scale = found.scale
    wanted = np.clip(scale.numbers(at), -1, (1 << scale.bits) - 1)
    packed = (group << scale.bits) | np.maximum(wanted, 0)
    place = np.searchsorted(found.packed, packed, side="right") - 1
    there = np.maximum(place, 0)
    hit = (place >= 0) & (wanted >= 0) & (found.packed[there] >> scale.bits == group)
    return np.where(hit, found.rows[there], -1)


def _pack(group: Numbers, time: Numbers, scale: Scale) -> Numbers:
    return (group << scale.bits) | scale.numbers(time)


def _sorted(packed: Numbers, bits: int) -> tuple[Numbers, Numbers]:
    """Return the numbers of `bits` bits in ascending order, and their places; rows in the low bits make it a sort without places."""
    import numpy as np

    place = len(packed).bit_length()
    if bits + place > BITS:
        order = np.argsort(packed)
        return packed[order], order
    both = packed << place
    both |= np.arange(len(packed))
    both.sort()
    return both >> place, both & ((1 << place) - 1)


def _settle(
    order: Numbers, packed: Numbers, tied: Any, created: Numbers, rank: Callable[[Numbers], Numbers]
) -> Numbers:
    """Return `order` with the rows of one group and event in the order of their creation, then of `rank`."""
    import numpy as np

    within = np.zeros(len(order), dtype=bool)
    within[1:] |= tied
    within[:-1] |= tied
    rows, event = order[within], packed[within]
    by_creation = np.lexsort((created[rows], event))
    rows, event = rows[by_creation], event[by_creation]
    same = (event[1:] == event[:-1]) & (created[rows][1:] == created[rows][:-1])
    if same.any():
        equal = np.zeros(len(rows), dtype=bool)
        equal[1:] |= same
        equal[:-1] |= same
        few = rows[equal]
        rows[equal] = few[np.lexsort((rank(few), created[few], event[equal]))]
    settled = order.copy()
    settled[within] = rows
    return settled
