"""Rows that never are in memory all at once: Parquet files, read a batch at a time.

A row group is read through a buffer too: of one that is as large as the file only what is decoded next is in memory. (Arrow's own way
is to read all columns of a row group before it decodes any: `pre_buffer`, good for object stores.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cellwork.errors import BadInput, NotFound, near_miss
from cellwork.models.columns import to_pandas

ROWS = 100_000
BUFFER_BYTES = 1 << 18
"""What is read ahead of each column."""


def files(source: Path | str) -> list[Path]:
    """Return the Parquet files of a folder, or the one file; raises NotFound where there is none."""
    path = Path(source)
    found = sorted(path.rglob("*.parquet")) if path.is_dir() else [path] if path.is_file() else []
    if not found:
        raise NotFound("Parquet files", path, "are not there", "write some: frame.write_parquet(…)")
    return found


def columns(source: Path | str, label: str, chosen: Sequence[str] = ()) -> list[str]:
    """Return the columns to train on: `chosen`, or all but the label; raises BadInput with the near miss."""
    import pyarrow.parquet

    there = list(pyarrow.parquet.read_schema(files(source)[0]).names)
    for name in (label, *chosen):
        if name not in there:
            raise BadInput("column", name, f"is not in {Path(source).name}", near_miss(name, there))
    return list(chosen) or [name for name in there if name != label]


def batches(
    source: Path | str, label: str, chosen: Sequence[str] = (), *, rows: int = ROWS
) -> Iterator[tuple[Any, Any]]:
    """Yield frames and labels of at most `rows` rows, those without a label left out; memory does not grow with the source.

    Raises
    ------
    BadInput
        A column is not there, or the label is no number.
    NotFound
        There are no files.
    """
    import polars as pl
    import polars.selectors as cs
    import pyarrow.parquet

    from cellwork.training.rows import truth

    names = columns(source, label, chosen)
    for path in files(source):
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES) as file:
            for batch in file.iter_batches(rows, columns=[*names, label]):
                frame = pl.DataFrame(pl.from_arrow(batch)).filter(pl.col(label).is_not_null())
                if frame.height:
                    known = frame.select(names).with_columns(cs.by_dtype(pl.Null).cast(pl.Float64))
                    yield to_pandas(known), truth(frame.get_column(label))
