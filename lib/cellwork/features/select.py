"""Which columns tell most of a label: by chi-squared, by mutual information, or by a model; scikit-learn's own scores.

A missing number counts as the column's mean for the score alone. With a seed the choice is the same again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cellwork.errors import BadInput, near_miss
from cellwork.wire.transformers import Kept

WAYS = ("chi-squared", "mutual information", "model")
CLASSES = 20
"""A label of at most so many different whole numbers, or of texts, is a class."""


def choose(count: int, *, by: str = "mutual information", seed: int = 0) -> dict[str, Any]:
    """Keep the `count` columns that tell most of the label, in their order."""
    return {"kind": "choose", "count": count, "by": by, "seed": seed}


def chosen(columns: Mapping[str, Any], y: Any, *, count: int, by: str, seed: int) -> Kept:
    """Return the step that keeps the best `count` of numeric `columns`.

    Raises
    ------
    BadInput
        There is no label, a column is text, or the way is not known or does not fit the label.
    """
    import numpy as np

    if by not in WAYS:
        raise BadInput("choose by", by, "is not known", near_miss(by, WAYS))
    if y is None:
        raise BadInput("choose", by, "needs the label", "give y to fit")
    if count < 1:
        raise BadInput("columns to keep", count, "are none", "keep at least one")
    for name, values in columns.items():
        if values.dtype == object:
            raise BadInput("column of step 'choose'", name, "is text", "code it before")
    names, label = list(columns), np.asarray(y)
    scores = np.nan_to_num(_scores(np.column_stack([_whole(columns[n]) for n in names]), label, by, seed), nan=0.0)
    best = np.sort(np.argsort(-scores, kind="stable")[:count])
    told = {name: float(score) for name, score in zip(names, scores, strict=True)}
    return Kept(columns=[names[k] for k in best], by=by, scores=told)


def _whole(values: Any) -> Any:
    import numpy as np

    there = values[np.isfinite(values)]
    return np.where(np.isfinite(values), values, there.mean() if len(there) else 0.0)


def is_class(label: Any) -> bool:
    import numpy as np

    if label.dtype.kind not in "biuf":
        return True
    values = np.unique(label)
    return len(values) <= CLASSES and bool((values == np.round(values)).all())


def _scores(X: Any, label: Any, by: str, seed: int) -> Any:
    """Return a score a column, shape (columns,); more is better."""
    import numpy as np
    from sklearn import ensemble, feature_selection

    classes = is_class(label)
    if by == "chi-squared":
        if not classes:
            raise BadInput("label", "", "is no class, which chi-squared needs", "choose by mutual information")
        with np.errstate(divide="ignore", invalid="ignore"):
            return feature_selection.chi2(X - X.min(axis=0), label)[0]
    if by == "mutual information":
        score = feature_selection.mutual_info_classif if classes else feature_selection.mutual_info_regression
        return score(X, label, random_state=seed)
    forest = ensemble.ExtraTreesClassifier if classes else ensemble.ExtraTreesRegressor
    return forest(n_estimators=200, min_samples_leaf=2, random_state=seed).fit(X, label).feature_importances_
