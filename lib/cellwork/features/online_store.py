"""What every kind of online store does alike: of each entity and view it keeps the newest value.

The platform service writes; other processes read. A value is replaced only by one that is later in the order (event,
created, value hash), and the check is part of the write, so that it holds between processes and in whatever order values
arrive. Values are kept by the revision of their view; readers see the revision that is active, so that a changed view is
filled beside the one that serves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from cellwork import clock
from cellwork.errors import BadInput, near_miss
from cellwork.features import packed
from cellwork.features.row import BATCH, CREATED, EVENT
from cellwork.wire.features import OnlineValue

if TYPE_CHECKING:
    import polars as pl

AT_ONCE = 400
"""Entities in one statement; SQLite takes at least 999 parameters."""
Vector = tuple[Any, ...]


class OnlineStore(ABC):
    """One project's values. Threads may share it."""

    def __init__(self) -> None:
        self._fields: dict[int, list[str]] = {}

    def write(self, view: str, revision: int, keys: Sequence[str], rows: pl.DataFrame) -> int:
        """Take feature rows of a view; returns how many values are new or newer than what was there.

        Parameters
        ----------
        keys : join keys of the view.
        rows : feature rows; several of one entity are fine, in any order.
        """
        newest = newest_rows(rows, keys)
        fields = [name for name in rows.columns if name not in (*keys, EVENT, CREATED, BATCH)]
        self.keep_fields(fields)
        return self.put(view, revision, packed.records(fields, sorted(keys), newest))

    def read(self, view: str, entities: Mapping[str, Sequence[Any]]) -> list[OnlineValue]:
        """Return the newest value of `view` for each entity row, in the order asked; empty where there is none.

        Parameters
        ----------
        entities : join key -> one value an entity row.

        Raises
        ------
        BadInput
            The keys have values of different lengths.
        Unavailable
            The store does not answer.
        """
        return [value or OnlineValue(values={}) for value in self.values(view, entity_keys(entities))]

    def values(self, view: str, entities: Sequence[bytes]) -> list[OnlineValue | None]:
        """Return the newest value of each entity, given by `packed.entity_key`; None where there is none."""
        found = self.packed(view, entities)
        told = iter(packed.unpack([record for record in found if record is not None]))
        return [None if record is None else self._value(record, next(told)) for record in found]

    def vectors(self, view: str, fields: Sequence[str], entities: Mapping[str, Sequence[Any]]) -> list[Vector | None]:
        """Return the values of `fields` of each entity row, in their order, and nothing else: the quickest way to read."""
        found = self.packed(view, entity_keys(entities))
        told = packed.unpack([record for record in found if record is not None])
        numbers = {record[0] for record in told}
        places = {number: self._places(view, number, fields) for number in numbers}
        if len(numbers) == 1:
            (order,) = places.values()
            start, stop = order[0], order[-1] + 1
            if order == list(range(start, stop)):
                vectors = iter([record[start:stop] for record in told])
            else:
                vectors = iter([[record[at] for at in order] for record in told])
        else:
            vectors = iter([[record[at] for at in places[record[0]]] for record in told])
        return [None if record is None else next(vectors) for record in found]  # type: ignore[misc]

    def _places(self, view: str, number: int, fields: Sequence[str]) -> list[int]:
        known = self.fields(number)
        for field in fields:
            if field not in known:
                raise BadInput(f"feature of view {view!r}", field, "is not online", near_miss(field, known))
        return [known.index(field) + 2 for field in fields]

    def _value(self, record: bytes, told: list[Any]) -> OnlineValue:
        event, created = packed.times(record)
        values = dict(zip(self.fields(told[0]), told[2:], strict=True))
        return OnlineValue(values=values, event=clock.moment(event), created=clock.moment(created), batch=told[1])

    def fields(self, number: int) -> list[str]:
        """Return the feature names that `number` stands for."""
        if number not in self._fields:
            self._fields[number] = self.load_fields(number)
        return self._fields[number]

    def keep_fields(self, fields: list[str]) -> None:
        number = packed.fields_number(fields)
        if number not in self._fields:
            self.save_fields(number, fields)
            self._fields[number] = fields

    # What a kind of store does

    @abstractmethod
    def put(self, view: str, revision: int, records: Iterable[tuple[bytes, bytes]]) -> int:
        """Keep each packed value that is later in the order than what is there; returns how many were."""

    @abstractmethod
    def packed(self, view: str, entities: Sequence[bytes]) -> list[bytes | None]:
        """Return the packed value of each entity under the active revision of `view`."""

    @abstractmethod
    def count(self, view: str) -> int:
        """Return how many entities of `view` have a value under its active revision."""

    @abstractmethod
    def forget(self, view: str, entities: Sequence[bytes]) -> None:
        """Drop the values of `entities` under every revision of `view`."""

    @abstractmethod
    def activate(self, view: str, revision: int | None) -> None:
        """Let readers see `revision` of `view` (None: nothing of it), and drop the others' values."""

    @abstractmethod
    def active(self, view: str) -> int | None:
        """Return the revision of `view` that readers see."""

    @abstractmethod
    def load_fields(self, number: int) -> list[str]: ...

    @abstractmethod
    def save_fields(self, number: int, fields: list[str]) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Let go of this thread's connection."""


def newest_rows(rows: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Return of each entity the rows of its newest event and arrival (several only where the value hash decides)."""
    import polars as pl

    over = list(keys)
    newest = rows.filter(pl.col(EVENT) == pl.col(EVENT).max().over(over))
    return newest.filter(pl.col(CREATED) == pl.col(CREATED).max().over(over))


def entity_keys(entities: Mapping[str, Sequence[Any]]) -> list[bytes]:
    """Return the key of each entity row. Raises BadInput for columns of different lengths."""
    columns = [entities[key] for key in sorted(entities)]
    if len({len(column) for column in columns}) != 1:
        lengths = dict(zip(sorted(entities), map(len, columns), strict=True))
        raise BadInput("entities", lengths, "differ in length", "give each key a value per row")
    return packed.entity_keys(columns)


def parts(records: Iterable[tuple[bytes, bytes]], size: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """Yield `records` in lists of at most `size`."""
    each = iter(records)
    while part := list(islice(each, size)):
        yield part
