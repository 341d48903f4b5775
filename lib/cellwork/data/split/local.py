"""A frame that is in hand as a dataset, so that it can be split as one. It has no id and can't be what a version was trained on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cellwork.data.dataset import Rows
from cellwork.errors import BadInput, near_miss
from cellwork.wire.datasets import Dataset as Record
from cellwork.wire.origin import Origin

if TYPE_CHECKING:
    import polars as pl

ROW = "_row"


def local(frame: Any, *, label: str = "", time: str = "", id: str = "", known: str = "", name: str = "local") -> Rows:
    """Return `frame` (polars or pandas) as rows to split; every other column is an input.

    Parameters
    ----------
    label, time, id, known : column names; of the truth, of the moment of the prediction, of the row's identity (default: its
        number), of when the truth was known. Each may be left out.

    Raises
    ------
    BadInput
        A named column is not there, or the time column holds no times.
    """
    import polars as pl

    rows = frame if isinstance(frame, pl.DataFrame) else pl.from_pandas(frame)
    for column in filter(None, (label, time, id, known)):
        if column not in rows.columns:
            raise BadInput("column", column, "is not in the frame", near_miss(column, rows.columns))
    if time:
        rows = rows.with_columns(_moments(rows, time))
    if not id:
        rows = rows.with_row_index(ROW)
    taken = {label, time, id or ROW, known}
    start = datetime(1970, 1, 1, tzinfo=UTC)
    times = rows.get_column(time) if time else None
    first, last = (times.min(), times.max()) if times is not None and times.count() else (start, start)
    record = Record(
        id="", project="local", name=name, rows=rows.height, observations=name, id_column=id or ROW, time_column=time,
        inputs=[column for column in rows.columns if column not in taken], features=[], label=label, label_known=known,
        labelled=rows.get_column(label).count() if label else 0, start=first, end=last,  # type: ignore[arg-type]
        content_sha256="", revision=0, batches=[], coverage=[], at=start, origin=Origin(),
    )  # fmt: skip
    return Rows(record, rows)


def _moments(rows: pl.DataFrame, time: str) -> pl.Expr:
    import polars as pl

    dtype = rows.schema[time]
    if dtype == pl.Date:
        return pl.col(time).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    if not isinstance(dtype, pl.Datetime):
        raise BadInput("time column", time, f"holds {dtype}", "make times of it first: pl.col(…).str.to_datetime()")
    plain = pl.col(time).cast(pl.Datetime("us", dtype.time_zone))
    return plain.dt.convert_time_zone("UTC") if dtype.time_zone else plain.dt.replace_time_zone("UTC")
