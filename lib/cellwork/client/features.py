"""Features over HTTP."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from cellwork import errors
from cellwork.client.base import Connection
from cellwork.wire.datasets import Estimate
from cellwork.wire.features import (
    Applied,
    Definitions,
    HistoryStatus,
    Materialized,
    MaterializeRequest,
    OnlineAnswer,
    OnlineRequest,
    PipelineRun,
    Proposal,
    PushRequest,
    Streamed,
)
from cellwork.wire.statistics import Description
from cellwork.wire.transformers import Transformer

if TYPE_CHECKING:
    import polars as pl

    from cellwork.data.sketches import Sketch


class Features:
    def __init__(self, connection: Connection) -> None:
        self._to = connection

    def apply(self, definitions: Definitions) -> Applied:
        return self._to.call("cellwork", "PUT", f"/api/v1/features/{definitions.project}", Applied, definitions)

    def definitions(self, project: str, revision: int | None = None) -> Definitions:
        return self._to.call("cellwork", "GET", f"/api/v1/features/{project}", Definitions, revision=revision)

    def proposals(self, project: str) -> list[Proposal]:
        return self._to.call("cellwork", "GET", f"/api/v1/features/{project}/proposals", list[Proposal])

    def decide(self, project: str, proposal: str, *, accept: bool) -> Proposal:
        path = f"/api/v1/features/{project}/proposals/{proposal}/{'accept' if accept else 'reject'}"
        return self._to.call("cellwork", "POST", path, Proposal)

    def registry(self, project: str) -> bytes:
        """Return Feast's registry of the project, as its protobuf."""
        return self._to.raw("cellwork", "GET", f"/api/v1/features/{project}/registry").content

    def keep_registry(self, project: str, registry: bytes) -> None:
        """Keep Feast's registry as it moved; definitions do not change by it."""
        self._to.raw("cellwork", "PUT", f"/api/v1/features/{project}/registry", registry, "application/x-protobuf")

    def runs(self, project: str, *, view: str = "", batch: str = "", state: str = "") -> Iterator[PipelineRun]:
        return self._to.listing(
            "cellwork", f"/api/v1/features/{project}/runs", PipelineRun, view=view, batch=batch, state=state, limit=1000
        )

    def run(self, project: str, view: str) -> int:
        """Queue the runs of `view` that failed or wait for its schedule; return how many."""
        return self._to.call("cellwork", "POST", f"/api/v1/features/{project}/views/{view}/run", int)

    def wait(self, project: str, *, timeout: float = 300, progress: Callable[[int], None] | None = None) -> None:
        """Return when no pipeline run of `project` is queued or running.

        Raises
        ------
        Unavailable
            It took longer than `timeout` seconds, or a view waits for the first batch of a source.
        Conflict
            A pipeline run failed; the message is its own.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            pending = sum(1 for state in ("queued", "running") for _ in self.runs(project, state=state))
            if progress:
                progress(pending)
            if not pending:
                break
            time.sleep(0.2)
        else:
            raise errors.Unavailable(
                "feature pipelines", project, f"did not finish in {timeout:.0f} s", "look at: cellwork feature runs"
            )
        failed = list(self.runs(project, state="failed"))
        if failed:
            raise errors.Conflict(
                f"feature pipeline of view {failed[0].view!r}",
                failed[0].batch,
                failed[0].error,
                "mend the definition and apply it again",
            )
        for run in self.runs(project, state="waiting"):
            raise errors.Unavailable(
                f"feature view {run.view!r}", "", run.error, "ingest one; the pipelines then go on by themselves"
            )

    def rows(self, project: str, view: str, *, batch: str = "", limit: int | None = None) -> pl.DataFrame:
        import polars as pl

        answer = self._to.raw(
            "cellwork", "GET", f"/api/v1/features/{project}/views/{view}/rows", batch=batch, limit=limit
        )
        return pl.read_parquet(io.BytesIO(answer.content))

    def push(self, view: str, request: PushRequest) -> int:
        """Return the number of rows taken."""
        return self._to.call("cellwork", "POST", f"/api/v1/push/{view}", int, request)

    def stream(
        self, project: str, dataset: str, events: Sequence[Mapping[str, Any]] | pl.DataFrame, *, delivery: str = ""
    ) -> Streamed:
        """Push events to a raw data set: they are a batch, and counted online at once.

        Parameters
        ----------
        delivery : name of the batch, at most 64 characters; default one made from the events, so that the same ones again
            change nothing. What may be sent again must have the name it had.
        """
        path, kind = f"/api/v1/streams/{project}/{dataset}", "application/vnd.apache.parquet"
        buffer = io.BytesIO()
        if isinstance(events, Sequence):
            kind = "application/x-ndjson"
            buffer.write(msgspec.json.Encoder().encode_lines(events))
        else:
            events.write_parquet(buffer, compression="zstd")
        answer = self._to.raw("cellwork", "POST", path, buffer.getvalue(), kind, delivery=delivery)
        return msgspec.json.decode(answer.content, type=Streamed)

    def online(self, project: str, features: list[str], entities: dict[str, list[Any]]) -> OnlineAnswer:
        request = OnlineRequest(project=project, features=features, entities=entities)
        return self._to.call("cellwork", "POST", "/api/v1/online/read", OnlineAnswer, request)

    def describe(self, project: str, view: str) -> Description:
        """Return the statistics of the readable rows of a view."""
        return self._to.call("cellwork", "GET", f"/api/v1/statistics/{project}/features/{view}", Description)

    def sketch(self, project: str, view: str) -> Sketch:
        from cellwork.data import sketches

        return sketches.unpack(self._to.raw("cellwork", "GET", f"/api/v1/sketches/{project}/features/{view}").content)

    def materialize(self, request: MaterializeRequest) -> list[Materialized]:
        return self._to.call("cellwork", "POST", "/api/v1/online/materialize", list[Materialized], request)

    def start_join(
        self, project: str, rows: bytes, *, features: list[str], at: str, arrival: bool, late: bool,
        memory_mb: int | None,
    ) -> HistoryStatus:  # fmt: skip
        """Ask for a point-in-time join of `rows` (parquet)."""
        asked = {"arrival": str(arrival).lower(), "late": str(late).lower(), "memory_mb": memory_mb}
        answer = self._join(f"/api/v1/history/{project}", rows, features=",".join(features), at=at, **asked)
        return msgspec.json.decode(answer, type=HistoryStatus)

    def estimate_join(
        self, project: str, rows: bytes, *, features: list[str], at: str, memory_mb: int | None
    ) -> Estimate:
        """Return what a join of `rows` (parquet) will take; nothing is joined."""
        path = f"/api/v1/history/{project}/estimate"
        answer = self._join(path, rows, features=",".join(features), at=at, memory_mb=memory_mb)
        return msgspec.json.decode(answer, type=Estimate)

    def _join(self, path: str, rows: bytes, **query: Any) -> bytes:
        return self._to.raw("cellwork", "POST", path, rows, "application/vnd.apache.parquet", **query).content

    def join_status(self, project: str, join: str) -> HistoryStatus:
        return self._to.call("cellwork", "GET", f"/api/v1/history/{project}/{join}", HistoryStatus)

    def join_rows(self, project: str, join: str) -> pl.DataFrame:
        import polars as pl

        return pl.read_parquet(
            io.BytesIO(self._to.raw("cellwork", "GET", f"/api/v1/history/{project}/{join}/data").content)
        )

    def cancel_join(self, project: str, join: str) -> HistoryStatus:
        return self._to.call("cellwork", "DELETE", f"/api/v1/history/{project}/{join}", HistoryStatus)

    def keep_transformer(self, project: str, transformer: Transformer) -> Transformer:
        return self._to.call("cellwork", "PUT", f"/api/v1/transformers/{project}", Transformer, transformer)

    def transformers(self, project: str) -> list[Transformer]:
        return self._to.call("cellwork", "GET", f"/api/v1/transformers/{project}", list[Transformer])

    def transformer(self, project: str, transformer: str) -> Transformer:
        return self._to.call("cellwork", "GET", f"/api/v1/transformers/{project}/{transformer}", Transformer)
