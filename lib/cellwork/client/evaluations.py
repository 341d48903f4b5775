"""Evaluations over HTTP."""

from __future__ import annotations

from collections.abc import Iterator

from cellwork.client.base import Connection
from cellwork.wire.cards import Card
from cellwork.wire.evaluations import Evaluation, EvaluationRequest


class Evaluations:
    def __init__(self, connection: Connection) -> None:
        self._to = connection

    def evaluate(self, request: EvaluationRequest) -> Evaluation:
        return self._to.call("cellwork", "POST", "/api/v1/evaluations", Evaluation, request)

    def list(self, name: str, version: int | None = None) -> Iterator[Evaluation]:
        """Evaluations of the model `project/name`, newest first."""
        return self._to.listing("cellwork", "/api/v1/evaluations", Evaluation, name=name, version=version)

    def get(self, evaluation: str) -> Evaluation:
        return self._to.call("cellwork", "GET", f"/api/v1/evaluations/{evaluation}", Evaluation)

    def card(self, name: str, version: int) -> Card:
        """All that the platform knows of a version."""
        return self._to.call("cellwork", "GET", f"/api/v1/cards/{name}/{version}", Card)
