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


class Check(Struct):
    """What must hold for a batch to be published: of one column's values, or without a column of the batch as a whole.

    Rows that fail go into quarantine with the reason. If they are more than `tolerance` of the batch, or if what fails is not of
    single rows, the whole batch is held back until somebody releases or discards it.
    """

    column: str = ""
    not_null: bool = False
    unique: bool = False
    """No value twice; nulls are not looked at."""
    least: float | str | None = None
    greatest: float | str | None = None
    """Limits that belong to the range: a number, or for times and dates ISO text (UTC)."""
    pattern: str = ""
    """Regular expression that the whole text matches."""
    one_of: list[str] = []
    within: str = ""
    """The column's newest time is at most so long before the batch arrives, such as ``2d``."""
    rows_near_mean: float | None = None
    """Without a column: the row count differs by at most this share from the mean of the last 10 batches (3 at least)."""
    tolerance: float = 0.0
    """Share of the rows that may fail and go into quarantine while the others are published."""


class CheckOutcome(Struct):
    check: str
    """What must hold, as a sentence."""
    failed: int
    """Rows."""
    passed: bool


class RawDataset(Struct):
    name: str
    key: list[str] = []
    """Columns that identify a row; duplicates within a batch are refused into quarantine."""
    description: str = ""
    owner: str = ""
    source: str = ""
    seals: list[Seal] = []
    checks: list[Check] = []
    tags: dict[str, str] = {}
    subject: str = ""
    """The column that names whom a row is about, a person for example; by it rows can be erased."""
    erasable: bool = True
    """False says that its rows are about nobody who could ask to be erased."""


class Column(Struct):
    name: str
    type: str
    """An Arrow type in text, e.g. ``int64``, ``string``, ``timestamp[us, tz=UTC]``."""


class Frequent(Struct):
    text: str
    rows: int


class ColumnStatistics(Struct):
    name: str
    nulls: int
    distinct: int | None = None
    min: str | float | None = None
    max: str | float | None = None
    mean: float | None = None
    kind: str = ""
    """null, bool, number, time, text or other."""
    exact: bool = True
    """Whether `distinct` is; else it is within about 3 %."""
    nan: int = 0
    infinite: int = 0
    deviation: float | None = None
    quantiles: list[str | float] = []
    """At 5, 25, 50, 75 and 95 % of the rows, of numbers and times."""
    frequent: list[Frequent] = []
    """The most frequent texts."""


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
    checks: list[CheckOutcome] = []
    """Of the declared checks at its arrival."""
    erased: int = 0
    """Rows that were taken out since, with their subjects."""


class Ingested(Struct):
    batch: Batch
    new: bool
    """False if the same delivery was there already."""


class Held(Struct):
    """A delivery that a check held back: published nowhere, kept until it is released, discarded or delivered anew."""

    id: str
    """The id that it has as a batch once it is released."""
    project: str
    dataset: str
    partition: str
    rows: int
    checks: list[CheckOutcome]
    at: datetime
    origin: Origin


class Decision(Struct):
    """Why a person releases or discards what a check held back."""

    reason: str


class Compacted(Struct):
    """Files of a raw table before and after small ones were put together; no row, batch or id changed."""

    files_before: int
    bytes_before: int
    files: int
    bytes: int


class Sql(Struct):
    """One SELECT over the current batches of a project's raw data sets, or over those current at `as_of`."""

    sql: str
    as_of: str = ""
    """A batch that was the newest then, or a time with a zone."""
    limit: int = 10_000
    """At most so many rows; the header ``x-more`` says whether there are others."""
