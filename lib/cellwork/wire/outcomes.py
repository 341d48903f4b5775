"""Outcomes: the truth that arrives later for a prediction."""

from __future__ import annotations

from datetime import datetime

from cellwork.wire import Struct
from cellwork.wire.evaluations import Metric


class Outcome(Struct):
    """By prediction id, or by the observation's id at an endpoint. Corrections append; the newest `arrived_at` holds."""

    value: float
    observed_at: datetime
    prediction: str = ""
    endpoint: str = ""
    observation: str = ""
    arrived_at: datetime | None = None
    """None means now; at most some minutes later, as clocks differ."""
    source: str = ""


class OutcomesRequest(Struct):
    project: str
    outcomes: list[Outcome]


class OutcomesAnswer(Struct):
    taken: int
    matched: int
    """Those whose prediction is in the log already; the others are kept and match when it appears."""
    repeated: int


class QualityPoint(Struct):
    """Quality of the predictions for one day (UTC) and version of a model; metrics are None where they can't be computed."""

    day: str
    version: int
    predictions: int
    outcomes: int
    mean_score: float | None
    """None where all of them were erased."""
    rate: float | None
    auc: float | None
    auc_low: float | None = None
    """Lower end of its 95 % interval."""
    auc_high: float | None = None
    estimated_auc: float | None = None
    """What is expected of all predictions of the day, outcomes or not, if scores still mean what they meant where outcomes are known."""
    model: str = ""
    """The name of the model whose version it is: an endpoint may go over from one to another."""


class Quality(Struct):
    endpoint: str
    predictions: int
    outcomes: int
    auc: Metric | None
    points: list[QualityPoint]
