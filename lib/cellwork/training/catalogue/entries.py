"""The models that are here: our own table, and the entry points of other packages. A package can't take a name of ours."""

from __future__ import annotations

import functools
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from cellwork.errors import BadInput, near_miss
from cellwork.training.catalogue.model import Choice, Kind, Made, Model, Number

if TYPE_CHECKING:
    import polars as pl

GROUP = "cellwork.models"
SEED = {"random_state": 0}
DEPTH = Number(2, 12, whole=True)
RATE = Number(0.01, 0.3, log=True)
ROUNDS = Number(50, 500, log=True, whole=True)
LEAF = Number(1, 300, log=True, whole=True)
STRENGTH = Number(1e-4, 1e3, log=True)

OURS = (
    Model("constant", "the mean, or the classes' rates", {
        "classifier": Made("sklearn.dummy:DummyClassifier", {"strategy": "prior"}), "regressor": Made("sklearn.dummy:DummyRegressor"),
    }, columns="trees"),
    Model("linear", "linear regression", {"regressor": Made("sklearn.linear_model:LinearRegression")}),
    Model("logistic", "logistic regression", {
        "classifier": Made("sklearn.linear_model:LogisticRegression", {"max_iter": 1000}),
    }, {"C": STRENGTH, "class_weight": Choice((None, "balanced"))}, starts=({"C": 0.1, "class_weight": None}, {"C": 10.0, "class_weight": None})),
    Model("ridge", "linear regression with squares punished", {"regressor": Made("sklearn.linear_model:Ridge")}, {"alpha": STRENGTH}),
    Model("lasso", "linear regression with few weights", {
        "regressor": Made("sklearn.linear_model:Lasso", {"alpha": 0.1, **SEED}),
    }, {"alpha": Number(1e-4, 10, log=True)}),
    Model("linear_svm", "linear support vectors", {
        "classifier": Made("sklearn.svm:LinearSVC", SEED, probabilities=False),
        "regressor": Made("sklearn.svm:LinearSVR", {"max_iter": 5000, **SEED}),
    }, {"C": Number(1e-3, 100, log=True)}),
    Model("decision_tree", "one tree", {
        "classifier": Made("sklearn.tree:DecisionTreeClassifier", {"min_samples_leaf": 20, **SEED}),
        "regressor": Made("sklearn.tree:DecisionTreeRegressor", {"min_samples_leaf": 20, **SEED}),
    }, {"max_depth": DEPTH, "min_samples_leaf": LEAF}, "trees"),
    Model("random_forest", "many trees on samples of the rows", {
        "classifier": Made("sklearn.ensemble:RandomForestClassifier", {"n_estimators": 100, "min_samples_leaf": 3, **SEED}),
        "regressor": Made("sklearn.ensemble:RandomForestRegressor", {"n_estimators": 100, "min_samples_leaf": 3, **SEED}),
    }, {"max_features": Number(0.1, 1.0), "min_samples_leaf": Number(1, 50, log=True, whole=True), "n_estimators": Number(50, 300, whole=True)}, "trees",
        starts=({"max_features": 0.5, "min_samples_leaf": 1, "n_estimators": 200}, {"max_features": 0.25, "min_samples_leaf": 10, "n_estimators": 200})),
    Model("hist_gradient_boosting", "boosted trees of scikit-learn", {
        "classifier": Made("sklearn.ensemble:HistGradientBoostingClassifier", SEED),
        "regressor": Made("sklearn.ensemble:HistGradientBoostingRegressor", SEED),
    }, {"learning_rate": RATE, "max_iter": ROUNDS, "max_leaf_nodes": Number(7, 127, log=True, whole=True), "min_samples_leaf": LEAF,
        "l2_regularization": Number(1e-6, 10, log=True)}, "trees",
        starts=({"learning_rate": 0.05, "max_iter": 200, "max_leaf_nodes": 15, "min_samples_leaf": 40, "l2_regularization": 1.0},)),
    Model("xgboost", "boosted trees of XGBoost", {
        "classifier": Made("xgboost:XGBClassifier", {"n_jobs": 1, "tree_method": "hist", **SEED}),
        "regressor": Made("xgboost:XGBRegressor", {"n_jobs": 1, "tree_method": "hist", **SEED}),
    }, {"learning_rate": RATE, "n_estimators": ROUNDS, "max_depth": DEPTH, "min_child_weight": Number(1, 50, log=True),
        "subsample": Number(0.5, 1.0), "colsample_bytree": Number(0.4, 1.0)}, "trees", ("xgboost", "boost"),
        ({"learning_rate": 0.05, "n_estimators": 300, "max_depth": 6, "min_child_weight": 10, "subsample": 0.8, "colsample_bytree": 0.6},
         {"learning_rate": 0.1, "n_estimators": 150, "max_depth": 3, "min_child_weight": 3, "subsample": 0.7, "colsample_bytree": 0.7})),
    Model("lightgbm", "boosted trees of LightGBM", {
        "classifier": Made("lightgbm:LGBMClassifier", {"n_jobs": 1, "verbose": -1, **SEED}),
        "regressor": Made("lightgbm:LGBMRegressor", {"n_jobs": 1, "verbose": -1, **SEED}),
    }, {"learning_rate": RATE, "n_estimators": ROUNDS, "num_leaves": Number(7, 127, log=True, whole=True), "min_child_samples": LEAF,
        "colsample_bytree": Number(0.4, 1.0)}, "trees", ("lightgbm", "boost"),
        ({"learning_rate": 0.05, "n_estimators": 300, "num_leaves": 31, "min_child_samples": 50, "colsample_bytree": 0.6},
         {"learning_rate": 0.05, "n_estimators": 150, "num_leaves": 7, "min_child_samples": 10, "colsample_bytree": 0.6})),
    Model("neural_network", "a network of dense layers, in PyTorch", {
        "classifier": Made("cellwork.training.network:NetworkClassifier"), "regressor": Made("cellwork.training.network:NetworkRegressor"),
    }, {"hidden": Choice(((64,), (128,), (64, 64), (256, 64))), "learning_rate": Number(1e-4, 1e-2, log=True), "dropout": Number(0.0, 0.5)},
        needs=("skorch", "torch")),
    Model("kmeans", "clusters around means", {"clusterer": Made("sklearn.cluster:KMeans", {"n_init": 4, **SEED})}, {"n_clusters": Number(2, 20, whole=True)}),
    Model("arima", "a time series from its own past, by the number of the moment", {"regressor": Made("cellwork.training.series:Arima")},
          {"p": Number(0, 3, whole=True), "d": Number(0, 1, whole=True), "q": Number(0, 2, whole=True)}, "plain", ("statsmodels", "timeseries")),
)  # fmt: skip


