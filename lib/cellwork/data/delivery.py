"""From delivered bytes to what is stored of them: the pure half of ingest, run inside the platform service.

A batch id is the content id of data set, partition and canonical rows: the same delivery twice is one batch, whatever the order of its rows
and columns; two equal days are two.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from cellwork import clock, ids
from cellwork.data import checks, quarantine, schema, sealed, statistics
from cellwork.errors import BadInput, TooLarge
from cellwork.wire.batches import CheckOutcome, Column, ColumnStatistics, RawDataset

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cellwork.data.sketches import Sketch

PARTITION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MOST_CELLS = 250_000_000
"""Rows times columns of one delivery, values in lists counted each; a small parquet file may unpack to any size."""
MOST_BYTES = 2**30
"""Bytes of all texts of one delivery; a parquet file holds a text once that stands in many rows."""


@dataclass(frozen=True)
class Delivery:
    """What one delivery becomes. All frames carry `_row`, the row's number in the delivery."""

    batch: str
    columns: list[Column]
    sketch: Sketch
    """Of the readable rows."""
    checks: list[CheckOutcome]
    passed: bool
    """Whether it may be published."""
    readable: pl.DataFrame
    rejected: pl.DataFrame
    """Rows in quarantine, with `_reason`; what is sealed is blank in them too."""
    sealing: sealed.Sealing | None
    sealed: pl.DataFrame | None

    @property
    def statistics(self) -> list[ColumnStatistics]:
        return statistics.said(self.sketch, dates=[c.name for c in self.columns if c.type == "date32[day]"])


def partition_key(text: str) -> str:
    """Return `text` if it is a partition key, else raise BadInput."""
    if not PARTITION.fullmatch(text):
        way_out = "use letters, digits, '.', '_' and '-', at most 64, such as 2013-01"
        raise BadInput("partition key", text, "is not a partition key", way_out)
    return text


