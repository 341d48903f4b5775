"""What a Feast data source holds, as feature rows: files by polars, our own sources through the platform (readable rows only)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake
from feast.data_format import DeltaFormat
from feast.data_source import DataSource
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.offline_utils import cast_arrow_table_to_schema

from cellwork import files
from cellwork.errors import BadInput, NotFound
from cellwork.features.feast.source import PipelineSource
from cellwork.features.row import CREATED, EVENT, require

if TYPE_CHECKING:
    from feast.repo_config import RepoConfig


def feature_rows(
    config: RepoConfig,
    source: DataSource,
    keys: Sequence[str],
    fields: Sequence[str],
    *,
    view: str = "",
    times: tuple[str, str | None] | None = None,
) -> pl.LazyFrame:
    """Return keys, fields and both times of the rows of `source`; where it has no arrival, that is the event.

    Parameters
    ----------
    view : the name of the feature view; default: the one of the platform whose pipeline the source carries.
    times : columns of event and arrival. With them `keys` and `fields` are columns of the source; without them they are
        the names that its field mapping gives.
    """
    rows = _read(config, source, view)
    event, created = times or (source.timestamp_field, source.created_timestamp_column)
    if times is None:
        renamed = {old: new for old, new in source.field_mapping.items() if old != new}
        rows = rows.rename(renamed, strict=False)
        event, created = renamed.get(event, event), renamed.get(created, created)
    there = rows.collect_schema()
    wanted = [*keys, *fields]
    require(f"source {source.name!r}", there.to_frame(), [*wanted, event, *([created] if created else [])])
    known = pl.coalesce(_time(there, created), _time(there, event)) if created else _time(there, event)
    return rows.select(*wanted, _time(there, event).alias(EVENT), known.alias(CREATED)).drop_nulls(EVENT)


def _read(config: RepoConfig, source: DataSource, view: str) -> pl.LazyFrame:
    if isinstance(source, PipelineSource):
        from cellwork.client import connect

        features = connect().features
        return features.rows(config.project, view or _view_of(config.project, source)).lazy()
    if not isinstance(source, FileSource):
        raise BadInput(
            f"source {source.name!r}", type(source).__name__, "is not read by Cellwork's offline store",
            "use a PipelineSource or a FileSource",
        )  # fmt: skip
    path = str(FileSource.get_uri_for_file_path(repo_path=config.repo_path, uri=source.path)).removeprefix("file://")
    options = {"AWS_ENDPOINT_URL": source.s3_endpoint_override} if source.s3_endpoint_override else None
    try:
        if isinstance(source.file_format, DeltaFormat):
            return pl.scan_delta(path, storage_options=options)
        return pl.scan_parquet(path, storage_options=options, hive_partitioning=True, glob=True)
    except (FileNotFoundError, OSError) as error:
        raise NotFound(f"file of source {source.name!r}", path, str(error), "look at its path") from None


def _view_of(project: str, source: PipelineSource) -> str:
    from cellwork.client import connect

    for view in connect().features.definitions(project).views:
        if view.pipeline == source.pipeline:
            return view.name
    raise NotFound(f"view of project {project!r}", source.name, "has no such pipeline", "apply the definitions again")


def _time(there: pl.Schema, column: str) -> pl.Expr:
    """Return a time in UTC: one without a zone is taken as UTC, as Feast does."""
    dtype, expression = there[column], pl.col(column)
    if dtype == pl.String:
        return expression.str.to_datetime(time_unit="us", time_zone="UTC")
    if dtype == pl.Date:
        return expression.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is None:
        return expression.dt.replace_time_zone("UTC")
    return expression.dt.convert_time_zone("UTC")


def within(rows: pl.LazyFrame, start: datetime | None, end: datetime | None) -> pl.LazyFrame:
    """Return the rows with start <= event <= end; a time without a zone is UTC."""
    for limit, keep in ((start, pl.col(EVENT).__ge__), (end, pl.col(EVENT).__le__)):
        if limit is not None:
            rows = rows.filter(keep(pl.lit(utc(limit))))
    return rows


def utc(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def append(config: RepoConfig, source: FileSource, table: pa.Table) -> None:
    """Add the rows of `table`, in the types of the file of `source`; a parquet file is replaced by a longer one in one step."""
    path = Path(
        str(FileSource.get_uri_for_file_path(repo_path=config.repo_path, uri=source.path)).removeprefix("file://")
    )
    if isinstance(source.file_format, DeltaFormat):
        there = pa.schema(DeltaTable(path).schema().to_arrow())
        write_deltalake(path, cast_arrow_table_to_schema(table, there), mode="append")
        return
    before = pq.read_table(path)
    whole = pa.concat_tables([before, cast_arrow_table_to_schema(table, before.schema)])
    sink = pa.BufferOutputStream()
    pq.write_table(whole, sink)
    files.write(path, sink.getvalue().to_pybytes())
