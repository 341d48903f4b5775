"""Ways of searching, on real workers: each finds what is there, shares what is common, ends when it is told, and goes on after it."""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import uniform
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin, clone
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cellwork import training
from cellwork.errors import BadInput, Unavailable
from cellwork.training.candidates import Candidate
from cellwork.training.catalogue import Choice, Number
from cellwork.training.journal import Journal
from cellwork.training.prefix import key_of
from cellwork.training.strategies import ETA, Bayes, Halving, Hyperband, Listed, Strategy

RANDOM = np.random.default_rng(0)
X = pd.DataFrame(RANDOM.normal(size=(1500, 4)), columns=list("abcd"))
Y = (X["a"] + 0.5 * RANDOM.normal(size=1500) > 0).astype(int).to_numpy()


class Hill(ClassifierMixin, BaseEstimator):
    """Knows the rates, and spoils them by how far `height` is from 3; each fit leaves a line in `trace`, when `until` is there."""

    def __init__(self, height: float = 0.0, seconds: float = 0.0, trace: str = "", until: str = "") -> None:
        self.height, self.seconds, self.trace, self.until = height, seconds, trace, until

    def fit(self, X: Any, y: Any) -> Hill:
        time.sleep(self.seconds)
        while self.until and not Path(self.until).exists():
            time.sleep(0.05)
        self.classes_ = np.array([0, 1])
        note(self.trace, f"fit {len(y)}")
        return self

    def predict_proba(self, X: Any) -> Any:
        noise = np.random.default_rng(0).normal(size=len(X)) * (self.height - 3) ** 2
        rates = 1 / (1 + np.exp(-np.asarray(X)[:, 0] - noise))
        return np.column_stack([1 - rates, rates])


class Same(TransformerMixin, BaseEstimator):
    """Changes nothing; each fit leaves a line in `trace`."""

    def __init__(self, trace: str = "", turn: int = 0) -> None:
        self.trace, self.turn = trace, turn

    def fit(self, X: Any, y: Any = None) -> Same:
        self.seen_ = len(X)
        note(self.trace, f"prepare {self.turn}")
        return self

    def transform(self, X: Any) -> Any:
        return X


def note(trace: str, text: str) -> None:
    if trace:
        with Path(trace).open("a") as file:
            file.write(text + "\n")


def noted(trace: Path) -> list[str]:
    return trace.read_text().splitlines() if trace.exists() else []


def quiet(step: training.Step) -> None:
    """Say nothing."""


def settle(cluster: training.Cluster) -> None:
    """Wait until no worker is at a fit: each has one thread, so what it is asked now comes after it."""
    asked = [cluster.client.submit(os.getpid, workers=[each], pure=False) for each in cluster.client.nthreads()]
    cluster.client.gather(asked)


def find(cluster: training.Cluster, model: Any, space: Any, **terms: Any) -> training.Search:
    terms = {"validation": (X, Y), "progress": quiet, **terms}
    return training.search(model, space, X, Y, cluster=cluster, **terms)


@pytest.mark.parametrize("method", ["random", "halving", "hyperband", "bayes"])
def test_every_method_climbs_the_hill(workers: training.Cluster, method: Any) -> None:
    found = find(workers, Hill(), {"height": Number(-20.0, 20.0)}, method=method, draws=24, seed=1)
    assert abs(found.parameters["height"] - 3) < 3
    assert found.leaderboard["error"].to_list() == [""] * found.leaderboard.height
    assert found.score == found.leaderboard["roc_auc"][0]
    if method in ("halving", "hyperband"):
        assert found.leaderboard["rows"][0] == 1.0
        assert found.leaderboard["rows"].min() < 0.5
        assert found.leaderboard["rows"].is_sorted(descending=True)


def test_a_grid_is_scikit_learns_grid(workers: training.Cluster) -> None:
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    grid = {"logisticregression__C": [1e-4, 1e-2, 1.0], "standardscaler__with_mean": [True, False]}
    folds = StratifiedKFold(3)
    found = find(workers, pipeline, grid, validation=None, folds=folds, metric="log_loss")
    peer = GridSearchCV(pipeline, grid, cv=folds, scoring="neg_log_loss").fit(X, Y)
    assert found.score == pytest.approx(-peer.best_score_)
    assert found.parameters == peer.best_params_
    assert found.model.predict_proba(X) == pytest.approx(peer.predict_proba(X))


