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


class Difference(Struct):
    """How much better a model is than another on the same rows: positive is better, with the bounds of its 95 % interval.

    The rows of each bootstrap draw are the same for both, so that what makes rows hard or easy is in neither bound.
    """

    metric: str
    value: float
    low: float
    high: float
    p: float
    """Two-sided, from the draws: how often chance alone would put the better one as far ahead."""


class Latency(Struct):
    """How long a model took in a clean process of the evaluator, on its own example."""

    load_s: float
    one_ms: float
    """Median of one row."""
    p95_ms: float
    calls: int
    """Of one row each, after the first, which is not counted."""


class EvaluationRequest(Struct):
    name: str
    version: int
    holdout: str
    baseline: str = ""
    """An input column: the baseline is the label's rate by its value in the version's training dataset; ``=column``: what the column says
    itself, e.g. the label's last value; ``@2``: version 2 of the model, one's own rule, say. Empty: the overall rate."""
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
    """The champion's metrics on the same holdout; empty if there is none, it can't be scored, or it learned another truth."""
    dataset: str
    """The training dataset of the version."""
    by: str
    at: datetime
    origin: Origin
    seconds: float = 0.0
    also: str = ""
    """The dataset that was measured together with the holdout, if any."""
    baseline_by: str | None = None
    """What the baseline was: the input column, empty for the overall rate, None where nobody noted it."""
    against_champion: Difference | None = None
    """The difference from the champion, where both could be scored on the same rows."""
    latency: Latency | None = None
    size_bytes: int = 0
    """Of the version's folder."""
