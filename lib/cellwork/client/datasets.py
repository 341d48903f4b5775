"""Datasets over HTTP."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cellwork.client.base import Connection
from cellwork.wire.datasets import BuildStatus, Dataset, DatasetRequest, Estimate, KeptSplit, SplitRequest

if TYPE_CHECKING:
    import polars as pl


class Datasets:
    def __init__(self, connection: Connection) -> None:
        self._to = connection

    def build(self, request: DatasetRequest) -> Dataset:
        """Build it, or return the one that the same request on the same batches made before."""
        return self._to.call("cellwork", "POST", "/api/v1/datasets", Dataset, request)

    def estimate(self, request: DatasetRequest, *, memory_mb: int | None = None) -> Estimate:
        """Return what building it will take; nothing is built."""
        path = "/api/v1/datasets/estimate"
        return self._to.call("cellwork", "POST", path, Estimate, request, memory_mb=memory_mb)

    def start_build(self, request: DatasetRequest, *, memory_mb: int | None = None) -> BuildStatus:
        """Ask for it to be built in the background, in at most so much memory."""
        path = "/api/v1/dataset-builds"
        return self._to.call("cellwork", "POST", path, BuildStatus, request, memory_mb=memory_mb)

    def build_status(self, build: str) -> BuildStatus:
        return self._to.call("cellwork", "GET", f"/api/v1/dataset-builds/{build}", BuildStatus)

    def cancel_build(self, build: str) -> BuildStatus:
        """Stop it at its next step; what is stored already stays."""
        return self._to.call("cellwork", "DELETE", f"/api/v1/dataset-builds/{build}", BuildStatus)

    def list(self, project: str) -> Iterator[Dataset]:
        return self._to.listing("cellwork", "/api/v1/datasets", Dataset, project=project, limit=1000)

    def get(self, dataset: str) -> Dataset:
        return self._to.call("cellwork", "GET", f"/api/v1/datasets/{dataset}", Dataset)

    def frame(self, dataset: str) -> pl.DataFrame:
        import polars as pl

        return pl.read_parquet(io.BytesIO(self._to.raw("cellwork", "GET", f"/api/v1/datasets/{dataset}/data").content))

    def save(self, dataset: str, file: Path) -> None:
        """Write its rows to the Parquet file `file`; they are never in memory all at once."""
        self._to.save("cellwork", f"/api/v1/datasets/{dataset}/data", file)

    def keep_split(self, dataset: str, request: SplitRequest) -> KeptSplit:
        """Keep it with the dataset; the same split again is the one that is there."""
        return self._to.call("cellwork", "POST", f"/api/v1/datasets/{dataset}/splits", KeptSplit, request)

    def splits(self, dataset: str) -> Iterator[KeptSplit]:
        return self._to.listing("cellwork", f"/api/v1/datasets/{dataset}/splits", KeptSplit, limit=1000)

    def split(self, dataset: str, digest: str) -> KeptSplit:
        return self._to.call("cellwork", "GET", f"/api/v1/datasets/{dataset}/splits/{digest}", KeptSplit)
