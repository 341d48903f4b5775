"""The real-time twin of a rolling pipeline: the same values, from rows as they come, without a table.

`advance` moves its clock to a grid time, and closes it: a row that comes afterwards enters at the next one, as a row of a later
batch does in `pipeline`. So a twin that is advanced to the ends of the steps gives, at each, exactly what the batch pipeline
writes, and `advance` says at which grid time the newest row of a key stands: both add whole numbers (of 2**-40 for floats), and
neither depends on the order of the rows. It keeps a row only until it has left the window, and knows keys by their values in
the order of the view's join keys.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from cellwork import clock
from cellwork.errors import BadInput
from cellwork.features.pipeline import LARGEST, NEVER, SCALE
from cellwork.wire.features import Rolling, View

Key = tuple[Any, ...]


class Twin:
    """What counts now for each key of a rolling `view`.

    Parameters
    ----------
    keys : join keys of the view, columns of the rows.
    """

    def __init__(self, view: View, keys: Sequence[str]) -> None:
        if not isinstance(view.pipeline, Rolling):
            raise BadInput("view", view.name, "has no rolling pipeline", "push its rows: they are its values")
        self.view, self.pipeline, self.keys = view, view.pipeline, list(keys)
        self._every = _micros(clock.duration(view.pipeline.every).total_seconds())
        self._window = _micros(clock.duration(view.pipeline.window).total_seconds())
        self._columns = sorted({a.column for a in view.pipeline.aggregates.values() if a.column})
        self._now, self._number = -NEVER, 0
        self._coming: list[tuple[int, int, int, Key, list[int]]] = []
        self._totals: dict[Key, list[int]] = {}

    def add(self, rows: Iterable[Mapping[str, Any]], *, after: datetime | None = None) -> int:
        """Take prepared rows, in any order; returns how many will ever count. One without a key or a time does not.

        Parameters
        ----------
        after : what was closed when they came, for rows of the past; default the time the clock stands at.

        Raises
        ------
        BadInput
            A value has no sum, or is beyond what sums are exact for.
        """
        closed = self._now if after is None else clock.micros(after) // self._every * self._every
        earliest = -NEVER if closed == -NEVER else closed + self._every
        counted = 0
        for row in rows:
            key = tuple(row[name] for name in self.keys)
            event, known = row[self.pipeline.event], row[self.pipeline.known]
            if event is None or known is None or None in key:
                continue
            at = clock.micros(event)
            enter = max(_up(max(at, clock.micros(known)), self._every), earliest)
            leave = _up(at + self._window, self._every)
            if enter < leave:
                added = self._added(row)
                for time, sign in ((enter, 1), (leave, -1)):
                    self._number += 1
                    heapq.heappush(self._coming, (time, self._number, sign, key, added))
                counted += 1
        return counted

    def advance(self, at: datetime) -> dict[Key, datetime]:
        """Move the clock to the last grid time at or before `at`; returns the keys that have a new row, and where it stands.

        A row stands at each grid time at which a value of its key changes, and at the first one of a step if the key has rows
        in the window then.

        Raises
        ------
        BadInput
            That is before the time it stands at.
        """
        to = clock.micros(at) // self._every * self._every
        if to < self._now:
            raise BadInput("time", at.isoformat(), "lies before the time that was closed", "advance only forward")
        found: dict[Key, int] = {}
        if self._now > -NEVER and to > self._now:
            first = self._now + self._every
            self._count(first, found)
            found.update((key, first) for key, totals in self._totals.items() if totals[0])
        self._count(to, found)
        self._now = to
        return {key: clock.moment(time) for key, time in found.items()}

    def _count(self, to: int, found: dict[Key, int]) -> None:
        """Let rows enter and leave until `to`; puts into `found` where the values of a key changed last."""
        while self._coming and self._coming[0][0] <= to:
            time = self._coming[0][0]
            moved: dict[Key, list[int]] = {}
            while self._coming and self._coming[0][0] == time:
                _, _, sign, key, added = heapq.heappop(self._coming)
                change = moved.setdefault(key, [0] * len(added))
                for place, value in enumerate(added):
                    change[place] += sign * value
            for key, change in moved.items():
                if any(change):
                    found[key] = time
                    self._move(key, change)

    def _move(self, key: Key, change: list[int]) -> None:
        totals = self._totals.setdefault(key, [0] * len(change))
        for place, value in enumerate(change):
            totals[place] += value
        if not any(totals):
            del self._totals[key]

    def values(self, key: Key) -> dict[str, Any]:
        """Return the features of `key` at the time the clock stands at: of no rows counts and sums are 0, means None."""
        totals = self._totals.get(key, [0] * (1 + 2 * len(self._columns)))
        types = {field.name: field.type for field in self.view.fields}
        found: dict[str, Any] = {}
        for name, aggregate in self.pipeline.aggregates.items():
            if name in types:
                total, counted = totals[0], totals[0]
                if aggregate.column:
                    place = 1 + 2 * self._columns.index(aggregate.column)
                    total, counted = totals[place], totals[place + 1]
                found[name] = _typed(types[name], _value(aggregate.function, total, counted, types[name]))
        return found

    def _added(self, row: Mapping[str, Any]) -> list[int]:
        added = [1]
        for column in self._columns:
            value = row[column]
            if isinstance(value, float) and not math.isfinite(value):
                value = None
            if value is not None and not isinstance(value, int | float):
                raise BadInput(f"column {column!r}", value, "has no sum", "use count, or a numeric column")
            if isinstance(value, float) and abs(value) > LARGEST:
                raise BadInput(f"column {column!r}", value, f"is beyond {LARGEST:.0e}", "scale the column")
            whole = 0 if value is None else round(value * SCALE) if isinstance(value, float) else int(value) * SCALE
            added += [whole, int(value is not None)]
        return added


def _value(function: str, total: int, counted: int, kind: str) -> Any:
    if function == "count":
        return counted
    if function == "sum":
        return total // SCALE if kind.startswith("Int") else float(total) / float(SCALE)
    return float(total) / float(counted) / float(SCALE) if counted else None


def _typed(kind: str, value: Any) -> Any:
    if kind != "Float32" or value is None:
        return float(value) if kind == "Float64" and value is not None else value
    import numpy as np

    return float(np.float32(value))


def _micros(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _up(time: int, every: int) -> int:
    return -(-time // every) * every
