"""Searches beside scikit-learn's own with n_jobs=-1, and Bayesian search beside Optuna alone: medians of the ratio, each pair in one run."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    StratifiedKFold,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer
from threadpoolctl import threadpool_limits

from cellwork import training
from cellwork.training.catalogue import Number

ROWS, COLUMNS, FOLDS, SETTINGS = 100_000, 20, 3, 20
PLAIN = LogisticRegression(max_iter=200, tol=1e-6)
SHARED = make_pipeline(QuantileTransformer(random_state=0), LogisticRegression(max_iter=200))
STRENGTHS = np.logspace(-4, 2, SETTINGS).tolist()


def quiet(step: training.Step) -> None:
    """Say nothing."""


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def searches(X: Any, y: Any, cluster: training.Cluster) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Return name -> (the peer, ours): 20 settings in 3 folds, and one fit of the best on all rows."""
    folds = StratifiedKFold(FOLDS)
    grid, shared = {"C": STRENGTHS}, {"logisticregression__C": STRENGTHS}
    peer: dict[str, Any] = {"cv": folds, "scoring": "roc_auc", "n_jobs": -1}

    def ours(model: Any, space: Any, method: Any) -> Callable[[], Any]:
        return lambda: training.search(
            model, space, X, y, folds=folds, method=method, draws=SETTINGS, cluster=cluster, progress=quiet
        )

    return {
        "grid, 60 fits": (lambda: GridSearchCV(PLAIN, grid, **peer).fit(X, y), ours(PLAIN, grid, "grid")),
        "random, 60 fits": (
            lambda: RandomizedSearchCV(PLAIN, grid, n_iter=SETTINGS, random_state=0, **peer).fit(X, y),
            ours(PLAIN, grid, "random"),
        ),
        "halving, 20 settings": (lambda: HalvingGridSearchCV(PLAIN, grid, **peer).fit(X, y), ours(PLAIN, grid, "halving")),
        "grid, 60 fits, one preparation": (
            lambda: GridSearchCV(SHARED, shared, **peer).fit(X, y),
            ours(SHARED, shared, "grid"),
        ),
    }  # fmt: skip


def alone(X: Any, y: Any) -> None:
    """Optuna in one process, with the sampler that ours asks, so that both try the same settings."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        model = clone(PLAIN).set_params(C=trial.suggest_float("C", 1e-4, 100, log=True))
        return float(cross_val_score(model, X, y, cv=StratifiedKFold(FOLDS), scoring="roc_auc").mean())

    sampler = optuna.samplers.TPESampler(seed=0, constant_liar=True, n_startup_trials=SETTINGS // 4)
    with threadpool_limits(1):
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(objective, n_trials=SETTINGS)
        clone(PLAIN).set_params(**study.best_params).fit(X, y)


def bayes(X: Any, y: Any, cluster: training.Cluster) -> None:
    training.search(
        PLAIN, {"C": Number(1e-4, 100, log=True)}, X, y, folds=StratifiedKFold(FOLDS), method="bayes", draws=SETTINGS,
        cluster=cluster, progress=quiet,
    )  # fmt: skip


def processes(X: Any, y: Any, count: int) -> None:
    """Fit each setting in each fold, in so many processes: how much two cores of this machine do more than one."""
    with threadpool_limits(1):
        GridSearchCV(PLAIN, {"C": STRENGTHS}, cv=StratifiedKFold(FOLDS), scoring="roc_auc", n_jobs=count).fit(X, y)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--rows", type=int, default=ROWS)
    asked = arguments.parse_args()
    X, y = make_classification(asked.rows, COLUMNS, n_informative=10, random_state=0)
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("| search | peer s | ours s | ratio |\n| --- | --- | --- | --- |")
    with training.cluster() as two, training.cluster(workers=1) as one:
        for case, (peer, ours) in searches(X, y, two).items():
            GridSearchCV(PLAIN, {"C": [1.0]}, cv=2, n_jobs=-1).fit(X[:1000], y[:1000])
            pairs = [(seconds(peer), seconds(ours)) for _ in range(asked.rounds)]
            show(case, pairs)
        turns = [
            (seconds(lambda: alone(X, y)), seconds(lambda: bayes(X, y, one)), seconds(lambda: bayes(X, y, two)))
            for _ in range(asked.rounds)
        ]
        show("Bayesian on one worker beside Optuna alone", [(turn[0], turn[1]) for turn in turns])
        show("Bayesian on two workers beside one", [(turn[1], turn[2]) for turn in turns])
        pairs = [
            (seconds(lambda: processes(X, y, 1)), seconds(lambda: processes(X, y, 2))) for _ in range(asked.rounds)
        ]
        show("the machine's own: scikit-learn's grid in two processes beside one", pairs)
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")


def show(case: str, pairs: list[tuple[float, float]]) -> None:
    peer, ours = (statistics.median(each) for each in zip(*pairs, strict=True))
    print(f"| {case} | {peer:.1f} | {ours:.1f} | {statistics.median(b / a for a, b in pairs):.2f} |", flush=True)


if __name__ == "__main__":
    main()