def unpack(body: bytes, subject: str = "delivery") -> pl.DataFrame:
    """Return the rows of a parquet file; errors are about `subject`.

    Raises
    ------
    BadInput
        The bytes are no whole parquet file.
    TooLarge
        It unpacks to more than `MOST_CELLS` values or `MOST_BYTES` of text.
    """
    import polars as pl
    import pyarrow as pa

    if not body:
        raise BadInput(subject, "", "is empty", "send a parquet file with at least one row")
    try:
        return pl.DataFrame(pl.from_arrow(_table(body, subject).replace_schema_metadata(None)))
    except (pa.ArrowException, OSError, ValueError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = str(error).splitlines()[0][:200]
        raise BadInput(subject, "", f"is not a readable parquet file: {reason}", "write it again, whole") from None


def _table(body: bytes, subject: str) -> pa.Table:
    """Return the rows of a parquet file. Texts are read as dictionaries, and written out only when it is known how much they are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = pq.ParquetFile(io.BytesIO(body))
    _check_size(plain, subject)
    leaves = [plain.schema.column(i) for i in range(len(plain.schema))]
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    file = pq.ParquetFile(io.BytesIO(body), read_dictionary=texts)
    kinds = [kind for field in file.schema_arrow for kind in _leaves(field.type)]
    for leaf, kind in zip(leaves, kinds, strict=True):
        if leaf.physical_type == "BYTE_ARRAY" and not pa.types.is_dictionary(kind):
            way_out = "give it a name of its own, and write it as text"
            raise BadInput(f"column {leaf.path!r}", kind, f"can't be read safely from this {subject}", way_out)
    table = file.read()
    table.validate(full=True)  # polars takes text on trust
    written = sum(_text_bytes(chunk) for column in table.columns for chunk in column.chunks)
    if written > MOST_BYTES:
        raise TooLarge(subject, f"{written} bytes of text", f"are over the limit of {MOST_BYTES}", "send it in parts")
    wanted = plain.schema_arrow
    columns = [_as(column, wanted.field(i).type) for i, column in enumerate(table.columns)]
    fields = [wanted.field(i).with_type(column.type) for i, column in enumerate(columns)]
    return pa.Table.from_arrays(columns, schema=pa.schema(fields)) if columns else table


def _check_size(file: pq.ParquetFile, subject: str) -> None:
    """Raise TooLarge if the file says of itself that it holds too much."""
    about = file.metadata
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    rows = max(about.num_rows, sum(group.num_rows for group in groups))
    cells, fixed = 0 if len(file.schema) else rows, 0
    for i in range(len(file.schema)):
        values = max(rows, sum(group.column(i).num_values for group in groups))
        cells += values
        if file.schema.column(i).physical_type == "FIXED_LEN_BYTE_ARRAY":
            fixed += values * file.schema.column(i).length
    if cells > MOST_CELLS:
        raise TooLarge(subject, f"{cells} values", f"is over the limit of {MOST_CELLS}", "send it in parts")
    pages, most = sum(group.total_byte_size for group in groups), MOST_BYTES + 8 * MOST_CELLS
    if fixed > MOST_BYTES or pages > most:
        way_out = "send it in parts"
        raise TooLarge(subject, f"{max(fixed, pages)} bytes", f"are over the limit of {MOST_BYTES}", way_out)


def _leaves(kind: pa.DataType) -> Iterator[pa.DataType]:
    """Yield the types of the values in a column of type `kind`, in the order of the file's own columns."""
    if not kind.num_fields:
        yield kind
    for i in range(kind.num_fields):
        yield from _leaves(kind.field(i).type)


def _text_bytes(values: pa.Array) -> int:
    """Return the size of the texts in `values`, however deep, each as often as it stands there."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(values.type):
        if not len(values.dictionary):
            return 0
        return int(pc.sum(pc.binary_length(values.dictionary).take(values.indices)).as_py() or 0)
    if pa.types.is_struct(values.type):
        return sum(_text_bytes(values.field(i)) for i in range(values.type.num_fields))
    return _text_bytes(values.values) if values.type.num_fields else 0


def _as(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    """Return a column read as dictionaries as what it is; what the author has as categories stays so."""
    import pyarrow as pa

    return column if pa.types.is_dictionary(wanted) or column.type == wanted else column.cast(wanted)


def receive(
    frame: pl.DataFrame,
    project: str,
    declared: RawDataset,
    partition: str,
    pinned: Sequence[Column],
    *,
    at: datetime | None = None,
    before: Sequence[int] = (),
    waived: bool = False,
) -> Delivery:
    """Return what `frame` becomes as the batch `partition` of a data set with the schema `pinned` (empty: it pins it).

    Parameters
    ----------
    at : when it arrived (default now); `before` are the row counts of the last batches. Both for the declared checks.
    waived : publish it whole, whatever the checks say.

    Raises
    ------
    BadInput
        The delivery as a whole can't be taken; nothing of it is kept.
    """

    dataset = f"data set '{project}/{declared.name}'"
    if frame.height == 0:
        raise BadInput(f"batch of {dataset}", partition, "has no rows", "send it when there is data")
    rows = schema.conform(schema.canonical(frame), pinned, dataset)
    with ThreadPoolExecutor(1) as beside:  # the content's hash and the sketches are most of the work
        content = beside.submit(schema.content_sha256, rows)
        made = _divided(rows, project, declared, partition, at=at, before=before, waived=waived)
    batch = ids.of_content("bat", f"{project}/{declared.name}", partition, content.result())
    return dataclasses.replace(made, batch=batch)


def _divided(
    rows: pl.DataFrame,
    project: str,
    declared: RawDataset,
    partition: str,
    *,
    at: datetime | None,
    before: Sequence[int],
    waived: bool,
) -> Delivery:
    """Return the delivery of the canonical `rows`, without its id."""
    import polars as pl

    from cellwork.data import sketches

    dataset = f"data set '{project}/{declared.name}'"
    numbered = rows.with_columns(_row=pl.int_range(pl.len(), dtype=pl.Int64))
    kept, rejected = quarantine.divide(numbered, declared.key)
    if not kept.height:
        reason = rejected.item(0, "_reason")
        verdict = f"has no row left: {reason}, and so on for {rejected.height} rows"
        raise BadInput(f"batch of {dataset}", partition, verdict, "mend the rows and send it again")
    sealing = sealed.sealing(declared, partition)
    values = None
    if sealing:
        kept, rejected, values = _seal(kept, rejected, numbered, sealing)
    checks.check_declared(declared, schema.columns(rows))
    hidden = sealing.columns if sealing else ()
    judged = checks.judge(kept, declared.checks, sealed=hidden, at=at or clock.now(), before=before)
    passed = waived or (judged.passed and judged.kept.height > 0)
    if not waived and declared.checks:
        kept, rejected = judged.kept, pl.concat([rejected, judged.failed])
    sketch = sketches.of(kept.drop("_row"))
    return Delivery("", schema.columns(rows), sketch, judged.outcomes, passed, kept, rejected, sealing, values)


def _seal(
    kept: pl.DataFrame, rejected: pl.DataFrame, numbered: pl.DataFrame, sealing: sealed.Sealing
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Return readable rows, refused rows, both blank where sealed, and the sealed values of every row delivered."""
    return (
        sealed.take_out(kept, sealing)[0],
        sealed.take_out(rejected, sealing)[0],
        sealed.take_out(numbered, sealing)[1],
    )
