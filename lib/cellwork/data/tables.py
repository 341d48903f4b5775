"""Delta tables of immutable batches, partitioned by `_batch`: write one, read some.

A batch of a table counts only if the platform's database knows it. What a crash left before that is invisible: `read` is
always told which batches to read, and writing the same batch again replaces its rows. Columns of no type yet
(``null``) are not written; `cellwork.data.schema.complete` brings them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl
    from deltalake import DeltaTable


def write(path: Path, frame: pl.DataFrame, batch: str, *, known: Sequence[str]) -> None:
    """Write `frame` (with `_row`) as the rows of `batch`, in place of rows that an earlier attempt left.

    Parameters
    ----------
    known : the batches of this table that count; where a crash left a table whose columns have other types, the table
        is written anew with only these.
    """
    import polars as pl
    from deltalake import DeltaTable, write_deltalake

    rows = frame.drop([name for name, dtype in frame.schema.items() if dtype == pl.Null])
    rows = rows.with_columns(_batch=pl.lit(batch))
    if not DeltaTable.is_deltatable(str(path)):
        path.mkdir(parents=True, exist_ok=True)
        write_deltalake(path, rows.to_arrow(), partition_by=["_batch"])
        return
    table = DeltaTable(path)
    misfits = _misfits(rows, table)
    if misfits:
        kept = _select(table, known).drop(misfits).collect()
        whole = pl.concat([kept, rows], how="diagonal")
        write_deltalake(table, whole.to_arrow(), partition_by=["_batch"], mode="overwrite", schema_mode="overwrite")
        return
    if {"_batch": batch} in table.partitions():
        table.delete(f"_batch = '{batch}'")
    write_deltalake(table, rows.to_arrow(), mode="append", schema_mode="merge")


def compact(path: Path) -> tuple[int, int, int, int]:
    """Put the small files of each batch together; returns files and bytes before, files and bytes after.

    Files that are no longer needed stay for a day, for readers that began before; then the next compaction drops them.
    """
    from deltalake import DeltaTable

    before = _files(DeltaTable(path))
    DeltaTable(path).optimize.compact()
    DeltaTable(path).vacuum(retention_hours=24, enforce_retention_duration=False, dry_run=False)
    table = DeltaTable(path)
    table.create_checkpoint()
    return (*before, *_files(table))


def _files(table: DeltaTable) -> tuple[int, int]:
    import pyarrow as pa

    sizes = pa.table(table.get_add_actions(flatten=True)).column("size_bytes").to_pylist()
    return len(sizes), sum(sizes)


def read(path: Path, batches: Sequence[str]) -> pl.DataFrame:
    """Return the rows of `batches` with `_batch` and `_row`, in this order of batches and of rows."""
    import polars as pl

    if not batches:
        return _select(path, batches).collect()
    place = pl.col("_batch").replace_strict(list(batches), range(len(batches)), return_dtype=pl.Int64)
    return _select(path, batches).sort(place, "_row").collect()


def _select(table: Path | DeltaTable, batches: Sequence[str]) -> pl.LazyFrame:
    import polars as pl

    return pl.scan_delta(table).filter(pl.col("_batch").is_in(list(batches)))


def _misfits(rows: pl.DataFrame, table: DeltaTable) -> list[str]:
    """Return the columns that have another type in `table`; no batch that counts has a value in them."""
    import polars as pl

    there = pl.scan_delta(table).collect_schema()
    return [name for name, dtype in rows.schema.items() if there.get(name, dtype) != dtype]
