"""Open SQLite or PostgreSQL the one way: WAL, busy timeout, numbered migrations.

One process owns each database; only it calls `open_database`. `engine.begin()` is for what writes: it takes the write lock
before its first statement (on PostgreSQL an advisory one), so that what it reads is still true when it writes. `engine.connect()`
is for what only reads: it sees one moment and neither waits for a writer nor keeps one waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from cellwork.errors import Conflict, Unavailable

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

Migration = Sequence[str]
"""Statements of one step; `{serial}`, `{json}` and `{blob}` in them become the dialect's own words."""

WRITES = "cellwork_writes"
WRITE_LOCK = 7_238_801
"""PostgreSQL's advisory lock of who writes; each service has a database of its own, and locks belong to a database."""
ONE_MOMENT = "REPEATABLE READ"
WORDS = {
    "sqlite": {"serial": "INTEGER PRIMARY KEY AUTOINCREMENT", "json": "TEXT", "blob": "BLOB"},
    "postgresql": {"serial": "BIGSERIAL PRIMARY KEY", "json": "TEXT", "blob": "BYTEA"},
}


def open_database(url: str, migrations: Sequence[Migration]) -> Engine:
    """Return an engine on `url` with every migration applied, each once, in order.

    Raises
    ------
    Conflict
        The database was made by a newer version of the platform.
    Unavailable
        It can't be opened.
    """
    import sqlalchemy as sa

    engine = attach(url)
    try:
        with engine.begin() as connection:
            _migrate(connection, migrations)
    except sa.exc.OperationalError as error:
        raise Unavailable(
            "database", engine.url.render_as_string(), str(error.orig), "check that it can be written and reached"
        ) from None
    return engine


def attach(url: str) -> Engine:
    """Return an engine on a database that another process of its owner has opened and brought up to date."""
    import sqlalchemy as sa

    lite = url.startswith("sqlite")
    engine = sa.create_engine(url) if lite else sa.create_engine(url, pool_pre_ping=True, isolation_level=ONE_MOMENT)
    if lite:
        sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite if lite else _begin_postgresql)
    engine.begin = _writing(engine)  # type: ignore[method-assign, assignment]
    return engine


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA busy_timeout = 10000")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten, however SQLite was built


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get(WRITES, False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")


def _writing(engine: Engine) -> Callable[[], AbstractContextManager[Connection]]:
    """Return `engine.begin` as SQLAlchemy has it, and the mark by which the two listeners know it from `engine.connect`."""
    options: dict[str, Any] = {WRITES: True}
    if engine.dialect.name == "postgresql":
        options["isolation_level"] = "READ COMMITTED"  # what it sees begins after the lock, not before

    @contextmanager
    def begin() -> Iterator[Connection]:
        with engine.connect() as connection, connection.execution_options(**options).begin():
            yield connection

    return begin


def _migrate(connection: Connection, migrations: Sequence[Migration]) -> None:
    connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY)")
    done = connection.exec_driver_sql("SELECT coalesce(max(number), 0) FROM migrations").scalar_one()
    if done > len(migrations):
        raise Conflict(
            "database", done, f"was migrated further than this version knows ({len(migrations)})", "update cellwork"
        )
    for number, statements in enumerate(migrations[done:], start=done + 1):
        for statement in statements:
            words = WORDS[connection.dialect.name]
            for word, replacement in words.items():
                statement = statement.replace("{" + word + "}", replacement)
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql(f"INSERT INTO migrations VALUES ({number})")
