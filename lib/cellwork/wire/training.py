"""A request for the best model: what a job or a service hands to `cellwork.training.request.carry_out`."""

from __future__ import annotations

from typing import Any

from cellwork.wire import Struct


class TrainingRequest(Struct):
    """Find the best pipeline for a dataset in a time budget."""

    dataset: str
    """Its id."""
    budget_seconds: float
    metric: str = ""
    """Empty: what suits the label."""
    models: list[str] = []
    """Names of the catalogue; empty: all for tables."""
    split: dict[str, Any] = {}
    """A recipe of `cellwork.data.split`: the first part is trained on and the second one measured on, or folds; empty: folds."""
    seed: int = 0
