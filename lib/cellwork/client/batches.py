"""Raw data over HTTP."""

from __future__ import annotations

import builtins
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cellwork.client.base import Connection
from cellwork.wire.batches import Batch, Compacted, Decision, Held, Ingested, RawDataset, Sql
from cellwork.wire.erasures import EraseRequest, Erasure
from cellwork.wire.statistics import Description

if TYPE_CHECKING:
    import polars as pl

    from cellwork.data.sketches import Sketch

PARQUET = "application/vnd.apache.parquet"


class Batches:
    def __init__(self, connection: Connection) -> None:
        self._to = connection

    def declare(self, project: str, dataset: RawDataset) -> RawDataset:
        return self._to.call("cellwork", "PUT", f"/api/v1/raw/{project}/{dataset.name}", RawDataset, dataset)

    def declared(self, project: str) -> builtins.list[RawDataset]:
        return self._to.call("cellwork", "GET", f"/api/v1/raw/{project}", builtins.list[RawDataset])

    def ingest(self, project: str, dataset: str, frame: pl.DataFrame, partition: str) -> Ingested:
        """Send `frame` as the batch `partition`; the same content again is the same batch."""
        import msgspec

        buffer = io.BytesIO()
        frame.write_parquet(buffer, compression="zstd")
        answer = self._to.raw(
            "cellwork", "PUT", f"/api/v1/batches/{project}/{dataset}/{partition}", buffer.getvalue(), PARQUET
        )
        return msgspec.json.decode(answer.content, type=Ingested)

    def list(
        self, project: str, dataset: str = "", *, current: bool = True, prefix: str = "", page: int = 1000
    ) -> Iterator[Batch]:
        """Batches, oldest first.

        Parameters
        ----------
        prefix : only those whose partition key begins so.
        page : how many are asked for at once.
        """
        asked = {"project": project, "dataset": dataset, "current": str(current).lower(), "prefix": prefix}
        return self._to.listing("cellwork", "/api/v1/batches", Batch, **asked, limit=page)

    def get(self, batch: str) -> Batch:
        return self._to.call("cellwork", "GET", f"/api/v1/batches/{batch}", Batch)

    def rows(
        self, project: str, dataset: str, *, batch: str = "", as_of: str = "", limit: int | None = None
    ) -> pl.DataFrame:
        """Return readable rows (sealed columns are null): of all current batches, of one, or as of a batch."""
        import polars as pl

        answer = self._to.raw(
            "cellwork", "GET", f"/api/v1/rows/{project}/{dataset}", batch=batch, as_of=as_of, limit=limit
        )
        return pl.read_parquet(io.BytesIO(answer.content))

    def rejected(self, batch: str) -> pl.DataFrame:
        """Return the rows of a batch that went into quarantine; `_reason` says why."""
        import polars as pl

        answer = self._to.raw("cellwork", "GET", f"/api/v1/batches/{batch}/rejected")
        return pl.read_parquet(io.BytesIO(answer.content))

    def describe(self, project: str, dataset: str, *, batch: str = "", as_of: str = "") -> Description:
        """Return the statistics of all current batches, of one, or as of a batch."""
        path = f"/api/v1/statistics/{project}/raw/{dataset}"
        return self._to.call("cellwork", "GET", path, Description, batch=batch, as_of=as_of)

    def sketch(self, project: str, dataset: str, *, batch: str = "", as_of: str = "") -> Sketch:
        from cellwork.data import sketches

        path = f"/api/v1/sketches/{project}/raw/{dataset}"
        return sketches.unpack(self._to.raw("cellwork", "GET", path, batch=batch, as_of=as_of).content)

    def held(self, project: str, dataset: str) -> builtins.list[Held]:
        return self._to.call("cellwork", "GET", f"/api/v1/held/{project}/{dataset}", builtins.list[Held])

    def release(self, project: str, dataset: str, delivery: str, reason: str) -> Ingested:
        path = f"/api/v1/held/{project}/{dataset}/{delivery}/release"
        return self._to.call("cellwork", "POST", path, Ingested, Decision(reason=reason))

    def discard(self, project: str, dataset: str, delivery: str, reason: str) -> Held:
        path = f"/api/v1/held/{project}/{dataset}/{delivery}/discard"
        return self._to.call("cellwork", "POST", path, Held, Decision(reason=reason))

    def compact(self, project: str, dataset: str) -> Compacted:
        return self._to.call("cellwork", "POST", f"/api/v1/compact/{project}/{dataset}", Compacted)

    def erase(self, project: str, value: str, reason: str) -> Erasure:
        """Erase a subject from data, features and logged predictions; the answer says what was not touched, or that it waits for a service.

        Needs the scope `admin`.
        """
        body = EraseRequest(value=value, reason=reason)
        return self._to.call("cellwork", "POST", f"/api/v1/erasures/{project}", Erasure, body)

    def erasures(self, project: str) -> builtins.list[Erasure]:
        return self._to.call("cellwork", "GET", f"/api/v1/erasures/{project}", builtins.list[Erasure])

    def sql(self, project: str, sql: str, *, as_of: str = "", limit: int = 10_000) -> tuple[pl.DataFrame, bool]:
        """Return rows of one SELECT over a project's raw data sets, and whether there are more than `limit`."""
        import msgspec
        import polars as pl

        body = msgspec.json.encode(Sql(sql=sql, as_of=as_of, limit=limit))
        answer = self._to.raw("cellwork", "POST", f"/api/v1/sql/{project}", body)
        return pl.read_parquet(io.BytesIO(answer.content)), answer.headers.get("x-more") == "true"
