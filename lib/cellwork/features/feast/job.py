"""What `get_historical_features` gives: a job that joins when it is asked for, and then tells its coverage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from feast.data_format import DeltaFormat
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import FileSource, SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.saved_dataset import SavedDatasetStorage

from cellwork.errors import BadInput
from cellwork.wire.datasets import Coverage

Made = tuple[pa.Table, list[Coverage]]


class Retrieval(RetrievalJob):  # type: ignore[misc]
    """Rows of the offline store, made by `make` once, when they are first asked for."""

    def __init__(
        self,
        make: Callable[[], Made],
        *,
        full_feature_names: bool = False,
        on_demand: list[OnDemandFeatureView] | None = None,
        metadata: RetrievalMetadata | None = None,
        repo_path: str = "",
    ) -> None:
        self._make, self._made = make, None
        self._full_feature_names, self._on_demand, self._metadata = full_feature_names, on_demand or [], metadata
        self._repo_path = repo_path

    _made: Made | None

    @property
    def coverage(self) -> list[Coverage]:
        """How many entity rows found a value in each view, why others did not, and how old the values were."""
        return self._rows()[1]

    def _rows(self) -> Made:
        if self._made is None:
            self._made = self._make()
        return self._made

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._rows()[0]

    def _to_df_internal(self, timeout: int | None = None) -> Any:
        return self._rows()[0].to_pandas()

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Keep the rows as the parquet file of `storage`.

        Raises
        ------
        SavedDatasetLocationAlreadyExists
            There is a file, and it may not be overwritten.
        """
        if not isinstance(storage, SavedDatasetFileStorage):
            raise BadInput("storage", type(storage).__name__, "is not a file", "use SavedDatasetFileStorage")
        uri = storage.file_options.uri
        path = str(FileSource.get_uri_for_file_path(repo_path=self._repo_path, uri=uri)).removeprefix("file://")
        if Path(path).exists() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=uri)
        table = self.to_arrow()
        if not isinstance(storage.file_options.file_format, DeltaFormat):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            (pq.write_table if path.endswith(".parquet") else pq.write_to_dataset)(table, path)
        else:
            pl.from_arrow(table).write_delta(path, mode="overwrite" if allow_overwrite else "error")  # type: ignore[union-attr]
