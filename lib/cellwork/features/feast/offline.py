"""Feast's offline store on our point-in-time join: every entity row comes out once, in its order.

`feature_store.yaml`::

    offline_store:
      type: cellwork.features.feast.OfflineStore

Values count from their arrival on, unless `arrival: false`. Times without a zone are UTC, as everywhere in Feast.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from feast.data_source import DataSource
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, FeatureView
from feast.infra.offline_stores import offline_store as feasts
from feast.infra.offline_stores import offline_utils
from feast.infra.offline_stores.file_source import FileLoggingDestination, FileSource
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.utils import compute_non_entity_date_range

from cellwork.errors import BadInput
from cellwork.features import history
from cellwork.features.feast import rows as source_rows
from cellwork.features.feast.job import Made, Retrieval
from cellwork.features.feast.source import PipelineSource
from cellwork.features.row import CREATED, EVENT
from cellwork.wire.features import PushRequest, Select, View

AT = "_cellwork_at"


class OfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    type: Literal["cellwork.features.feast.OfflineStore"] = "cellwork.features.feast.OfflineStore"
    arrival: bool = True
    """Whether a value counts from its arrival (created) on, not only from its event."""
    memory_mb: int | None = None
    """What a join may take; None is no limit."""


class OfflineStore(feasts.OfflineStore):  # type: ignore[misc]
    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        **times: datetime | None,
    ) -> RetrievalJob:
        """Return a job that joins the features to `entity_df`; without one, to every entity seen in the time asked for."""
        if isinstance(entity_df, str):
            raise BadInput("entity_df", entity_df[:40], "is SQL", "run it and pass its data frame")
        found = (
            compute_non_entity_date_range(
                feature_views, start_date=times.get("start_date"), end_date=times.get("end_date")
            )
            if entity_df is None
            else None
        )
        if entity_df is None:
            assert found is not None
            entity_df = _everyone(config, feature_views, *found)
        column = offline_utils.infer_event_timestamp_from_entity_df(
            dict(zip(entity_df.columns, entity_df.dtypes, strict=True))
        )
        asked = Asked(entity_df, column)
        arrival = config.offline_store.arrival or filter_by_created_timestamp
        return Retrieval(
            lambda: _joined(config, feature_views, feature_refs, asked, full_names=full_feature_names, arrival=arrival),
            full_feature_names=full_feature_names,
            on_demand=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            metadata=RetrievalMetadata(
                features=feature_refs, keys=[name for name in entity_df.columns if name != column],
                min_event_timestamp=found[0] if found else asked.span()[0], max_event_timestamp=found[1] if found else asked.span()[1],
            ),
            repo_path=str(config.repo_path),
        )  # fmt: skip

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """Return the newest row of each entity with an event from `start_date` to `end_date`."""

        def newest() -> pl.DataFrame:
            rows = source_rows.feature_rows(
                config,
                data_source,
                join_key_columns,
                feature_name_columns,
                times=(timestamp_field, created_timestamp_column),
            )
            known = source_rows.within(rows, start_date, end_date)
            ordered = known.sort(EVENT, CREATED, maintain_order=True)
            if not join_key_columns:
                return ordered.tail(1).collect()
            return ordered.group_by(join_key_columns, maintain_order=True).last().collect()

        return _plain(config, newest, join_key_columns, feature_name_columns, timestamp_field, created_timestamp_column)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Return all rows with an event from `start_date` to `end_date`."""

        def every() -> pl.DataFrame:
            rows = source_rows.feature_rows(
                config,
                data_source,
                join_key_columns,
                feature_name_columns,
                times=(timestamp_field, created_timestamp_column),
            )
            return source_rows.within(rows, start_date, end_date).collect()

        return _plain(config, every, join_key_columns, feature_name_columns, timestamp_field, created_timestamp_column)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Add rows: to the platform's table of the view by a push, or to the file of its source."""
        source = feature_view.batch_source
        if isinstance(source, PipelineSource):
            from cellwork.client import connect

            connect().features.push(feature_view.name, PushRequest(project=config.project, rows=_said(table)))
        elif isinstance(source, FileSource):
            _, names = offline_utils.get_pyarrow_schema_from_batch_source(config, source)
            if names != table.column_names:
                raise ValueError(
                    f"rows for view {feature_view.name!r} have the columns {table.column_names}, in this order; the source has {names}"
                )
            source_rows.append(config, source, table)
        if progress:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Add a log of served features to the folder of its destination, one new file a call."""
        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination):
            raise BadInput(
                "logging destination", type(destination).__name__, "is not a folder", "use FileLoggingDestination"
            )
        table = pq.read_table(data) if isinstance(data, Path) else data
        pq.write_to_dataset(
            table, destination.path, partition_cols=destination.partition_by or None, basename_template=f"{uuid.uuid4().hex}-{{i}}.parquet",
        )  # fmt: skip


class Asked:
    """The entity rows of a call: as they came, and what the join needs of them."""

    def __init__(self, frame: pd.DataFrame, column: str) -> None:
        self.frame, self.column = frame, column
        times = frame[column]
        if not isinstance(times.dtype, pd.DatetimeTZDtype) and times.dtype != "datetime64[ns]":
            times = times.map(_aware)  # mixed zones come as objects, one each
        self.times = pd.to_datetime(times, utc=True)

    def span(self) -> tuple[Any, Any]:
        return self.times.min(), self.times.max()

    def questions(self, keys: Sequence[str]) -> pl.DataFrame:
        """Return the time and the columns `keys`. A column that only entityless views have is made up."""
        columns = {}
        for key in keys:
            there = self.frame[key] if key in self.frame.columns else None
            if there is None and key != DUMMY_ENTITY_ID:
                raise BadInput(
                    "entity_df",
                    key,
                    "is a join key it lacks",
                    f"add it; it has: {', '.join(map(str, self.frame.columns))}",
                )
            columns[key] = (
                pl.repeat("", len(self.frame), eager=True)
                if there is None
                else pl.Series(key, pa.array(there, from_pandas=True))
            )
        at = pl.Series(AT, pa.array(self.times)).dt.replace_time_zone(None).dt.replace_time_zone("UTC")
        return pl.DataFrame({AT: at, **columns})

    def table(self) -> pa.Table:
        return pa.Table.from_pandas(self.frame.assign(**{self.column: self.times}), preserve_index=False)


def _aware(at: Any) -> Any:
    at = pd.Timestamp(at)
    return at.tz_localize(UTC) if at is not pd.NaT and at.tzinfo is None else at if at is pd.NaT else at.tz_convert(UTC)


def _joined(
    config: RepoConfig, views: list[FeatureView], refs: list[str], asked: Asked, *, full_names: bool, arrival: bool
) -> Made:
    """Return the entity rows with their features, under the names Feast gives them, and the coverage."""
    wanted = {number: _wanted(config, view, refs, number) for number, view in enumerate(views)}
    keys = list(dict.fromkeys(column for view in wanted.values() for column in view.keys.values()))
    memory = config.offline_store.memory_mb
    frame, coverage = history.join(
        asked.questions(keys),
        at=AT,
        views=list(wanted.values()),
        arrival=arrival,
        memory=memory * 10**6 if memory else None,
    )
    table = asked.table()
    for number, view in enumerate(views):
        prefix = view.projection.name_alias or view.name
        coverage[number].view = prefix
        for field in wanted[number].fields:
            name = f"{prefix}__{field}" if full_names else field
            column = frame.get_column(f"{wanted[number].view.name}__{field}").to_arrow(
                compat_level=pl.CompatLevel.oldest()
            )
            table = (
                table.append_column(name, column)
                if name not in table.column_names
                else table.set_column(table.column_names.index(name), name, column)
            )
    return table, coverage


def _wanted(config: RepoConfig, view: FeatureView, refs: list[str], number: int) -> history.JoinView:
    prefix = view.projection.name_to_use()
    fields = list(dict.fromkeys(ref.split(":", 1)[1] for ref in refs if ref.split(":", 1)[0] in (prefix, f"{prefix}")))
    keys = {entity.name: view.projection.join_key_map.get(entity.name, entity.name) for entity in view.entity_columns}
    real = [key for key in keys if key != DUMMY_ENTITY_ID]
    rows = source_rows.feature_rows(config, view.batch_source, real, fields, view=view.name)
    if not real:  # an entityless view has one entity, the same for every row
        keys = {DUMMY_ENTITY_ID: DUMMY_ENTITY_ID}
        rows = rows.with_columns(pl.lit("").alias(DUMMY_ENTITY_ID))
    seconds = -(-view.ttl.total_seconds() // 1) if view.ttl else 0
    about = View(
        name=f"{number}_{view.name}", entities=[], fields=[], pipeline=Select(rows="", event="", known=""),
        ttl=f"{seconds:.0f}s" if seconds else "",
    )  # fmt: skip
    return history.JoinView(about, keys, fields, rows)


def _everyone(config: RepoConfig, views: list[FeatureView], start: datetime, end: datetime) -> pd.DataFrame:
    """Return an entity row for every entity and event from `start` to `end` that a view has; one at the end if none has entities."""
    time, frames = offline_utils.DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL, []
    for view in views:
        keys = [entity.name for entity in view.entity_columns if entity.name != DUMMY_ENTITY_ID]
        if keys:
            rows = source_rows.feature_rows(config, view.batch_source, keys, [], view=view.name)
            named = [pl.col(key).alias(view.projection.join_key_map.get(key, key)) for key in keys]
            at = pl.col(EVENT).dt.cast_time_unit("us").alias(time)
            frames.append(source_rows.within(rows, start, end).select(*named, at).collect())
    if not frames:
        return pd.DataFrame({time: [pd.Timestamp(source_rows.utc(end))]})
    return pl.concat(frames, how="diagonal_relaxed").unique(maintain_order=True).to_pandas()


def _plain(
    config: RepoConfig,
    make: Callable[[], pl.DataFrame],
    keys: list[str],
    fields: list[str],
    event: str,
    created: str | None,
) -> Retrieval:
    """Return a job of rows under the source's own names of both times."""

    def table() -> Made:
        rows = make()
        times = [pl.col(EVENT).alias(event), *([pl.col(CREATED).alias(created)] if created else [])]
        return rows.select(*keys, *fields, *times).to_arrow(compat_level=pl.CompatLevel.oldest()), []

    return Retrieval(table, repo_path=str(config.repo_path))


def _said(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of `table` with their times as text."""
    rows: list[dict[str, Any]] = table.to_pylist()
    return [
        {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}
        for row in rows
    ]
