"""Raw data: data sets of immutable batches, and what is sealed in them."""

from __future__ import annotations

from datetime import datetime

from cellwork.wire import Struct
from cellwork.wire.origin import Origin


class Seal(Struct):
    """Columns that leave the readable batches whose partition key matches; only the evaluator sees them again."""

    holdout: str
    partitions: list[str]
    """Partition keys, or shell patterns of them such as ``2013-11*``."""
    columns: list[str]


class RawDataset(Struct):
    name: str
    key: list[str] = []
    """Columns that identify a row; duplicates within a batch are refused into quarantine."""
    description: str = ""
    owner: str = ""
    source: str = ""
    seals: list[Seal] = []


class Column(Struct):
    name: str
    type: str
    """An Arrow type in text, e.g. ``int64``, ``string``, ``timestamp[us, tz=UTC]``."""


class ColumnStatistics(Struct):
    name: str
    nulls: int
    distinct: int | None = None
    min: str | float | None = None
    max: str | float | None = None
    mean: float | None = None


class Batch(Struct):
    id: str
    seq: int
    project: str
    dataset: str
    partition: str
    """The partition key: what this batch is the data of, e.g. ``2013-01`` or ``2013-12-24``."""
    rows: int
    columns: list[Column]
    statistics: list[ColumnStatistics]
    at: datetime
    origin: Origin
    sealed: str = ""
    """The holdout that keeps this batch's sealed columns, if any."""
    supersedes: str = ""
    """The batch of the same partition that this one corrects, if any."""
    superseded_by: str = ""
    rejected: int = 0
    """Rows in quarantine."""


class Ingested(Struct):
    batch: Batch
    new: bool
    """False if the same delivery was there already."""


class Query(Struct):
    """Read rows of a data set: all current batches, one, or those current when `as_of` was the newest."""

    batch: str = ""
    as_of: str = ""
    limit: int | None = None
