"""One number for a fitted model on rows: the metrics of `cellwork.evaluation.metrics`, and those of more than two classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cellwork.errors import BadInput, near_miss
from cellwork.evaluation import metrics
from cellwork.models.package import scores

if TYPE_CHECKING:
    import numpy as np

CLASSES = ("log_loss", "accuracy", "roc_auc")
"""Metrics of more than two classes; ROC AUC is then the mean over each class against the rest."""
GREATER_IS_BETTER = metrics.GREATER_IS_BETTER | {"accuracy"}


def check(metric: str, y: np.ndarray[Any, Any], kind: str) -> str:
    """Return the metric to rank by: `metric`, or for none of it the first that suits labels `y`.

    Raises
    ------
    BadInput
        It is not known, or does not suit the labels.
    """
    if kind == "regressor":
        suits = metrics.NAMES["regressor"]
    else:
        suits = CLASSES if len(set(y.tolist())) > 2 else (*metrics.NAMES["classifier"][:-1], "accuracy")
    if metric and metric not in suits:
        known = {*CLASSES, *(name for names in metrics.NAMES.values() for name in names)}
        verdict = f"does not suit a {kind} of these labels" if metric in known else "is not known"
        raise BadInput("metric", metric, verdict, near_miss(metric, suits))
    return metric or suits[0]


def value(metric: str, model: Any, X: Any, y: np.ndarray[Any, Any]) -> float:
    """Return `metric` of a fitted model on rows `X`, shape (n, columns), with labels `y`, shape (n,)."""
    import numpy as np

    if metric == "accuracy":
        return float((np.asarray(model.predict(X)) == y).mean())
    if not hasattr(model, "predict_proba") or len(model.classes_) == 2:
        return metrics.value(metric, y, scores(model, X))
    from sklearn.metrics import log_loss, roc_auc_score

    rates = model.predict_proba(X)
    if metric == "log_loss":
        return float(log_loss(y, rates, labels=model.classes_))
    return float(roc_auc_score(y, rates, multi_class="ovr", labels=model.classes_))


def answers(model: Any, X: Any) -> np.ndarray[Any, Any]:
    """Return what a fitted model says of rows: the rates of all classes, shape (n, classes), of two the second's, or predictions, (n,)."""
    import numpy as np

    found = np.asarray(
        model.predict_proba(X) if hasattr(model, "predict_proba") else model.predict(X), dtype=np.float32
    )
    return found[:, 1] if found.ndim == 2 and found.shape[1] == 2 else found


def of_answers(
    metric: str, found: np.ndarray[Any, Any], y: np.ndarray[Any, Any], classes: np.ndarray[Any, Any]
) -> float:
    """Return `metric` of `answers` to rows with labels `y`, shape (n,), of `classes` in order; as `value` does of the model."""
    import numpy as np

    rates = np.asarray(found, dtype=float)
    if metric == "accuracy":
        chosen = rates.argmax(axis=1) if rates.ndim == 2 else (rates > 0.5).astype(int)
        return float((classes[chosen] == y).mean())
    if rates.ndim == 1:
        return metrics.value(metric, y, rates)
    from sklearn.metrics import log_loss, roc_auc_score

    rates /= rates.sum(axis=1, keepdims=True)
    if metric == "log_loss":
        return float(log_loss(y, rates, labels=classes))
    return float(roc_auc_score(y, rates, multi_class="ovr", labels=classes))
