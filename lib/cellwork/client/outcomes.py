"""Outcomes and quality over HTTP."""

from __future__ import annotations

import builtins
import io
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from cellwork.client.base import Connection
from cellwork.client.batches import PARQUET
from cellwork.wire.business import BusinessMetric, Feedback, FeedbackRequest, MetricRequest
from cellwork.wire.outcomes import Outcome, OutcomesAnswer, OutcomesRequest, Quality

if TYPE_CHECKING:
    import polars as pl


class Outcomes:
    def __init__(self, connection: Connection) -> None:
        self._to = connection

    def send(self, project: str, outcomes: builtins.list[Outcome]) -> OutcomesAnswer:
        return self._to.call(
            "cellwork", "POST", "/api/v1/outcomes", OutcomesAnswer, OutcomesRequest(project=project, outcomes=outcomes)
        )

    def load(self, endpoint: str, frame: pl.DataFrame) -> OutcomesAnswer:
        """Send a frame of ``observation`` (or ``prediction``), ``value``, ``observed_at`` and, if known, ``arrived_at`` and ``source``."""
        buffer = io.BytesIO()
        frame.write_parquet(buffer, compression="zstd")
        answer = self._to.raw("cellwork", "PUT", f"/api/v1/outcomes/{endpoint}", buffer.getvalue(), PARQUET)
        return msgspec.json.decode(answer.content, type=OutcomesAnswer)

    def list(self, endpoint: str, *, prediction: str = "") -> Iterator[Outcome]:
        return self._to.listing("cellwork", "/api/v1/outcomes", Outcome, endpoint=endpoint, prediction=prediction)

    def joined(self, endpoint: str, *, start: datetime | None = None, end: datetime | None = None) -> pl.DataFrame:
        """Return predictions with their outcomes: prediction, observation, model, version, at, score, outcome, arrived_at."""
        import polars as pl

        asked = {"start": start and start.isoformat(), "end": end and end.isoformat()}
        answer = self._to.raw("cellwork", "GET", f"/api/v1/joined/{endpoint}", **asked)
        return pl.read_parquet(io.BytesIO(answer.content))

    def keep_metric(self, endpoint: str, name: str, request: MetricRequest) -> BusinessMetric:
        return self._to.call("cellwork", "PUT", f"/api/v1/metrics/{endpoint}/{name}", BusinessMetric, request)

    def metrics(self, endpoint: str) -> builtins.list[BusinessMetric]:
        """The business metrics of an endpoint, see `cellwork.monitoring.business`."""
        return self._to.call("cellwork", "GET", f"/api/v1/metrics/{endpoint}", builtins.list[BusinessMetric])

    def say(self, request: FeedbackRequest) -> Feedback:
        """Say that a prediction was wrong, or right, and what was true."""
        return self._to.call("cellwork", "POST", "/api/v1/feedback", Feedback, request)

    def feedback(self, endpoint: str, *, limit: int = 100) -> builtins.list[Feedback]:
        """What was said of an endpoint's predictions, newest first."""
        return self._to.call("cellwork", "GET", f"/api/v1/feedback/{endpoint}", builtins.list[Feedback], limit=limit)

    def quality(self, endpoint: str, *, as_of: str = "") -> Quality:
        """Quality of the endpoint `project/name` per day and version, over the outcomes that arrived so far, or until `as_of`."""
        return self._to.call("cellwork", "GET", f"/api/v1/quality/{endpoint}", Quality, as_of=as_of)
