"""Delta tables of immutable batches, partitioned by `_batch`: write one, read some.

A batch of a table counts only if the platform's database knows it. What a crash left before that is invisible: `read` is
always told which batches to read, and writing the same batch again replaces its rows. Columns of no type yet
(``null``) are not written; `cellwork.data.schema.complete` brings them back. `cellwork.data.location` says where a table may lie,
and when what was written is kept.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cellwork.data.location import Location, answering, at

if TYPE_CHECKING:
    import polars as pl
    from deltalake import DeltaTable
    from deltalake.transaction import AddAction

PROPERTIES = {"delta.checkpointInterval": "10"}
"""Of a new table. Whoever opens one reads its newest checkpoint and each commit since: with one in ten commits, as Spark has it, that takes a
quarter of the time that it takes after forty."""


def write(place: Path | Location, frame: pl.DataFrame, batch: str, *, known: Sequence[str]) -> None:
    """Write `frame` (with `_row`) as the rows of `batch`, in place of rows that an earlier attempt left.

    Parameters
    ----------
    known : the batches of this table that count; where a crash left a table whose columns have other types, the table
        is written anew with only these.

    Raises
    ------
    Unavailable
        The store does not answer; what reached it is invisible, and replaced by the next attempt.
    """
    import polars as pl

    where = at(place)
    rows = frame.drop([name for name, dtype in frame.schema.items() if dtype == pl.Null])
    with answering(where):
        if where.exists():
            _append(where, rows, batch, known)
        else:
            _begin(where, rows, batch)
    where.settle(batch)


def _begin(where: Location, rows: pl.DataFrame, batch: str) -> None:
    from deltalake import Schema, write_deltalake
    from deltalake.transaction import create_table_with_add_actions

    marked, folder = _marked(rows, batch), where.folder
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    if folder is not None and _plain(rows):
        schema = Schema.from_arrow(marked.clear().to_arrow().schema)
        first = [_add(folder, rows, batch)]
        create_table_with_add_actions(where.uri, schema, first, "error", ["_batch"], configuration=PROPERTIES)
    else:
        write_deltalake(
            where.uri,
            marked.to_arrow(),
            partition_by=["_batch"],
            configuration=PROPERTIES,
            storage_options=where.client,
        )


def _append(where: Location, rows: pl.DataFrame, batch: str, known: Sequence[str]) -> None:
    import polars as pl
    from deltalake import write_deltalake

    table, marked, folder = where.table(), _marked(rows, batch), where.folder
    there = where.scan().collect_schema()
    misfits = [name for name, dtype in rows.schema.items() if there.get(name, dtype) != dtype]
    if misfits:  # no batch that counts has a value in them
        kept = _select(where, known).drop(misfits).collect()
        whole = pl.concat([kept, marked], how="diagonal")
        write_deltalake(table, whole.to_arrow(), partition_by=["_batch"], mode="overwrite", schema_mode="overwrite")
        return
    if {"_batch": batch} in table.partitions():
        table.delete(f"_batch = '{batch}'")
    if folder is not None and _plain(rows) and there.keys() >= rows.schema.keys():
        table.create_write_transaction([_add(folder, rows, batch)], "append", table.schema(), ["_batch"])
    else:
        write_deltalake(table, marked.to_arrow(), mode="append", schema_mode="merge")


def _marked(rows: pl.DataFrame, batch: str) -> pl.DataFrame:
    import polars as pl

    return rows.with_columns(_batch=pl.lit(batch))


def _plain(rows: pl.DataFrame) -> bool:
    """Return whether polars writes these types into parquet as Delta has them."""
    import polars as pl

    same = {pl.Int64, pl.Float64, pl.Boolean, pl.String, pl.Date, pl.Datetime("us", "UTC")}
    return all(dtype in same for dtype in rows.dtypes)


def _add(path: Path, rows: pl.DataFrame, batch: str) -> AddAction:
    """Write `rows` as a file of `batch` that no reader knows before the action is committed; twice as fast as the Delta writer."""
    from deltalake.transaction import AddAction

    name = f"_batch={batch}/{uuid.uuid4()}.parquet"
    (path / name).parent.mkdir(exist_ok=True)
    rows.write_parquet(path / name, compression="snappy")
    statistics = json.dumps({"numRecords": rows.height})
    return AddAction(
        name, (path / name).stat().st_size, {"_batch": batch}, time.time_ns() // 1_000_000, True, statistics
    )


def compact(place: Path | Location) -> tuple[int, int, int, int]:
    """Put the small files of each batch together; returns files and bytes before, files and bytes after.

    Files that are no longer needed, and what a killed write left, stay for a day, for readers that began before; then the next compaction drops them.
    """
    where = at(place)
    with answering(where):
        before = _files(where.table())
        where.table().optimize.compact()
        where.table().vacuum(retention_hours=24, enforce_retention_duration=False, dry_run=False, full=True)
        table = where.table()
        table.create_checkpoint()
        return (*before, *_files(table))


def _files(table: DeltaTable) -> tuple[int, int]:
    import pyarrow as pa

    sizes = pa.table(table.get_add_actions(flatten=True)).column("size_bytes").to_pylist()
    return len(sizes), sum(sizes)


def read(place: Path | Location, batches: Sequence[str]) -> pl.DataFrame:
    """Return the rows of `batches` with `_batch` and `_row`, in this order of batches and of rows.

    Raises
    ------
    Unavailable
        The store does not answer.
    """
    import polars as pl

    where = at(place)
    with answering(where):
        rows = _select(where, batches)
        if not batches:
            return rows.collect()
        order = pl.col("_batch").replace_strict(list(batches), range(len(batches)), return_dtype=pl.Int64)
        return rows.sort(order, "_row").collect()


def _select(where: Location, batches: Sequence[str]) -> pl.LazyFrame:
    import polars as pl

    return where.scan().filter(pl.col("_batch").is_in(list(batches)))
