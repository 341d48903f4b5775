"""The online store in one SQLite file: WAL, so that readers never wait; one transaction a write, so that a killed one leaves nothing.

A file of an older layout is emptied when it is opened for writing; the platform fills it again from the feature tables.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from cellwork.errors import Unavailable
from cellwork.features.online_store import AT_ONCE, OnlineStore

LAYOUT = 2
TABLES = (
    "DROP TABLE IF EXISTS online",
    "DROP TABLE IF EXISTS active",
    "CREATE TABLE active (view TEXT PRIMARY KEY, revision INTEGER NOT NULL)",
    "CREATE TABLE online (view TEXT, revision INTEGER, entity BLOB, packed BLOB NOT NULL, PRIMARY KEY (view, revision, entity)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS fields (number INTEGER PRIMARY KEY, names BLOB NOT NULL)",
    f"PRAGMA user_version = {LAYOUT}",
)
UPSERT = (
    "INSERT INTO online VALUES (?, ?, ?, ?) ON CONFLICT (view, revision, entity) DO UPDATE SET packed = excluded.packed "
    "WHERE substr(excluded.packed, 1, 24) > substr(packed, 1, 24)"
)
WHERE = "view = ? AND revision = (SELECT revision FROM active WHERE view = ?)"


class SqliteStore(OnlineStore):
    """The store in the file `path`, made if it may be written."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        super().__init__()
        self.path, self.read_only = path, read_only
        self._local = threading.local()
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._ensure_layout()

    def _ensure_layout(self) -> None:
        with self._open() as connection:
            if connection.execute("PRAGMA user_version").fetchone()[0] != LAYOUT:
                connection.execute("BEGIN IMMEDIATE")
                if connection.execute("PRAGMA user_version").fetchone()[0] != LAYOUT:
                    for statement in TABLES:
                        connection.execute(statement)

    def put(self, view: str, revision: int, records: Iterable[tuple[bytes, bytes]]) -> int:
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            before = connection.total_changes
            connection.executemany(UPSERT, ((view, revision, entity, value) for entity, value in records))
            return connection.total_changes - before

    def packed(self, view: str, entities: Sequence[bytes]) -> list[bytes | None]:
        found: dict[bytes, bytes] = {}
        connection = self._open()
        for start in range(0, len(entities), AT_ONCE):
            part = entities[start : start + AT_ONCE]
            statement = f"SELECT entity, packed FROM online WHERE {WHERE} AND entity IN ({','.join('?' * len(part))})"
            try:
                found.update(connection.execute(statement, (view, view, *part)))
            except sqlite3.OperationalError as error:
                raise self._unavailable(error) from None
        return [found.get(entity) for entity in entities]

    def count(self, view: str) -> int:
        found = self._open().execute(f"SELECT count(*) FROM online WHERE {WHERE}", (view, view)).fetchone()
        return int(found[0])

    def forget(self, view: str, entities: Sequence[bytes]) -> None:
        with self._open() as connection:
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("DELETE FROM online WHERE view = ? AND entity = ?", ((view, e) for e in entities))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def activate(self, view: str, revision: int | None) -> None:
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            if revision is None:
                connection.execute("DELETE FROM active WHERE view = ?", (view,))
                connection.execute("DELETE FROM online WHERE view = ?", (view,))
            else:
                connection.execute("INSERT OR REPLACE INTO active VALUES (?, ?)", (view, revision))
                connection.execute("DELETE FROM online WHERE view = ? AND revision < ?", (view, revision))

    def active(self, view: str) -> int | None:
        row = self._open().execute("SELECT revision FROM active WHERE view = ?", (view,)).fetchone()
        return row[0] if row else None

    def load_fields(self, number: int) -> list[str]:
        row = self._open().execute("SELECT names FROM fields WHERE number = ?", (number,)).fetchone()
        return msgspec.json.decode(row[0], type=list[str])

    def save_fields(self, number: int, fields: list[str]) -> None:
        with self._open() as connection:
            connection.execute("INSERT OR IGNORE INTO fields VALUES (?, ?)", (number, msgspec.json.encode(fields)))

    def close(self) -> None:
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
