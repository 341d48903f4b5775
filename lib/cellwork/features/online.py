"""The online store on SQLite: of each entity and view the newest value, packed in one record.

The platform service writes; other processes open it read-only. A record is replaced only by one that is later in the order
(event, created, value hash), and the check is part of the statement, so that it holds between processes and in whatever
order values arrive. Values are kept by the revision of their view; readers see the revision that is active, so that a
changed view is filled beside the one that serves.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cellwork.errors import BadInput, Unavailable
from cellwork.features.row import BATCH, CREATED, EVENT, value_hash
from cellwork.wire.features import OnlineValue

if TYPE_CHECKING:
    import polars as pl

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICRO = timedelta(microseconds=1)
AT_ONCE = 400
"""Entities in one statement; SQLite takes at least 999 parameters."""
TABLES = (
    "CREATE TABLE IF NOT EXISTS active (view TEXT PRIMARY KEY, revision INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS online (view TEXT, revision INTEGER, entity BLOB, event INTEGER NOT NULL, created INTEGER NOT NULL, "
    "hash INTEGER NOT NULL, packed BLOB NOT NULL, PRIMARY KEY (view, revision, entity)) WITHOUT ROWID",
)
UPSERT = (
    "INSERT INTO online VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (view, revision, entity) DO UPDATE SET "
    "event = excluded.event, created = excluded.created, hash = excluded.hash, packed = excluded.packed "
    "WHERE (excluded.event, excluded.created, excluded.hash) > (event, created, hash)"
)


class _Packed(msgspec.Struct, array_like=True):
    values: dict[str, Any]
    event: int
    created: int
    batch: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Packed).decode


def entity_key(values: Sequence[Any]) -> bytes:
    """Return the key of the entity whose join keys, in order of their names, have `values`."""
    return _encode(list(values))


class OnlineStore:
    """One project's values. Threads may share it."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path, self.read_only = path, read_only
        self._local = threading.local()
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as connection:
                for statement in TABLES:
                    connection.execute(statement)

    def write(self, view: str, revision: int, keys: Sequence[str], rows: pl.DataFrame) -> int:
        """Take feature rows of a view; returns how many records are new or newer than what was there.

        Parameters
        ----------
        keys : join keys of the view.
        rows : feature rows; several of one entity are fine, in any order.
        """
        import polars as pl

        newest = rows.filter(pl.col(EVENT) == pl.col(EVENT).max().over(list(keys)))
        newest = newest.filter(pl.col(CREATED) == pl.col(CREATED).max().over(list(keys)))
        records = _records(view, revision, sorted(keys), newest)
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            before = connection.total_changes
            connection.executemany(UPSERT, records)
            return connection.total_changes - before

    def activate(self, view: str, revision: int | None) -> None:
        """Let readers see `revision` of `view` (None: nothing of it), and drop the others' values."""
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            if revision is None:
                connection.execute("DELETE FROM active WHERE view = ?", (view,))
                connection.execute("DELETE FROM online WHERE view = ?", (view,))
            else:
                connection.execute("INSERT OR REPLACE INTO active VALUES (?, ?)", (view, revision))
                connection.execute("DELETE FROM online WHERE view = ? AND revision < ?", (view, revision))

    def active(self, view: str) -> int | None:
        """Return the revision of `view` that readers see."""
        row = self._open().execute("SELECT revision FROM active WHERE view = ?", (view,)).fetchone()
        return row[0] if row else None

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
            The store is not there (yet).
        """
        packed = self.packed(view, _entities(entities))
        return [value(record) if record else OnlineValue(values={}) for record in packed]

    def packed(self, view: str, entities: Sequence[bytes]) -> list[bytes | None]:
        """Return the packed records of `entities`; the hot path of serving, which decodes only what it needs."""
        found: dict[bytes, bytes] = {}
        connection = self._open()
        for start in range(0, len(entities), AT_ONCE):
            part = entities[start : start + AT_ONCE]
            marks = ",".join("?" * len(part))
            statement = (
                "SELECT entity, packed FROM online WHERE view = ? AND revision = "
                f"(SELECT revision FROM active WHERE view = ?) AND entity IN ({marks})"
            )
            try:
                found.update(connection.execute(statement, (view, view, *part)))
            except sqlite3.OperationalError as error:
                raise self._unavailable(error) from None
        return [found.get(entity) for entity in entities]

    def close(self) -> None:
        """Close this thread's connection."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            del self._local.connection

    def _open(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            mode = "ro" if self.read_only else "rwc"
            try:
                connection = sqlite3.connect(
                    f"{self.path.absolute().as_uri()}?mode={mode}", uri=True, timeout=10, isolation_level=None
                )
                if not self.read_only:
                    connection.execute("PRAGMA journal_mode = WAL")
                    connection.execute("PRAGMA synchronous = NORMAL")
            except sqlite3.OperationalError as error:
                raise self._unavailable(error) from None
            self._local.connection = connection
        return connection

    def _unavailable(self, error: sqlite3.Error) -> Unavailable:
        return Unavailable(
            "online store", self.path.name, f"can't be read ({error})", "apply features, or look at: cellwork status"
        )


def value(packed: bytes) -> OnlineValue:
    """Return what a packed record says."""
    record = _decode(packed)
    return OnlineValue(
        values=record.values,
        event=EPOCH + record.event * MICRO,
        created=EPOCH + record.created * MICRO,
        batch=record.batch,
    )


def _entities(entities: Mapping[str, Sequence[Any]]) -> list[bytes]:
    columns = [entities[key] for key in sorted(entities)]
    lengths = {len(column) for column in columns}
    if len(lengths) != 1:
        raise BadInput(
            "entities",
            dict(zip(sorted(entities), map(len, columns), strict=True)),
            "differ in length",
            "give each key a value per row",
        )
    return [entity_key(row) for row in zip(*columns, strict=True)]


def _records(view: str, revision: int, keys: Sequence[str], rows: pl.DataFrame) -> Iterable[tuple[Any, ...]]:
    features = [name for name in rows.columns if name not in (*keys, EVENT, CREATED, BATCH)]
    for row in rows.iter_rows(named=True):
        values = {name: row[name] for name in features}
        event, created = (row[EVENT] - EPOCH) // MICRO, (row[CREATED] - EPOCH) // MICRO
        packed = _encode(_Packed(values, event, created, row[BATCH]))
        yield view, revision, entity_key([row[key] for key in keys]), event, created, value_hash(values), packed
