"""The gate in front of promotion and traffic: the project's rules, the list, overrides, and the moves of `champion`."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from cellwork.wire import Struct
from cellwork.wire.evaluations import VersionRef


class Sanity(Struct):
    """A request that a model has to answer within bounds before it may be champion."""

    row: dict[str, Any]
    """The model's columns; one that is left out is missing."""
    least: float | None = None
    most: float | None = None


class Rules(Struct):
    """What `[gate]` of cellwork.toml says. The defaults hold for a project that says nothing."""

    holdout: str = ""
    """The sealed holdout that counts; empty: the one that was asked last."""
    baseline: str | None = None
    """The input column of the baseline that counts, empty for the overall rate; None: the one the version was registered with."""
    metric: str = ""
    """What is compared; empty: roc_auc of a classifier, rmse of a regressor."""
    better_than_baseline_by: float = 0.0
    worse_than_champion_by: float = 0.0
    """How much worse than the champion is still let pass, in the metric's unit."""
    least: dict[str, float] = {}
    """Metric -> the least value that passes."""
    most: dict[str, float] = {}
    """Metric -> the greatest value that passes."""
    questions: int = 0
    """Most questions to the holdout; 0: no bound."""
    latency_ms: float = 1000.0
    """Most for one row, the median in a clean process."""
    size_mb: float = 2048.0
    card: list[str] = msgspec.field(default_factory=lambda: ["owner", "origin", "dataset", "environment"])
    """What the card must say."""
    sanity: list[Sanity] = []


class RulesRequest(Struct):
    project: str
    rules: Rules
    owner: str = ""
    contact: str = ""


class KeptRules(Struct):
    project: str
    revision: int
    """0: nobody set any, the defaults hold."""
    rules: Rules
    owner: str = ""
    contact: str = ""
    by: str = ""
    at: datetime | None = None


class Check(Struct):
    """One line of the gate's list."""

    name: str
    passed: bool
    text: str
    """What was found."""
    asked: str = ""
    way_out: str = ""
    """What to do where it blocks."""
    override: str = ""
    """Who let it pass although it blocks, and why."""


class Gate(Struct):
    version: VersionRef
    passed: bool
    checks: list[Check]
    rules: int = 0
    """Revision of the rules it went by."""


class Promotion(Struct):
    name: str
    version: int
    reason: str = ""


class Promoted(Struct):
    """A move of `champion`: to a version that passed, or back to the one before."""

    version: VersionRef
    """The champion now."""
    previous: VersionRef | None
    gate: Gate | None
    """None for a move back."""
    at: datetime
    kind: Literal["promoted", "rolled_back"] = "promoted"
    by: str = ""
    reason: str = ""
    left: VersionRef | None = None
    """The champion until then."""


class Rollback(Struct):
    name: str
    version: int = 0
    """The champion that is to go; 0: whichever it is. With it, saying it twice moves once."""
    reason: str = ""


class OverrideRequest(Struct):
    name: str
    version: int
    check: str
    """The line's name."""
    reason: str


class TrustRequest(Struct):
    name: str
    version: int
    reason: str = ""


class Trusted(Struct):
    """Somebody's word that code of an author's own, in a model's folder, may run on the platform."""

    project: str
    sha256: str
    """Of the wheel: the word is for these bytes, in this project."""
    file: str
    version: VersionRef
    """The one that was looked at."""
    by: str
    at: datetime
    reason: str = ""


class Override(Struct):
    """Somebody's word that a version may pass although one line blocks: for this content and for what the line said then."""

    id: str
    version: VersionRef
    check: str
    found: str
    reason: str
    by: str
    at: datetime
