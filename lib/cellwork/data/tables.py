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
    """Write `frame` as the rows of `batch`, in place of rows that an earlier attempt left.

    Parameters
    ----------
    known : the batches of this table that count; where a crash left a table whose columns have other types, the table
        is written anew with only these.
    """
    import polars as pl

    rows = frame.drop([name for name, dtype in frame.schema.items() if dtype == pl.Null])
    rows = rows.with_columns(_batch=pl.lit(batch))
    table = _open(path)
    if table is not None and not _fits(rows, pl.read_delta(table).head(0) if False else _schema(path)):
        kept = read(path, known)
        _append(path, pl.concat([kept, rows], how="diagonal"), mode="overwrite", schema_mode="overwrite")
        return
    if table is not None and {"_batch": batch} in table.partitions():
        table.delete(f"_batch = '{batch}'")
    _append(path, rows, mode="append", schema_mode="merge")


def read(path: Path, batches: Sequence[str], *, limit: int | None = None) -> pl.DataFrame:
    """Return the rows of `batches`, in this order and each in the order of its `_row`; at most `limit`."""
    import polars as pl

    order = pl.DataFrame({"_batch": list(batches), "_at": range(len(batches))}, schema={"_batch": pl.String, "_at": pl.Int64})
    wanted = pl.scan_delta(str(path)).filter(pl.col("_batch").is_in(list(batches)))
    rows = wanted.join(order.lazy(), on="_batch").sort("_at", "_row").drop("_at")
    return (rows if limit is None else rows.head(limit)).collect()
