"""Events, audit, lineage and principals: kept by each service beside what they are about."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from cellwork.wire import Struct

RELATIONS = (
    "built_from",
    "trained_on",
    "evaluated_on",
    "registered_as",
    "deployed_as",
    "served_by",
    "observed_as",
    "made_by",
    "supersedes",
)

EVENTS = (
    "batch.ready", "batch.rejected", "features.ready", "features.online", "dataset.built", "training.finished", "evaluation.done",
    "model.registered", "model.promoted", "model.rolled_back", "endpoint.changed", "endpoint.breaker_opened", "endpoint.rollout_ended", "predictions.ready",
    "outcomes.arrived", "feedback.given", "drift.found", "alert.raised", "alert.resolved", "run.queued", "run.started", "run.cell", "run.succeeded",
    "run.failed", "run.stopped", "run.kept", "run.released", "job.created", "job.changed", "user.server_stopped",
)  # fmt: skip


class Event(Struct):
    seq: int
    id: str
    name: str
    project: str
    subject: str
    at: datetime
    data: dict[str, Any] = {}


class Edge(Struct):
    """`from_` stands to `to` in `relation` since `at`: a dataset is `built_from` batches."""

    from_: str
    relation: str
    to: str
    at: datetime


class AuditRow(Struct):
    seq: int
    at: datetime
    principal: str
    action: str
    subject: str
    before: str
    after: str
    reason: str
    request_id: str
    chain: str
    """SHA-256 of the previous row's chain and this row."""


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    kind: Literal["user", "service", "run", "key", "nobody"]
    name: str
    scopes: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    browser: bool = False
    """Came with a browser's cookie, which never carries a write scope."""


class Step(Struct):
    """One line of the answer to `why`: what, its id, what it says, when it was true."""

    relation: str
    kind: str
    id: str
    text: str
    at: datetime | None = None
    depth: int = 0


class Trail(Struct):
    subject: str
    steps: list[Step]


class ServiceStatus(Struct):
    name: str
    state: Literal["starting", "ready", "failed", "stopped"]
    pid: int = 0
    port: int = 0
    restarts: int = 0
    memory_mb: float = 0.0
    message: str = ""
