"""AutoML on scikit-learn's bundled data and on the flights: how much of its budget it takes, and whether it beats the best default model.

A third of the rows (of the flights, the months after) is kept aside. On them the found model is set beside the model of the
catalogue whose defaults did best by cross-validation; the difference has a bootstrap interval of 95 % over those rows. The folds of the flights
are months, each measured by what was trained on those before: random ones would know other flights of the same day. They are the demo's data, so CELLWORK_HOME names a platform that runs with it
(`cellwork up --demo`).
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from sklearn import datasets
from sklearn.model_selection import train_test_split

from cellwork import training
from cellwork.data import dataset, split
from cellwork.training import catalogue, measure

DRAWS = 400
ROWS = 40_000, 20_000
"""Of the flights that are learnt from, and of those kept aside."""
CUT = "2013-09-01"
BUNDLED = ("breast_cancer", "wine", "iris", "digits", "diabetes")


def quiet(step: training.Step) -> None:
    """Say nothing."""


def bundled(name: str) -> tuple[Any, Any, Any, Any, Any]:
    X, y = getattr(datasets, f"load_{name}")(return_X_y=True, as_frame=True)
    return (*train_test_split(X, y, test_size=1 / 3, random_state=0), None)


def flights() -> tuple[Any, Any, Any, Any, Any]:
    """Return the demo's training data (January to August), what it validates with (September and October), and folds of the former.

    It is built on the platform that runs at CELLWORK_HOME (`cellwork up --demo`).
    """
    os.chdir(Path(__file__).parents[1] / "nbs" / "tutorials" / "flights")
    known = dataset.build(
        "training", observations="departures", features=["at_departure"], start="2013-01-01", end="2013-11-01"
    )
    train, later = (_sample(part, rows) for part, rows in zip(split.by_time(known, CUT), ROWS, strict=True))
    months = train[2].dt.month.to_numpy()
    folds = [(np.flatnonzero(months < k), np.flatnonzero(months == k)) for k in (6, 7, 8)]
    return train[0], later[0], train[1], later[1], folds


def _sample(part: Any, rows: int) -> tuple[Any, Any, Any]:
    """Return inputs, labels and times of some rows."""
    X, y = part.X(), part.y()
    record = part.record
    times = part.frame().filter(pl.col(record.label).is_not_null())[record.time_column].to_pandas()
    chosen = np.sort(np.random.default_rng(0).choice(len(X), min(rows, len(X)), replace=False))
    return X.iloc[chosen], y.iloc[chosen], times.iloc[chosen]


def difference(metric: str, one: Any, other: Any, X: Any, y: Any) -> tuple[float, float, float]:
    """Return by how much `one` is better on rows `X`, and the interval of that."""
    sign = 1 if metric in measure.GREATER_IS_BETTER else -1
    random, found = np.random.default_rng(0), []
    frame, labels = training.rows.features(X), np.asarray(y)
    whole = sign * (measure.value(metric, one, frame, labels) - measure.value(metric, other, frame, labels))
    for _ in range(DRAWS if len(y) < 2000 else DRAWS // 10):
        rows = random.integers(0, len(y), len(y))
        if len(np.unique(labels[rows])) < 2:
            continue
        part = frame.iloc[rows]
        found.append(
            sign * (measure.value(metric, one, part, labels[rows]) - measure.value(metric, other, part, labels[rows]))
        )
    return whole, *np.quantile(found, [0.025, 0.975])


def case(name: str, budget: float, cluster: training.Cluster) -> None:
    X, X_later, y, y_later, folds = flights() if name == "flights" else bundled(name)
    started = time.perf_counter()
    found = training.best(X, y, budget=budget, folds=folds, cluster=cluster, progress=quiet)
    took = time.perf_counter() - started
    defaults = [c for c in found.candidates if not c.parameters and c.scores and not c.error]
    best = training.candidates.best_of(defaults, found.metric)
    assert best is not None
    chosen = next(c for c in found.candidates if c.parameters == found.parameters and c.score == found.score)
    same = chosen is best
    other = found.model if same else catalogue.pipeline(best.model, X, y).fit(training.rows.features(X), np.asarray(y))
    gain, low, high = difference(found.metric, found.model, other, X_later, y_later)
    print(
        f"| {name} | {budget:.0f} | {took:.1f} | {took / budget - 1:+.1%} | {len(found.candidates)} | {best.model} {best.score:.4f} | "
        f"{chosen} {chosen.score:.4f} | {gain:+.4f} ({low:+.4f} to {high:+.4f}) |",
        flush=True,
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "--budget", type=float, default=30.0, help="seconds for each data set; the flights get three times it"
    )
    arguments.add_argument("--only", nargs="*", default=[*BUNDLED, "flights"])
    asked = arguments.parse_args()
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(
        "| data | budget s | took s | beside the budget | tried | best default (by folds) | chosen (by folds) | chosen beside default on rows kept aside |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with training.cluster() as cluster:
        for name in asked.only:
            case(name, asked.budget * (3 if name == "flights" else 1), cluster)


if __name__ == "__main__":
    main()