def test_first_steps_in_common_are_computed_once_a_fold(workers: training.Cluster, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    pipeline = make_pipeline(Same(str(trace)), Hill())
    grid = {"hill__height": [0.0, 1.0, 2.0, 3.0], "same__turn": [1, 2]}
    found = find(workers, pipeline, grid, validation=None, folds=2)
    assert found.leaderboard.height == 8
    assert sorted(Counter(noted(trace)).values()) == [2, 3]  # two folds each, and once on all rows for the best
    assert found.model[0].seen_ == 1500
    trace.unlink()
    measured = find(workers, pipeline, grid)
    assert sorted(noted(trace)) == ["prepare 1", "prepare 2"]
    assert measured.model[0].seen_ == 1500
    assert measured.model.predict_proba(X).shape == (1500, 2)


def test_an_interrupted_search_goes_on_where_it_ended(workers: training.Cluster, tmp_path: Path) -> None:
    trace, journal, stop = tmp_path / "trace", tmp_path / "journal.jsonl", threading.Event()
    grid = {"height": [float(k) for k in range(8)]}

    def at_three(step: training.Step) -> None:
        if step.done == 3:
            stop.set()

    first = find(workers, Hill(trace=str(trace), seconds=0.2), grid, resume=journal, stop=stop, progress=at_three)
    assert first.ended == "cancelled"
    assert 3 <= first.leaderboard.height < 8
    assert first.model.classes_.tolist() == [0, 1]
    with journal.open("ab") as file:
        file.write(b'{"key": "torn')
    done = first.leaderboard.height
    settle(workers)  # what was in flight ends
    trace.unlink()
    second = find(workers, Hill(trace=str(trace), seconds=0.2), grid, resume=journal)
    assert second.leaderboard.height == 8
    assert len(noted(trace)) <= 8 - done + 1  # the best one is fitted again
    trace.unlink()
    third = find(workers, Hill(trace=str(trace), seconds=0.2), grid, resume=journal)
    assert third.leaderboard.drop("seconds").equals(second.leaderboard.drop("seconds"))
    assert noted(trace) == ["fit 1500"]
    other = find(workers, Hill(trace=str(trace)), {"height": [3.0]}, validation=(X[:900], Y[:900]), resume=journal)
    assert other.leaderboard.height == 1
    assert len(noted(trace)) == 2  # other rows, other scores


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_budget_ends_a_search_with_the_best_so_far_its_last_fit_included(
    workers: training.Cluster, method: Any
) -> None:
    """On a crowded machine the first budget may not suffice for one candidate; a longer one does."""
    space = {"height": Number(-20.0, 20.0)}
    for budget in (8, 30, 120):
        with suppress(Unavailable):
            found = find(workers, Hill(seconds=0.1), space, method=method, draws=10_000, folds=2, validation=None, budget=budget)  # fmt: skip
            break
    assert found.ended == "budget"
    assert 0 < found.leaderboard.height < 10_000
    assert found.model.classes_.tolist() == [0, 1]


def test_a_budget_that_is_spent_before_anything_is_done_is_told(workers: training.Cluster, tmp_path: Path) -> None:
    """The fit ends when this test lets it, which is after the search."""
    go = tmp_path / "go"
    try:
        with pytest.raises(Unavailable, match="budget was spent before a candidate was done; give it more time"):
            find(workers, Hill(until=str(go)), {"height": [1.0]}, budget=0.6)
    finally:
        go.touch()


def test_a_step_says_how_long_it_will_take_and_where_to_look(workers: training.Cluster) -> None:
    steps: list[training.Step] = []
    find(workers, Hill(seconds=0.1), {"height": [1.0, 2.0, 3.0]}, progress=steps.append)
    assert steps[0].left == pytest.approx(2 * steps[0].elapsed), "two are left, each as long as the first"
    assert "s left" in str(steps[0])
    assert "left" not in str(steps[-1])
    assert steps[0].dashboard.startswith("http")


def test_three_classes_and_numbers_have_metrics_of_their_own(workers: training.Cluster) -> None:
    classes = np.digitize(X["a"], [-0.5, 0.5])
    found = training.search(
        LogisticRegression(),
        {"C": [0.01, 1.0]},
        X,
        classes,
        folds=2,
        cluster=workers,
        progress=quiet,
        metric="accuracy",
    )
    assert found.score > 0.8
    amounts = X["a"] * 3 + 1
    number = training.search(
        training.catalogue.pipeline("ridge", X, amounts),
        {"model__alpha": [0.1, 1e4]},
        X,
        amounts,
        folds=2,
        cluster=workers,
        progress=quiet,
    )
    assert number.metric == "rmse"
    assert number.parameters == {"model__alpha": 0.1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metric": "rmse"}, "does not suit a classifier"),
        ({"metric": "roc_acu"}, "did you mean 'roc_auc'"),
        ({"method": "luck"}, "use grid, random, halving"),
        ({"method": "bayes", "space": {"height": uniform(0, 1)}}, "give values, or catalogue.Number"),
        ({"space": {"heigth": [1]}}, "did you mean 'height'"),
        ({"budget": 0}, "is no time"),
        ({"draws": 0}, "draw at least one"),
        ({"validation": None, "folds": 2000}, "do not suit the 1,500 rows"),
    ],
)
def test_a_search_that_makes_no_sense_is_told_before_anything_runs(
    workers: training.Cluster, change: dict[str, Any], words: str
) -> None:
    space = change.pop("space", {"height": [1.0]})
    with pytest.raises(BadInput, match=words):
        find(workers, Hill(), space, **change)


