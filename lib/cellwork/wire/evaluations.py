"""Evaluation of a registered version on a sealed holdout, and the gate in front of promotion and traffic."""

from __future__ import annotations

from datetime import datetime

from cellwork.wire import Struct
from cellwork.wire.origin import Origin


class VersionRef(Struct):
    """A registered version: full name ``project/name``, MLflow's version number, content digest of its folder."""

    name: str
    version: int
    digest: str = ""


class Metric(Struct):
    """A value with the bounds of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class EvaluationRequest(Struct):
    name: str
    version: int
    holdout: str
    baseline: str = ""
    """An input column: the baseline is the label's rate by its value in the version's training dataset. Empty: the overall rate."""
    also: str = ""
    """A dataset whose labelled rows are measured together with the holdout's: a report, which the gate does not look at."""


class Evaluation(Struct):
    id: str
    version: VersionRef
    holdout: str
    question_no: int
    """How often this holdout was asked by this project, this time included."""
    rows: int
    metrics: dict[str, Metric]
    baseline: dict[str, Metric]
    champion: dict[str, Metric]
    """The champion's metrics on the same holdout; empty if there is none."""
    dataset: str
    """The training dataset of the version."""
    by: str
    at: datetime
    origin: Origin
    seconds: float = 0.0
    also: str = ""
    """The dataset that was measured together with the holdout, if any."""


class Check(Struct):
    """One line of the gate's list."""

    name: str
    passed: bool
    text: str


class Gate(Struct):
    version: VersionRef
    passed: bool
    checks: list[Check]


class Promotion(Struct):
    name: str
    version: int
    reason: str = ""


class Promoted(Struct):
    version: VersionRef
    previous: VersionRef | None
    gate: Gate
    at: datetime
