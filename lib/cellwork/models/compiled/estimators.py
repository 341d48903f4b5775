"""What scikit-learn's fitted estimators compute from a matrix, said as weights or trees. Runs in the child that loaded the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cellwork.models.compiled.program import MISSING_LEFT, Linear, Link, Trees
from cellwork.models.compiled.transformers import NotCompilable

Said = tuple[Linear | Trees, Link, bool]
"""Model, link, and whether it takes missing values."""
Tree = dict[str, Any]
"""Arrays of one tree, one entry a node: left, right, feature, threshold, missing_left, leaf, value, cover."""


def say(estimator: Any) -> Said:
    """Return what `estimator` computes; raises NotCompilable."""
    name = type(estimator).__name__
    if name not in KNOWN or not type(estimator).__module__.startswith("sklearn."):
        raise NotCompilable(f"{name} is not one of {', '.join(sorted(KNOWN))}")
    if len(getattr(estimator, "classes_", (0, 1))) != 2:
        raise NotCompilable(f"{len(estimator.classes_)} classes")
    return KNOWN[name](estimator)


def _regression(estimator: Any) -> Said:
    return _linear(estimator), "identity", False


def _logistic(estimator: Any) -> Said:
    if getattr(estimator, "loss", "log_loss") != "log_loss":
        raise NotCompilable(f"loss {estimator.loss}")
    return _linear(estimator), "sigmoid", False


def _generalised(estimator: Any) -> Said:
    link = type(estimator._base_loss.link).__name__
    if link not in ("LogLink", "IdentityLink"):
        raise NotCompilable(f"link {link}")
    return _linear(estimator), "exp" if link == "LogLink" else "identity", False


def _linear(estimator: Any) -> Linear:
    coefficients = np.atleast_2d(estimator.coef_)
    if coefficients.shape[0] != 1:
        raise NotCompilable(f"{coefficients.shape[0]} outputs")
    return Linear(weights=coefficients[0].astype(float).tolist(), intercept=float(np.ravel(estimator.intercept_)[0]))


def _tree(estimator: Any) -> Said:
    return _pack([_of_tree(estimator.tree_)], 0.0, 1.0, single=True), "identity", _takes_missing([estimator])


def _forest(estimator: Any) -> Said:
    trees = [_of_tree(tree.tree_) for tree in estimator.estimators_]
    packed = _pack(trees, 0.0, float(len(trees)), single=True)
    return packed, "identity", _takes_missing(estimator.estimators_)


def _takes_missing(trees: Any) -> bool:
    return any(tree._support_missing_values(np.zeros((1, 1))) for tree in trees) and all(
        tree.__sklearn_tags__().input_tags.allow_nan for tree in trees
    )


def _boosting(estimator: Any) -> Said:
    if estimator.init is not None and estimator.init != "zero":
        raise NotCompilable("GradientBoosting that starts from another model")
    base = float(estimator._raw_predict_init(np.zeros((1, estimator.n_features_in_), dtype=np.float32))[0, 0])
    trees = [_of_tree(tree.tree_, estimator.learning_rate) for tree in estimator.estimators_[:, 0]]
    links: dict[str, Link] = {"HalfBinomialLoss": "sigmoid", "ExponentialLoss": "sigmoid2"}
    link = links.get(type(estimator._loss).__name__, "identity") if hasattr(estimator, "classes_") else "identity"
    if hasattr(estimator, "classes_") and link == "identity":
        raise NotCompilable(f"loss {estimator.loss}")
    return _pack(trees, base, 1.0, single=True), link, False


def _histogram_boosting(estimator: Any) -> Said:
    if getattr(estimator, "_preprocessor", None) is not None:
        raise NotCompilable("HistGradientBoosting with categorical features of its own")
    link = type(estimator._loss.link).__name__
    links: dict[str, Link] = {"LogitLink": "sigmoid", "LogLink": "exp", "IdentityLink": "identity"}
    if link not in links:
        raise NotCompilable(f"link {link}")
    trees = [_of_nodes(predictors[0].nodes) for predictors in estimator._predictors]
    return _pack(trees, float(np.ravel(estimator._baseline_prediction)[0]), 1.0, single=False), links[link], True


def _of_tree(tree: Any, rate: float = 1.0) -> Tree:
    if tree.n_outputs != 1:
        raise NotCompilable(f"{tree.n_outputs} outputs")
    value = tree.value[:, 0, 1] if tree.value.shape[2] == 2 else tree.value[:, 0, 0]
    state = tree.__getstate__()["nodes"]
    missing = state["missing_go_to_left"] if "missing_go_to_left" in state.dtype.names else np.zeros(len(value))
    return {
        "left": tree.children_left, "right": tree.children_right, "feature": tree.feature, "threshold": tree.threshold,
        "missing_left": missing.astype(bool), "leaf": tree.children_left == -1, "value": rate * value,
        "cover": tree.weighted_n_node_samples,
    }  # fmt: skip


def _of_nodes(nodes: Any) -> Tree:
    if nodes["is_categorical"].any():
        raise NotCompilable("HistGradientBoosting with categorical splits")
    return {
        "left": nodes["left"].astype(np.int64), "right": nodes["right"].astype(np.int64), "feature": nodes["feature_idx"],
        "threshold": nodes["num_threshold"], "missing_left": nodes["missing_go_to_left"].astype(bool),
        "leaf": nodes["is_leaf"].astype(bool), "value": nodes["value"],
        "cover": nodes["count"],
    }  # fmt: skip


def _pack(trees: list[Tree], base: float, divide: float, *, single: bool) -> Trees:
    """Lay the nodes of all trees out level by level, children side by side, the tops of all trees first."""
    sizes = np.array([len(tree["value"]) for tree in trees])
    roots = np.cumsum(sizes) - sizes
    left = np.concatenate([tree["left"] + start for tree, start in zip(trees, roots, strict=True)])
    right = np.concatenate([tree["right"] + start for tree, start in zip(trees, roots, strict=True)])
    leaf = np.concatenate([tree["leaf"] for tree in trees])
    order, new_left, depths = _levels(roots, left, right, leaf)
    whole = {
        name: np.concatenate([tree[name] for tree in trees])[order]
        for name in ("feature", "threshold", "value", "cover")
    }
    gone_left = np.concatenate([tree["missing_left"] for tree in trees])[order] | leaf[order]
    feature = np.where(leaf[order], 0, whole["feature"]) + np.where(gone_left, MISSING_LEFT, 0)
    threshold = np.where(leaf[order], np.inf, whole["threshold"])
    return Trees(
        threshold=threshold.astype("<f8").tobytes(), feature=feature.astype("<i4").tobytes(),
        left=new_left[order].astype("<i4").tobytes(), value=whole["value"].astype("<f8").tobytes(),
        roots=np.arange(len(trees)).astype("<i4").tobytes(), depths=depths.astype("<i4").tobytes(),
        base=base, divide=divide, single=single, cover=whole["cover"].astype("<f8").tobytes(),
    )  # fmt: skip


def _levels(roots: Any, left: Any, right: Any, leaf: Any) -> tuple[Any, Any, Any]:
    """Return the old index of every new one, the new index of every old node's left child, and each tree's depth."""
    depths, order, new_left = np.zeros(len(roots), dtype=int), [roots], np.zeros(len(leaf), dtype=int)
    level, tree, count, depth = roots, np.arange(len(roots)), len(roots), 0
    new_left[roots] = np.arange(len(roots))
    while True:
        inner = ~leaf[level]
        parents, tree = level[inner], tree[inner]
        if not parents.size:
            return np.concatenate(order), new_left, depths
        depth += 1
        depths[tree] = depth
        children = np.stack([left[parents], right[parents]], axis=1).ravel()
        new_left[parents] = count + 2 * np.arange(len(parents))
        new_left[children[leaf[children]]] = (count + np.arange(len(children)))[leaf[children]]
        level, tree, count = children, np.repeat(tree, 2), count + len(children)
        order.append(children)


KNOWN: dict[str, Callable[[Any], Said]] = {
    **dict.fromkeys(("LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV", "SGDRegressor",
                     "HuberRegressor", "BayesianRidge", "LinearSVR"), _regression),
    **dict.fromkeys(("LogisticRegression", "LogisticRegressionCV", "SGDClassifier"), _logistic),
    **dict.fromkeys(("PoissonRegressor", "GammaRegressor", "TweedieRegressor"), _generalised),
    **dict.fromkeys(("DecisionTreeClassifier", "DecisionTreeRegressor", "ExtraTreeClassifier", "ExtraTreeRegressor"), _tree),
    **dict.fromkeys(("RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor"), _forest),
    **dict.fromkeys(("GradientBoostingClassifier", "GradientBoostingRegressor"), _boosting),
    **dict.fromkeys(("HistGradientBoostingClassifier", "HistGradientBoostingRegressor"), _histogram_boosting),
}  # fmt: skip
