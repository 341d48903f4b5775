"""Taking the rows of one subject out of files, so that nothing of them stays on the disk: neither in old files nor in a table's log.

Each function may be repeated: after a crash anywhere the same call ends in the same state.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from cellwork import files
from cellwork.data.location import Location, at

if TYPE_CHECKING:
    import polars as pl

KEEP_NO_LOG = {"delta.logRetentionDuration": "interval 0 seconds"}


def typed(value: str, type_: str) -> str | int | None:
    """Return the subject `value` as a value of a column of the Arrow type `type_`; None if it is none of that type, and so not there."""
    return value if type_ in ("string", "null") else number(value)


def number(value: str) -> int | None:
    """Return the whole number of 64 bits that is written as `value`; None if none is."""
    try:
        found = int(value)
    except ValueError:
        return None
    return found if str(found) == value and -(2**63) <= found < 2**63 else None


def rows_of(place: Path | Location, column: str, value: str | int) -> pl.DataFrame:
    """Return `_batch` and `_row` of the subject's rows in a raw table; none if there is no table or column."""
    import polars as pl

    table, none = at(place), pl.DataFrame(schema={"_batch": pl.String, "_row": pl.Int64})
    if not table.exists():
        return none
    rows = table.scan()
    if column not in rows.collect_schema():
        return none
    return rows.filter(pl.col(column) == value).select("_batch", "_row").collect()


def from_table(place: Path | Location, column: str, value: str | int) -> None:
    """Take the subject's rows out of a Delta table, and what its old files and its log said of them."""
    where = at(place)
    if not where.exists():
        return
    there = where.table()
    if column in [field.name for field in there.schema().fields]:
        literal = str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"
        there.delete(f'"{column}" = {literal}')
    purge(where)


def purge(place: Path | Location) -> None:
    """Leave of a Delta table only the files of its newest version and one checkpoint of its log.

    An object store that keeps versions of its objects keeps the old ones: that is to be ended by its own rules.
    """
    where = at(place)
    there = where.table()
    there.alter.set_table_properties(KEEP_NO_LOG)
    there.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False, full=True)
    where.table().create_checkpoint()
    where.table().cleanup_metadata()


def from_file(path: Path, left: pl.Expr) -> None:
    """Keep only the rows of a parquet file for which `left` is true; no file is no rows."""
    import polars as pl

    if not path.exists():
        return
    rows = pl.read_parquet(path, hive_partitioning=False)
    kept = rows.filter(left)
    if kept.height < rows.height:
        buffer = io.BytesIO()
        kept.write_parquet(buffer, compression="zstd")
        files.write(path, buffer.getvalue(), mode=0o600)
