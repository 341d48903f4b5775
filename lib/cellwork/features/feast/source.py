"""A Feast data source whose rows come from one of our pipelines; Feast's registry keeps the pipeline inside it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from feast import ValueType
from feast.data_source import DataSource
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.repo_config import RepoConfig

from cellwork import clock
from cellwork.errors import BadInput
from cellwork.wire.features import Rolling, Select

VALUE_TYPES = {
    "int64": ValueType.INT64, "int32": ValueType.INT32, "double": ValueType.DOUBLE, "float": ValueType.FLOAT,
    "string": ValueType.STRING, "bool": ValueType.BOOL, "timestamp": ValueType.UNIX_TIMESTAMP,
}  # fmt: skip
"""Arrow's word for a column -> Feast's."""


SCHEDULE = "schedule"
"""The tag that carries a source's schedule through Feast's registry."""


class PipelineSource(DataSource):  # type: ignore[misc]
    """The feature rows that `pipeline` makes of raw batches.

    Parameters
    ----------
    pipeline : `Select` or `Rolling`.
    name : default the name of the rows it reads and a hash of the pipeline; Feast wants it unique in a project.
    schedule : when batches that came become rows: a duration (``6h``) or five cron fields in UTC; default as they come.
    """

    def __init__(self, pipeline: Select | Rolling, *, name: str = "", schedule: str = "", **about: Any) -> None:
        if not isinstance(pipeline, Select | Rolling):
            raise BadInput("pipeline", type(pipeline).__name__, "is not a pipeline", "write Select(…) or Rolling(…)")
        self.pipeline = pipeline
        if schedule:
            clock.next_due(schedule, clock.now())
            about["tags"] = {**(about.get("tags") or {}), SCHEDULE: schedule}
        super().__init__(
            name=name or f"{pipeline.rows}_{hashlib.sha256(msgspec.json.encode(pipeline)).hexdigest()[:8]}",
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
            **about,
        )

    @property
    def schedule(self) -> str:
        return str(self.tags.get(SCHEDULE, ""))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PipelineSource) and super().__eq__(other) and self.pipeline == other.pipeline

    def __hash__(self) -> int:
        return hash(self.name)

    @staticmethod
    def from_proto(data_source: DataSourceProto) -> PipelineSource:
        pipeline = msgspec.json.decode(data_source.custom_options.configuration, type=Select | Rolling)
        return PipelineSource(
            pipeline,
            name=data_source.name,
            description=data_source.description,
            tags=dict(data_source.tags),
            owner=data_source.owner,
        )

    def _to_proto_impl(self) -> DataSourceProto:
        return DataSourceProto(
            name=self.name,
            type=DataSourceProto.CUSTOM_SOURCE,
            data_source_class_type="cellwork.features.feast.PipelineSource",
            timestamp_field=self.timestamp_field,
            created_timestamp_column=self.created_timestamp_column,
            description=self.description,
            tags=self.tags,
            owner=self.owner,
            custom_options=DataSourceProto.CustomSourceOptions(configuration=msgspec.json.encode(self.pipeline)),
        )

    def source_type(self) -> int:
        return int(DataSourceProto.CUSTOM_SOURCE)

    def validate(self, config: RepoConfig) -> None:
        """Take it as it is: the platform checks the pipeline against the raw data when it is applied."""

    @staticmethod
    def source_datatype_to_feast_value_type() -> Callable[[str], ValueType]:
        return lambda name: VALUE_TYPES.get(name, ValueType.UNKNOWN)

    def get_table_column_names_and_types(self, config: RepoConfig) -> Iterable[tuple[str, str]]:
        """Return nothing: a view states its schema, Feast has nothing to infer."""
        return ()

    def get_table_query_string(self) -> str:
        return str(self.name)
