"""Skew between what was served and what training would see, and the proof that logged features come from the batches they name."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from cellwork.wire import Struct


class FeatureSkew(Struct):
    """One feature of predictions whose values were looked up, beside a point-in-time join for the same entity and time."""

    feature: str
    """``view__feature``."""
    rows: int
    differ: int
    """Rows in which the values differ, in any bit; one missing and the other not counts."""
    missing_online: int
    """Rows without a value online though training would see one."""
    only_online: int
    """Rows with a value online though training would see none."""
    older: int
    """Rows in which the value online was of an older event."""
    mean_online: float | None = None
    mean_training: float | None = None
    """Means over rows in which both are numbers."""
    example: str = ""
    """A prediction that differs."""


class Skew(Struct):
    endpoint: str
    rows: int
    """Predictions with looked-up features that were compared, the newest."""
    start: datetime | None
    end: datetime | None
    features: list[FeatureSkew]
    """Those with most differences first."""


class RecomputedView(Struct):
    view: str
    batch: str
    event: datetime | None
    same: bool
    """Every logged value was made again, bit for bit, from the raw rows of `batch` and of the batches before it."""
    words: str = ""
    """What differs, or why nothing could be made."""


class Recomputed(Struct):
    prediction: str
    entities: dict[str, Any]
    same: bool
    views: list[RecomputedView]
