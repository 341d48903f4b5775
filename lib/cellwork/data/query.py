"""One read-only SELECT over the batches of raw data sets, in DuckDB, with nothing else in reach.

The statement sees data sets as tables of their names, each with the readable rows of the batches chosen and `_batch`. Only the columns
and row groups that it needs are read. No files, no network, no extensions, no settings; memory, time and rows are bounded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cellwork.errors import BadInput, TooLarge

if TYPE_CHECKING:
    import duckdb
    import polars as pl

MEMORY = "2GB"
SECONDS = 60.0


def run(
    sql: str, tables: Mapping[str, Callable[[], Any]], *, limit: int, seconds: float = SECONDS
) -> tuple[pl.DataFrame, bool]:
    """Return at most `limit` rows of `sql`, and whether there are more.

    Parameters
    ----------
    tables : name -> what gives its rows, an Arrow table or data set; asked only for names that stand in the statement.

    Raises
    ------
    BadInput
        It is not one SELECT, or DuckDB refuses it; its message has the line and the near miss.
    TooLarge
        It needs more than 2 GB or more than `seconds`.
    """
    with _database() as database, _told(seconds, tables):
        kinds = [statement.type.name for statement in database.extract_statements(sql)]
        if kinds != ["SELECT"]:
            verdict, way_out = "is not one SELECT", "write a single SELECT; data is changed by ingest only"
            raise BadInput("SQL statement", ", ".join(kinds) or "nothing", verdict, way_out)
        for name in tables:
            if name in sql.lower():  # DuckDB's own list of names needs the tables first, for joins with USING
                database.register(name, tables[name]())
        database.execute("SET lock_configuration = true")
        alarm = threading.Timer(seconds, database.interrupt)
        alarm.start()
        try:
            found: Any = database.sql(sql).limit(limit + 1).to_arrow_table()
        finally:
            alarm.cancel()
    frame = _frame(found)
    return frame.head(limit), frame.height > limit


def _frame(table: Any) -> pl.DataFrame:
    import polars as pl
    import pyarrow as pa

    try:
        return pl.DataFrame(pl.from_arrow(table))
    except (pl.exceptions.PolarsError, pa.ArrowException) as error:
        raise BadInput(
            "SQL statement", "", f"gives a column of a type that can't be sent: {error}", "cast it"
        ) from None


@contextmanager
def _database() -> Iterator[duckdb.DuckDBPyConnection]:
    import duckdb

    sandbox: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": "false", "autoload_known_extensions": "false", "autoinstall_known_extensions": "false",
        "python_enable_replacements": "false", "memory_limit": MEMORY, "threads": "2",
    }  # fmt: skip
    with duckdb.connect(":memory:", config=sandbox) as database:
        database.execute("SET TimeZone = 'UTC'")
        yield database


@contextmanager
def _told(seconds: float, tables: Iterable[str]) -> Iterator[None]:
    """Turn what DuckDB says into our errors."""
    import duckdb

    try:
        yield
    except duckdb.InterruptException:
        verdict = "is how long a statement may run, and it ran longer"
        raise TooLarge("SQL statement", f"{seconds:g} s", verdict, "narrow it to some batches or columns") from None
    except duckdb.OutOfMemoryException:
        raise TooLarge("SQL statement", MEMORY, "is the memory it may use", "select fewer columns or rows") from None
    except duckdb.Error as error:
        way_out = f"it sees the data sets {', '.join(sorted(tables)) or '(none yet)'}"
        raise BadInput("SQL statement", "", f"is refused by DuckDB: {error}", way_out) from None
