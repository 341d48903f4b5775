"""Outcomes and quality over HTTP."""

from __future__ import annotations

import builtins
from collections.abc import Iterator

from cellwork.client.base import Connection
from cellwork.wire.outcomes import Outcome, OutcomesAnswer, OutcomesRequest, Quality


class Outcomes:
    def __init__(self, connection: Connection) -> None:
        self._to = connection

    def send(self, project: str, outcomes: builtins.list[Outcome]) -> OutcomesAnswer:
        return self._to.call(
            "cellwork", "POST", "/api/v1/outcomes", OutcomesAnswer, OutcomesRequest(project=project, outcomes=outcomes)
        )

    def list(self, endpoint: str, *, prediction: str = "") -> Iterator[Outcome]:
        return self._to.listing("cellwork", "/api/v1/outcomes", Outcome, endpoint=endpoint, prediction=prediction)

    def quality(self, endpoint: str) -> Quality:
        """Quality of the endpoint `project/name` per day and version, over the outcomes that arrived so far."""
        return self._to.call("cellwork", "GET", f"/api/v1/quality/{endpoint}", Quality)
