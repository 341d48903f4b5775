"""Run an author's SELECT over raw rows in DuckDB, with nothing else in reach.

The statement sees the raw data sets as tables of their names and nothing of the machine: no files, no network, no
extensions, no settings. It runs in UTC with bounded memory and time. A statement that asks for the current time or for
random numbers gives other rows each time it runs; nothing here can make those reproducible.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cellwork.errors import BadInput, TooLarge
from cellwork.wire.features import Prepared

if TYPE_CHECKING:
    import duckdb
    import polars as pl

MEMORY = "1GB"
SECONDS = 120.0


def run(
    prepared: Prepared, driving: pl.DataFrame, others: Mapping[str, pl.DataFrame], *, seconds: float = SECONDS
) -> pl.DataFrame:
    """Return the rows of `prepared`: times in UTC and microseconds, decimals as numbers.

    Parameters
    ----------
    driving : rows of one or more batches of ``sources[0]``.
    others : rows of each further source.

    Raises
    ------
    BadInput
        It is not one SELECT, DuckDB refuses it, or it gives more rows than `driving` has.
    TooLarge
        It needs more than 1 GB or more than `seconds`.
    """
    tables = {prepared.sources[0]: driving, **others}
    with _database(tables) as database:
        _check_statement(database, prepared)
        rows = _execute(database, prepared, seconds)
    if rows.height > driving.height:
        raise BadInput(
            f"prepared {prepared.name!r}",
            f"{rows.height} rows",
            f"are more than the {driving.height} rows of {prepared.sources[0]!r}",
            "a join finds several rows for one; make it unique, or aggregate",
        )
    return _normal(rows)


def depends(
    prepared: Prepared, driving: pl.DataFrame, others: Mapping[str, pl.DataFrame], columns: Sequence[str]
) -> set[str]:
    """Return the columns of ``sources[0]`` that DuckDB must read to give `columns` of `prepared`, those that choose its rows included.

    The frames are empty ones: what is read is DuckDB's plan, not data. A plan reads too much rather than too little.

    Raises
    ------
    BadInput
        It is not one SELECT, or DuckDB refuses it.
    """
    import duckdb

    with _database(others, prepared.sources[0], driving) as database:
        _check_statement(database, prepared)
        names = ", ".join('"' + column.replace('"', '""') + '"' for column in columns) or "count(*)"
        try:
            database.execute(f"CREATE VIEW _rows AS {prepared.sql}")
            plan = database.execute(f"EXPLAIN (FORMAT JSON) SELECT {names} FROM _rows")
            nodes = json.loads(plan.fetchall()[0][1])
        except duckdb.Error as error:
            raise _refused(prepared, error) from None
    return {name for node in nodes for name in _scanned(node, f".{prepared.sources[0]}")}


def _scanned(node: dict[str, Any], table: str) -> Iterator[str]:
    about = node.get("extra_info", {})
    if str(about.get("Table", "")).replace('"', "").endswith(table):
        projections = about.get("Projections", [])
        yield from [projections] if isinstance(projections, str) else projections
    for child in node.get("children", []):
        yield from _scanned(child, table)


@contextmanager
def _database(
    tables: Mapping[str, pl.DataFrame], planned: str = "", columns: pl.DataFrame | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a database of `tables`; `planned` is one of `columns` alone, by whose name a plan tells what is read of it."""
    import duckdb

    sandbox: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": "false", "autoload_known_extensions": "false", "autoinstall_known_extensions": "false",
        "python_enable_replacements": "false", "memory_limit": MEMORY, "threads": "2",
    }  # fmt: skip
    with duckdb.connect(":memory:", config=sandbox) as database:
        database.execute("SET TimeZone = 'UTC'")
        for name, frame in tables.items():
            database.register(name, frame.to_arrow())
        if columns is not None:
            database.register("_columns", columns.to_arrow())
            database.execute(f'CREATE TABLE "{planned}" AS SELECT * FROM _columns')
            database.execute("SET disabled_optimizers = 'filter_pushdown,statistics_propagation'")
        database.execute("SET lock_configuration = true")
        yield database


def _check_statement(database: duckdb.DuckDBPyConnection, prepared: Prepared) -> None:
    import duckdb

    try:
        statements = database.extract_statements(prepared.sql)
    except duckdb.Error as error:
        raise _refused(prepared, error) from None
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        kinds = ", ".join(statement.type.name for statement in statements) or "nothing"
        raise BadInput(f"SQL of prepared {prepared.name!r}", kinds, "is not one SELECT", "write a single SELECT")


def _execute(database: duckdb.DuckDBPyConnection, prepared: Prepared, seconds: float) -> pl.DataFrame:
    import duckdb
    import polars as pl

    alarm = threading.Timer(seconds, database.interrupt)
    alarm.start()
    try:
        table: Any = database.sql(prepared.sql).to_arrow_table()
    except duckdb.InterruptException:
        raise TooLarge(
            f"prepared {prepared.name!r}",
            f"{seconds:.0f} s",
            "is how long it may run, and it ran longer",
            "make it simpler",
        ) from None
    except duckdb.OutOfMemoryException:
        raise TooLarge(
            f"prepared {prepared.name!r}", MEMORY, "is the memory it may use", "select fewer columns"
        ) from None
    except duckdb.Error as error:
        raise _refused(prepared, error) from None
    finally:
        alarm.cancel()
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _refused(prepared: Prepared, error: Exception) -> BadInput:
    """Return DuckDB's own message, which has the line and the near miss."""
    return BadInput(
        f"SQL of prepared {prepared.name!r}",
        "",
        f"is refused by DuckDB: {error}",
        f"it sees the tables {', '.join(prepared.sources)}",
    )


def _normal(rows: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    casts = []
    for name, dtype in rows.schema.items():
        if isinstance(dtype, pl.Datetime):
            casts.append(pl.col(name).dt.cast_time_unit("us"))
        elif isinstance(dtype, pl.Decimal):
            casts.append(pl.col(name).cast(pl.Int64 if dtype.scale == 0 else pl.Float64))
    return rows.with_columns(casts)
