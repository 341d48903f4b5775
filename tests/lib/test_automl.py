"""The best model in a budget: what is tried, what is chosen, and what is said of it."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes

from cellwork import training
from cellwork.errors import BadInput, Unavailable
from cellwork.training.automl import Automl, clearly_better
from cellwork.training.candidates import Candidate

SOME = ["constant", "logistic", "decision_tree", "lightgbm"]


def quiet(step: training.Step) -> None:
    """Say nothing."""


def test_defaults_come_first_then_the_better_models_get_more_settings_and_the_account_says_it_all(
    workers: training.Cluster,
) -> None:
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    steps: list[training.Step] = []
    stop = threading.Event()

    def at_seven(step: training.Step) -> None:
        steps.append(step)
        if step.done == 7:
            stop.set()

    found = training.best(X, y, budget=250, models=SOME, cluster=workers, progress=at_seven, stop=stop)
    assert found.ended == "cancelled"
    assert found.leaderboard.height >= 7
    assert {*found.leaderboard["model"]} == set(SOME)
    assert found.score > 0.98
    assert found.model.predict_proba(X).shape == (569, 2)
    assert found.leaderboard.filter(model="constant")["roc_auc"].item() == 0.5
    assert found.account.startswith(
        f"{found.leaderboard.height} candidates of 4 models were tried on 569 rows with 5 folds"
    )
    assert all(f"- {name}: " in found.account for name in SOME)
    assert steps[-1].left is not None


def test_amounts_are_regressed_and_texts_and_gaps_are_no_hindrance(workers: training.Cluster) -> None:
    X, y = load_diabetes(return_X_y=True, as_frame=True)
    frame = pl.DataFrame(X).with_columns(
        sex=pl.when(pl.col("sex") > 0).then(pl.lit("f")).otherwise(None),
        bmi=pl.when(pl.col("age") > 0.1).then(None).otherwise(pl.col("bmi")),
    )
    stop = threading.Event()
    found = training.best(
        frame,
        y.to_numpy(),
        budget=250,
        models=["ridge", "constant"],
        cluster=workers,
        progress=lambda step: step.done == 4 and stop.set(),
        stop=stop,
    )
    assert found.metric == "rmse"
    assert found.leaderboard["model"][0] == "ridge"


def test_a_budget_too_small_for_one_model_is_told(workers: training.Cluster) -> None:
    X, y = load_breast_cancer(return_X_y=True)
    with pytest.raises(Unavailable, match="budget was spent before a candidate was done; give it more time"):
        training.best(X, y, budget=0.01, cluster=workers, progress=quiet)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"models": ["ridge"]}, "is no classifier"),
        ({"models": ["logistik"]}, "did you mean 'logistic'"),
        ({"metric": "mae"}, "does not suit"),
        ({"y": [1] * 100}, "nothing to learn"),
        ({"folds": 200}, "do not suit the 100 rows"),
    ],
)
def test_what_makes_no_sense_is_told_before_a_cluster_is_opened(change: dict[str, Any], words: str) -> None:
    terms = {"X": np.arange(200.0).reshape(100, 2), "y": [0, 1] * 50, "budget": 1, **change}
    with pytest.raises(BadInput, match=words):
        training.best(**terms)


# The strategy, without workers


def told(strategy: Automl, scores: dict[str, list[float]]) -> Candidate:
    candidate = strategy.ask()
    assert candidate is not None
    values = scores.get(candidate.model, [])
    candidate.scores, candidate.error = dict(enumerate(values)), "" if values else "failed"
    strategy.tell(candidate)
    return candidate


def test_the_best_model_gets_the_most_new_settings_and_one_that_fails_none() -> None:
    plan = Automl(["ridge", "lasso", "linear_svm", "linear"], "regressor", "rmse", 0, {})
    scores = {"ridge": [1.0], "lasso": [2.0], "linear": [0.5]}
    first = [told(plan, scores).model for _ in range(4)]
    assert first == ["ridge", "lasso", "linear_svm", "linear"]
    after = [told(plan, scores) for _ in range(24)]
    assert [sum(c.model == name for c in after) for name in ("ridge", "lasso", "linear_svm", "linear")] == [16, 8, 0, 0]
    assert all(c.parameters["alpha"] > 0 for c in after)


def test_luck_is_not_preferred_to_the_best_default() -> None:
    plan = Automl(["ridge", "lasso"], "regressor", "rmse", 0, {})
    default, worse = told(plan, {"ridge": [1.0, 1.2, 0.9]}), told(plan, {"lasso": [2.0, 2.0, 2.0]})
    lucky = Candidate({"alpha": 3.0}, "ridge", scores={0: 0.9, 1: 1.3, 2: 0.88})
    better = Candidate({"alpha": 2.0}, "ridge", scores={0: 0.9, 1: 1.1, 2: 0.81})
    assert plan.choose([default, worse, lucky]) is default
    assert plan.choose([default, worse, lucky, better]) is better
    assert not clearly_better(default, default, "rmse")
    assert math.isnan(Candidate({}).score)
