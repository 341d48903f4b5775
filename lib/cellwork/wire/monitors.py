"""Monitors, what they found when they last looked, and alerts."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from cellwork.wire import Struct
from cellwork.wire.drift import Beside, DriftRules

Kind = Literal["drift", "quality", "predictions", "outcomes", "batches", "metric", "disk", "memory"]
Severity = Literal["warning", "critical"]


class Tell(Struct, forbid_unknown_fields=True):
    """Whom to tell of a monitor's alerts: a `webhook` (POST, JSON, signed), or people by `mail`."""

    webhook: str = ""
    mail: list[str] = []
    least: Severity = "warning"
    """``critical`` leaves out the others."""
    on: tuple[Literal["raised", "resolved"], ...] = ("raised", "resolved")


class Monitor(Struct, forbid_unknown_fields=True):
    """A check that the platform repeats, by itself.

    ``drift``: the features of the endpoint's predictions beside the training dataset of their version. ``quality``: a metric over
    the outcomes that arrived. ``predictions``, ``outcomes``, ``batches``: none came within `window`, by the clock. ``metric``: the newest
    number of a business metric. ``disk``, ``memory``: of the machine, how much is in use.
    """

    name: str
    kind: Kind
    endpoint: str = ""
    """Its short name; all kinds but ``batches``, ``disk`` and ``memory`` need it."""
    dataset: str = ""
    """Of ``batches``: the raw data set's short name."""
    window: str = "7d"
    """How far it looks back: of drift and quality from the newest prediction, of the others from now."""
    every: str = "15m"
    columns: list[str] = []
    """Of drift: the columns to look at; none means all."""
    rules: DriftRules = msgspec.field(default_factory=DriftRules)
    beside: Beside = "season"
    """Of drift: what the window is compared with: ``season``, ``training`` or ``before``."""
    least: float | None = None
    """Of quality: ROC AUC that is surely below it (its whole 95 % interval) is an alert; of metric: a number below it."""
    most: float | None = None
    """Of metric: a number above it is an alert; of disk and memory: a share in use above it, 0.9 if it is not said."""
    metric: str = ""
    """Of metric: its name."""
    drop: float | None = None
    """Of quality: likewise below the version's own evaluation minus this."""
    least_outcomes: int = 200
    severity: Severity = "warning"
    """Of an alert that does not say by itself how bad it is; drift does."""
    tell: list[Tell] = []
    then: Literal["", "rollback"] = ""
    """Of drift and quality: ``rollback`` serves the previous version again when an alert is critical (drift says so by itself, quality
    by `severity`), once, if the version that the alert is about still answers."""


class MonitorsRequest(Struct):
    """All monitors of a project: those that it does not name any more are taken down and their alerts resolved."""

    project: str
    monitors: list[Monitor]


class MonitorStatus(Struct):
    project: str
    monitor: Monitor
    state: Literal["new", "fine", "alert", "unknown"]
    words: str = ""
    """What it found, or why nothing could be found out."""
    checked: datetime | None = None
    silenced_until: datetime | None = None
    owner: str = ""


class Deed(Struct):
    """What was done, or is still to be done, because of an alert."""

    event: Literal["raised", "resolved"]
    what: Literal["webhook", "mail", "rollback"]
    to: str
    """The webhook's host, the person, or the endpoint's version that is rolled back."""
    tries: int
    done: datetime | None = None
    words: str = ""
    """What came of it; why it did not succeed so far."""


class SilenceRequest(Struct):
    """Tell nobody until then; what is still found afterwards is told then."""

    until: datetime
    reason: str = ""


class Alert(Struct):
    """What a monitor says about a subject; while it is open, the same finding is counted and not said again."""

    id: str
    project: str
    monitor: str
    subject: str
    severity: Severity
    state: Literal["open", "resolved"]
    words: str
    opened: datetime
    last: datetime
    """When it was last found."""
    times: int
    resolved: datetime | None = None
    by: str = ""
    """Who resolved it: ``monitor``, or a user."""
    evidence: dict[str, Any] = {}
    """What the monitor saw, in numbers."""