# Strategies, without workers


def play(strategy: Strategy, order: int, slots: int, score: Any) -> list[Candidate]:
    """Answer what a strategy asks for, in an order of its own, as many at a time as there are slots."""
    random, flying, told = np.random.default_rng(order), [], []
    while True:
        while len(flying) < slots and (candidate := strategy.ask()) is not None:
            flying.append(candidate)
        if not flying:
            assert strategy.over
            return told
        candidate = flying.pop(random.integers(len(flying)))
        value = score(candidate)
        candidate.scores, candidate.error = ({}, "failed") if value is None else ({0: value}, "")
        strategy.tell(candidate)
        told.append(candidate)


MAKERS = [
    lambda count, seed: Listed([Candidate({"x": float(k)}) for k in range(count)]),
    lambda count, seed: Halving([Candidate({"x": float(k)}) for k in range(count)], "roc_auc", 50_000),
    lambda count, seed: Hyperband(lambda n: [Candidate({"x": float(k)}) for k in range(n)], "roc_auc", 50_000, count),
    lambda count, seed: Bayes([{"x": Number(0, 9)}, {"x": Choice((1, 2)), "y": [None, "b"]}], True, count, seed),
]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(MAKERS), st.integers(1, 40), st.integers(0, 99), st.integers(1, 5), st.floats(0, 1))
def test_a_strategy_ends_whatever_comes_of_its_candidates_in_whatever_order(
    maker: Any, count: int, seed: int, slots: int, failing: float
) -> None:
    random = np.random.default_rng(seed)
    strategy = maker(count, seed)
    told = play(strategy, seed, slots, lambda c: None if random.random() < failing else float(random.random()))
    assert len(told) == len(strategy.candidates)
    assert len(told) <= strategy.of


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 100), st.integers(0, 99), st.integers(1, 5), st.integers(600, 10**6))
def test_a_halving_takes_the_best_third_of_each_rung_to_three_times_the_rows(
    count: int, seed: int, slots: int, rows: int
) -> None:
    listed = [Candidate({"x": float(k)}) for k in range(count)]
    halving = Halving(listed, "roc_auc", rows)
    told = play(halving, seed, slots, lambda c: c.parameters["x"])
    fractions = sorted({c.fraction for c in told})
    assert fractions[-1] == 1.0
    assert all(b / a == pytest.approx(ETA) for a, b in itertools.pairwise(fractions))
    expected = list(range(count))
    for fraction in fractions:
        assert sorted(c.parameters["x"] for c in told if c.fraction == fraction) == expected
        expected = expected[-max(1, math.ceil(len(expected) / ETA)) :]


def test_two_preparations_that_read_alike_are_not_taken_for_each_other() -> None:
    """scikit-learn leaves the middle out of the text of a long list of columns."""
    columns = [f"feature_number_{number:03d}" for number in range(60)]
    one, other = (
        make_column_transformer(("passthrough", [name for name in columns if name != left_out]))
        for left_out in columns[30:32]
    )
    assert repr(one) == repr(other)
    told = [key_of(Candidate({"columns": each, "line__C": 1.0}), "line") for each in (one, other, clone(one))]
    assert told[0] == told[2] != told[1]
    keys = [Journal("somewhere", X, "roc_auc").key(Candidate({}), each) for each in (one, other, clone(one))]
    assert keys[0] == keys[2] != keys[1]
