"""A pipeline from a name: columns prepared, selected, modelled, and the answer made fit for use."""

from __future__ import annotations

from typing import Any, Literal

from cellwork.errors import BadInput
from cellwork.training.catalogue.entries import get
from cellwork.training.catalogue.model import Kind, Range, kind_of
from cellwork.training.catalogue.prepare import preparation

Calibration = Literal["", "sigmoid", "isotonic"]
FOLDS = 3


def pipeline(
    name: str,
    X: Any,
    y: Any = None,
    *,
    kind: Kind | None = None,
    select: float | None = None,
    calibrate: Calibration = "",
    threshold: float | None = None,
    log_target: bool = False,
    **parameters: Any,
) -> Any:
    """Return an unfitted scikit-learn pipeline of the steps ``prepare``, ``select`` and ``model``.

    Parameters
    ----------
    name : of the catalogue.
    X, y : the columns to prepare for, and labels that tell what kind of model it is; nothing is learned from them.
    kind : what it is, instead of what `y` says.
    select : the share of the prepared columns to keep, the ones that tell most of the label by themselves.
    calibrate : map a classifier's scores to rates by folds within the training rows.
    threshold : the probability from which a binary classifier's `predict` says 1.
    log_target : fit a regressor to log(1 + y); y must not be negative.
    parameters : of the model.

    Raises
    ------
    BadInput
        The catalogue has no such model, it is not of that kind, or a post-processing step does not suit it.
    """
    from sklearn.pipeline import Pipeline

    from cellwork.training.rows import features, truth

    frame = features(X)
    entry, chosen = get(name), kind or kind_of(None if y is None else truth(y))
    model = _finished(entry.make(chosen, **parameters), name, chosen, calibrate, threshold, log_target)
    if not hasattr(frame, "columns"):
        frame = _named(frame)
    steps = [("prepare", preparation(frame, entry.columns)), ("select", _selection(select, chosen)), ("model", model)]
    return Pipeline(steps)


def space(name: str, pipeline: Any) -> dict[str, Range]:
    """Return the ranges of the model's parameters under the names that `pipeline` knows them by."""
    known = pipeline.get_params()
    prefixes = ("model__", "model__estimator__", "model__regressor__", "model__estimator__estimator__")
    found: dict[str, Range] = {}
    for parameter, values in get(name).space.items():
        for prefix in prefixes:
            if prefix + parameter in known:
                found[prefix + parameter] = values
                break
    return found


def _named(array: Any) -> Any:
    """Return an array as a frame with numbered columns, for the preparation to count them."""
    import pandas as pd

    return pd.DataFrame(array).rename(columns=lambda number: number)


def _selection(share: float | None, kind: Kind) -> Any:
    from cellwork.training.steps import Select

    if share is None:
        return "passthrough"
    if not 0 < share <= 1:
        raise BadInput("share of columns to select", share, "is not between 0 and 1", "0.5 keeps the better half")
    if kind == "clusterer":
        raise BadInput("selection", share, "needs labels, and clusters have none", "leave it out")
    return Select(share, classes=kind == "classifier")


def _finished(model: Any, name: str, kind: Kind, calibrate: str, threshold: float | None, log_target: bool) -> Any:
    """Return `model` with what is done to its answer around it."""
    says_rates = get(name).made[kind].probabilities
    if kind != "classifier" and (calibrate or threshold is not None):
        raise BadInput("calibration and threshold", name, f"are for classifiers, and it is a {kind}", "leave them out")
    if kind != "regressor" and log_target:
        raise BadInput("logarithm of the target", name, f"is for regressors, and it is a {kind}", "leave it out")
    if calibrate or (kind == "classifier" and not says_rates):
        from sklearn.calibration import CalibratedClassifierCV

        model = CalibratedClassifierCV(model, method=calibrate or "sigmoid", cv=FOLDS)
    if threshold is not None:
        from sklearn.model_selection import FixedThresholdClassifier

        model = FixedThresholdClassifier(model, threshold=threshold, response_method="predict_proba")
    if log_target:
        import numpy as np
        from sklearn.compose import TransformedTargetRegressor

        model = TransformedTargetRegressor(model, func=np.log1p, inverse_func=np.expm1)
    return model
