"""A training request carried out: the dataset by its id, the split by its recipe, the best model within the budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cellwork.data import dataset, split
from cellwork.data.dataset import Rows
from cellwork.errors import BadInput
from cellwork.training.automl import Best, best
from cellwork.training.candidates import Step
from cellwork.training.cluster import Cluster
from cellwork.wire.training import TrainingRequest


def carry_out(
    request: TrainingRequest,
    *,
    rows: Rows | None = None,
    cluster: Cluster | None = None,
    progress: Callable[[Step], None] = print,
) -> tuple[Best, Rows]:
    """Return what was found and the rows it was trained on, for `registry.register`.

    Parameters
    ----------
    rows : the dataset, where it is in hand already.

    Raises
    ------
    BadInput
        The dataset has no labels, or the recipe of the split is not of it.
    NotFound
        There is no such dataset.
    Unavailable
        The budget did not suffice for one model.
    """
    whole = rows if rows is not None else dataset.get(request.dataset)
    if whole.record.id != request.dataset:
        raise BadInput(
            "dataset", whole.record.id, f"is not the one that was asked for ({request.dataset})", "give that"
        )
    trained, terms = _terms(whole, request)
    found = best(
        trained.X(), trained.y(), budget=request.budget_seconds, metric=request.metric, models=request.models, seed=request.seed,
        cluster=cluster, progress=progress, **terms,
    )  # fmt: skip
    return found, trained


def _terms(whole: Rows, request: TrainingRequest) -> tuple[Rows, dict[str, Any]]:
    """Return what is trained on, and the rows or folds to measure on."""
    if not request.split:
        return whole, {}
    made = split.replay(whole, request.split)
    if isinstance(made, split.Folds):
        return whole, {"folds": made}
    first, second = made.parts[:2]
    return first, {"validation": (second.X(), second.y())}
