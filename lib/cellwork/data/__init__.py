"""Raw data and datasets: ingest immutable batches, build training frames, split them.

Importing this loads nothing heavy. Everything here goes over HTTP with the caller's own rights.
"""

from __future__ import annotations

from cellwork.data import dataset, split
from cellwork.data.ingest import (
    batches,
    declare,
    describe,
    discard,
    held,
    ingest,
    ingest_folder,
    rejected,
    release,
    rows,
    sql,
)
from cellwork.wire.batches import Check, RawDataset, Seal

__all__ = [
    "Check",
    "RawDataset",
    "Seal",
    "batches",
    "dataset",
    "declare",
    "describe",
    "discard",
    "held",
    "ingest",
    "ingest_folder",
    "rejected",
    "release",
    "rows",
    "split",
    "sql",
]
