"""Deliveries that a check held back, in a folder that only the platform reads: the rows as they came, and last, atomically, the record.

A file of rows without its record is what a crash left; nobody is told of it, and the same delivery replaces it.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cellwork import files, ids
from cellwork.errors import NotFound
from cellwork.wire.batches import Held

if TYPE_CHECKING:
    import polars as pl


def keep(folder: Path, record: Held, rows: pl.DataFrame) -> None:
    """Keep `rows` until somebody decides; keeping the same delivery again changes nothing but its record."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    buffer = io.BytesIO()
    rows.write_parquet(buffer, compression="zstd")
    files.write(_rows(folder, record.id), buffer.getvalue(), mode=0o600)
    files.write(_record(folder, record.id), msgspec.json.encode(record), mode=0o600)


def listing(folder: Path) -> list[Held]:
    """Return what is held in `folder`, oldest first."""
    records = [msgspec.json.decode(path.read_bytes(), type=Held) for path in folder.glob("*.json")]
    return sorted(records, key=lambda record: record.at)


def get(folder: Path, delivery: str) -> tuple[Held, pl.DataFrame]:
    """Return the record and the rows of a delivery. Raises NotFound if it is not held."""
    import polars as pl

    try:
        record = msgspec.json.decode(_record(folder, delivery).read_bytes(), type=Held)
    except FileNotFoundError:
        raise NotFound("held delivery", delivery, "is not there (any more)", "look at: cellwork data held") from None
    return record, pl.read_parquet(_rows(folder, delivery), hive_partitioning=False)


def drop(folder: Path, delivery: str) -> None:
    _record(folder, delivery).unlink(missing_ok=True)
    _rows(folder, delivery).unlink(missing_ok=True)


def _rows(folder: Path, delivery: str) -> Path:
    return folder / f"{ids.check(delivery, 'bat')}.parquet"


def _record(folder: Path, delivery: str) -> Path:
    return folder / f"{ids.check(delivery, 'bat')}.json"
