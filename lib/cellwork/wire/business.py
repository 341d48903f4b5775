"""What predictions are worth to those who act on them: numbers by day that a function of the project's own makes, and what users say was wrong."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from cellwork.wire import Struct


class MetricPoint(Struct):
    """A number of the predictions for one day (UTC), of one version, or of all (0)."""

    day: str
    value: float
    rows: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    version: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0


class MetricRequest(Struct):
    """Points of a metric; a day and version that were there are replaced, others stay."""

    points: list[MetricPoint]
    unit: str = ""
    """Such as ``EUR``."""
    words: str = ""
    """What it means."""


class BusinessMetric(Struct):
    endpoint: str
    name: str
    unit: str
    words: str
    by: str
    at: datetime
    points: list[MetricPoint]


class FeedbackRequest(Struct):
    """What somebody says of a prediction. With `value`, the truth as they know it, it is an outcome too; without, only a word."""

    prediction: str
    wrong: bool = True
    value: float | None = None
    comment: str = ""


class Feedback(Struct):
    id: str
    project: str
    endpoint: str
    prediction: str
    observation: str
    version: int
    score: float
    wrong: bool
    value: float | None
    comment: str
    by: str
    at: datetime
