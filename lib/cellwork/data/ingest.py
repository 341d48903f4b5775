"""Raw data from a notebook or the command line: send batches, read them back. All over HTTP, as whoever asks.

A name is ``flights`` (of the project of the current folder) or ``project/flights``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellwork import ids
from cellwork import project as projects
from cellwork.client import connect
from cellwork.data import sources
from cellwork.data.delivery import partition_key
from cellwork.errors import BadInput, NotFound
from cellwork.wire.batches import Batch, Held, Ingested, RawDataset
from cellwork.wire.statistics import Description

if TYPE_CHECKING:
    import polars as pl

    from cellwork.data.sources import Source


def located(name: str, project: str | None = None) -> tuple[str, str]:
    """Return project and name of a full or short name; a short one belongs to `project` or to the current folder's."""
    if "/" in name:
        return ids.split_name(name)
    return (ids.name(project, "project") if project else projects.find().name), ids.name(name)


def ingest(
    dataset: str,
    source: Source,
    partition: str,
    *,
    project: str | None = None,
    nulls: Sequence[str] = ("",),
    types: Mapping[str, str] | None = None,
) -> Ingested:
    """Send `source` as the batch of `partition`; the same content again is the same batch, other content corrects it.

    Parameters
    ----------
    source : a polars or pandas frame, or the path or URL (fsspec's) of a CSV, JSON lines or parquet file, compressed or not.
    partition : what it is the data of, such as ``2013-01`` or ``2013-12-24``.
    nulls : texts of a CSV file that stand for a missing value, e.g. ``["", "NA"]``.
    types : column -> Arrow type text such as ``string``, for CSV and JSON lines; the pinned schema is used where there is one.

    Raises
    ------
    BadInput
        Nothing of it was taken; the message names the column, what came and what was expected.
    """
    space, name = located(dataset, project)
    partition_key(partition)
    known = {**({} if hasattr(source, "columns") else pinned(space, name)), **(types or {})}
    frame = sources.read(source, nulls=nulls, known=known)
    return connect().batches.ingest(space, name, frame, partition)


def partition_of(file: str | Path) -> str:
    """Return the partition that a file's name tells: ``flights-2013-01.csv.gz`` is ``flights-2013-01``."""
    name = Path(str(file)).name
    endings = {*sources.FORMATS, *sources.COMPRESSED}
    while Path(name).suffix.lower() in endings:
        name = Path(name).stem
    return partition_key(name)


def ingest_folder(dataset: str, folder: str | Path, *, project: str | None = None, **reading: Any) -> list[Ingested]:
    """Send each data file of `folder` as the batch that its name tells, in the order of their names.

    Parameters
    ----------
    reading : `nulls` and `types`, as for `ingest`.

    Raises
    ------
    BadInput
        There is no data file, or one can't be taken; those before it were.
    """
    found = data_files(Path(folder))
    if not found:
        raise BadInput("folder", folder, "holds no data file", f"files end with {', '.join(sources.FORMATS)}")
    return [ingest(dataset, file, partition_of(file), project=project, **reading) for file in found]


def data_files(folder: Path) -> list[Path]:
    """Return the files of `folder` whose names tell a format, by name; hidden ones are somebody's unfinished business."""
    if not folder.is_dir():
        raise NotFound("folder", folder, "does not exist", "check the path")
    endings = (*sources.FORMATS, *(f"{a}{b}" for a in sources.FORMATS for b in sources.COMPRESSED), ".zip")
    return sorted(f for f in folder.iterdir() if f.is_file() and f.name.lower().endswith(endings) and f.name[0] != ".")


def pinned(project: str, dataset: str) -> dict[str, str]:
    """Return column -> type of the data set's newest batch; empty if it has none."""
    try:
        newest = max(connect().batches.list(project, dataset), key=lambda batch: batch.seq, default=None)
    except NotFound:
        return {}
    return {column.name: column.type for column in newest.columns} if newest else {}


def rows(
    dataset: str, *, batch: str = "", as_of: str = "", limit: int | None = None, project: str | None = None
) -> pl.DataFrame:
    """Return readable rows (what is sealed is null) of all current batches, of one, or as they were when `as_of` was the newest."""
    space, name = located(dataset, project)
    return connect().batches.rows(space, name, batch=batch, as_of=as_of, limit=limit)


def batches(dataset: str, *, current: bool = True, project: str | None = None) -> list[Batch]:
    """Return the batches of a data set, oldest first; with `current=False` those that were corrected too."""
    space, name = located(dataset, project)
    return list(connect().batches.list(space, name, current=current))


def rejected(batch: str) -> pl.DataFrame:
    """Return the rows of a batch that went into quarantine; `_reason` says why."""
    return connect().batches.rejected(batch)


def describe(
    dataset: str, *, batch: str = "", as_of: str = "", view: bool = False, project: str | None = None
) -> Description:
    """Return the statistics of a raw data set, or with `view` of a feature view, merged from those of its batches.

    Parameters
    ----------
    batch, as_of : of a raw data set: only this batch; or those current when this batch was the newest, or at this time.
    """
    space, name = located(dataset, project)
    if view:
        return connect().features.describe(space, name)
    return connect().batches.describe(space, name, batch=batch, as_of=as_of)


def sql(statement: str, *, as_of: str = "", limit: int = 10_000, project: str | None = None) -> pl.DataFrame:
    """Return at most `limit` rows of one SELECT (DuckDB's SQL) over the project's raw data sets, tables of their names.

    Parameters
    ----------
    as_of : see the batches that were current when this batch was the newest, or at this time.
    """
    space, _ = located("any", project)
    return connect().batches.sql(space, statement, as_of=as_of, limit=limit)[0]


def held(dataset: str, *, project: str | None = None) -> list[Held]:
    """Return the deliveries that a check held back and nobody decided on."""
    return connect().batches.held(*located(dataset, project))


def release(dataset: str, delivery: str, reason: str, *, project: str | None = None) -> Ingested:
    """Publish a held delivery whole, whatever the checks say; `reason` goes into the audit."""
    return connect().batches.release(*located(dataset, project), delivery, reason)


def discard(dataset: str, delivery: str, reason: str, *, project: str | None = None) -> Held:
    """Drop a held delivery; `reason` goes into the audit."""
    return connect().batches.discard(*located(dataset, project), delivery, reason)


def declare(dataset: RawDataset, *, project: str | None = None) -> RawDataset:
    """Say what a raw data set is: its key, description, owner and what is sealed in it. Saying it twice changes nothing."""
    space, _ = located(dataset.name, project)
    return connect().batches.declare(space, dataset)
