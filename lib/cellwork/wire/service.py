"""How an endpoint does as a service: requests, times and fallbacks by the hour, deployments as marks."""

from __future__ import annotations

from datetime import datetime

from cellwork.wire import Struct


class ServiceHour(Struct):
    """Predictions that one version logged within an hour (UTC)."""

    start: datetime
    version: int
    predictions: int
    fallbacks: int
    """Answered by another version than the one that was to answer."""
    least_ms: float | None
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    greatest_ms: float | None


class Mark(Struct):
    at: datetime
    revision: int
    version: str
    """``project/name@3``."""
    text: str
    """What was done: ``deploy``, ``rollback``…"""


class EndpointService(Struct):
    endpoint: str
    hours: list[ServiceHour]
    marks: list[Mark]
    """Changes of who answers, oldest first."""
