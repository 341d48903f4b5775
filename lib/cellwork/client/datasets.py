"""Datasets over HTTP."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cellwork.client.base import Connection
from cellwork.wire.datasets import Dataset, DatasetRequest, KeptSplit, SplitRequest

if TYPE_CHECKING:
    import polars as pl


class Datasets:
    def __init__(self, connection: Connection) -> None:
        self._to = connection

    def build(self, request: DatasetRequest) -> Dataset:
        """Build it, or return the one that the same request on the same batches made before."""
        return self._to.call("cellwork", "POST", "/api/v1/datasets", Dataset, request)

    def list(self, project: str) -> Iterator[Dataset]:
        return self._to.listing("cellwork", "/api/v1/datasets", Dataset, project=project)

    def get(self, dataset: str) -> Dataset:
        return self._to.call("cellwork", "GET", f"/api/v1/datasets/{dataset}", Dataset)

    def frame(self, dataset: str) -> pl.DataFrame:
        import polars as pl

        return pl.read_parquet(io.BytesIO(self._to.raw("cellwork", "GET", f"/api/v1/datasets/{dataset}/data").content))

    def keep_split(self, dataset: str, request: SplitRequest) -> KeptSplit:
        """Keep it with the dataset; the same split again is the one that is there."""
        return self._to.call("cellwork", "POST", f"/api/v1/datasets/{dataset}/splits", KeptSplit, request)

    def splits(self, dataset: str) -> Iterator[KeptSplit]:
        return self._to.listing("cellwork", f"/api/v1/datasets/{dataset}/splits", KeptSplit)

    def split(self, dataset: str, digest: str) -> KeptSplit:
        return self._to.call("cellwork", "GET", f"/api/v1/datasets/{dataset}/splits/{digest}", KeptSplit)
