"""What a model goes by: how much worse it gets when a column is shuffled, and (for boosted trees) what each column adds to each row's score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cellwork.errors import BadInput
from cellwork.evaluation import metrics

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    from numpy.typing import ArrayLike

REPEATS = 10


def permutation_importance(
    model: Any, X: pd.DataFrame, y: ArrayLike, *, metric: str = "", repeats: int = REPEATS, seed: int = 0
) -> pl.DataFrame:
    """Return ``column``, ``loss`` (how much worse the metric gets), ``low`` and ``high``, the column that matters most first.

    Measure on rows the model was not trained on. A column that others repeat loses little, for they stand in for it. `low` and `high` are
    the 95 % range over the `repeats` shuffles: chance of the shuffling, not of the rows.

    Source: Breiman 2001; Fisher, Rudin and Dominici 2019 (model reliance, as a difference).
    """
    import numpy as np
    import polars as pl

    from cellwork.models import package

    kind: metrics.Kind = "classifier" if hasattr(model, "predict_proba") else "regressor"
    metric = metric or metrics.primary(kind)
    truth, random = np.asarray(y, dtype=float), np.random.default_rng(seed)
    sign = 1.0 if metric in metrics.GREATER_IS_BETTER else -1.0
    whole = metrics.value(metric, truth, package.scores(model, X))
    rows = []
    for column in X.columns:
        losses = []
        for _ in range(repeats):
            shuffled = X.assign(**{str(column): X[column].to_numpy()[random.permutation(len(X))]})
            losses.append(sign * (whole - metrics.value(metric, truth, package.scores(model, shuffled))))
        low, high = np.percentile(losses, [2.5, 97.5])
        rows.append((str(column), float(np.mean(losses)), float(low), float(high)))
    return pl.DataFrame(rows, ["column", "loss", "low", "high"], orient="row").sort("loss", descending=True)


def contributions(model: Any, X: pd.DataFrame) -> pl.DataFrame:
    """Return the SHAP values of a boosted tree, by its own library: a column a feature it sees, and ``(base)``; a row adds up to its raw score.

    Exact for trees, in log odds for a classifier. The model may be a pipeline: then its steps before the trees are applied, and the columns
    are theirs.

    Raises
    ------
    BadInput
        It is neither XGBoost's nor LightGBM's, or knows more than two classes.

    Source: Lundberg, Erion and Lee 2018 (TreeSHAP).
    """
    import numpy as np
    import polars as pl

    steps = getattr(model, "steps", [("model", model)])
    seen, names = X, [str(name) for name in X.columns]
    for _, step in steps[:-1]:
        seen = step.transform(seen)
        names = [str(name) for name in step.get_feature_names_out(names)]
    values = np.asarray(_tree_shap(steps[-1][1], seen), dtype=float)
    if values.ndim != 2 or values.shape[1] != len(names) + 1:
        raise BadInput("model", type(steps[-1][1]).__name__, "knows more than two classes", "explain a model of two")
    return pl.DataFrame(values, [*names, "(base)"])


def _tree_shap(trees: Any, seen: Any) -> Any:
    """Return values of shape (n, features + 1)."""
    library = type(trees).__module__.partition(".")[0]
    if library == "xgboost":
        import xgboost

        return trees.get_booster().predict(xgboost.DMatrix(seen), pred_contribs=True)
    if library == "lightgbm":
        return trees.predict(seen, pred_contrib=True)
    raise BadInput(
        "model", type(trees).__name__, "is no boosted tree of XGBoost or LightGBM", "use permutation_importance"
    )