@functools.cache
def _all() -> dict[str, Model]:
    found = {model.name: model for model in OURS}
    for point in entry_points(group=GROUP):
        if point.name in found:
            raise BadInput(
                "model", point.name, f"is in the catalogue already, and {point.value} takes its name", "rename it"
            )
        model = point.load()
        if not isinstance(model, Model):
            raise BadInput(
                f"entry point {GROUP}", point.value, "is no cellwork.training.catalogue.Model", "make it one"
            )
        found[point.name] = model
    return found


def get(name: str) -> Model:
    """Return the model `name`; raises BadInput with the near miss."""
    models = _all()
    if name not in models:
        raise BadInput("model", name, "is not in the catalogue", near_miss(name, models))
    return models[name]


def names(kind: Kind | None = None, *, installed: bool = True) -> list[str]:
    """Return the names of the models of `kind` (default: of every kind), by default those whose libraries are here."""
    chosen = (model for model in _all().values() if kind is None or kind in model.made)
    return [model.name for model in chosen if model.installed or not installed]


def listing() -> pl.DataFrame:
    """Return the catalogue as a table: name, title, kinds, whether it is installed, the parameters worth searching."""
    import polars as pl

    rows = [
        {
            "model": model.name, "title": model.title, "kinds": ", ".join(model.made), "installed": model.installed,
            "parameters": ", ".join(model.space),
        }
        for model in _all().values()
    ]  # fmt: skip
    return pl.DataFrame(rows)
