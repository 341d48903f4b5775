"""Contributions add up to the raw score, and are the Shapley values that the definition gives."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.compose import make_column_transformer
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeRegressor

from cellwork.models.columns import Column
from cellwork.models.compiled.extract import extract
from cellwork.models.compiled.machine import Machine

NAMES = ["a", "b", "c"]
COLUMNS = [Column(name=name, kind="number") for name in NAMES]
DICE = np.random.default_rng(0)
X = DICE.normal(size=(300, 3))
Y = X[:, 0] * 2 + np.where(X[:, 1] > 0.3, X[:, 2], -1) + DICE.normal(size=300) / 10


def machine(model: Any) -> Machine:
    return Machine(extract(model, COLUMNS))


def definition(tree: Any, x: np.ndarray) -> list[float]:
    """The Shapley values of one tree by their definition: over all coalitions, others averaged by the rows that went each way."""

    def expected(known: frozenset[int], node: int = 0) -> float:
        left, right = tree.children_left[node], tree.children_right[node]
        if left == -1:
            return float(tree.value[node, 0, 0])
        if tree.feature[node] in known:
            return expected(known, left if np.float32(x[tree.feature[node]]) <= tree.threshold[node] else right)
        weight = tree.weighted_n_node_samples
        return float((weight[left] * expected(known, left) + weight[right] * expected(known, right)) / weight[node])

    count, found = len(x), []
    for player in range(count):
        others = [k for k in range(count) if k != player]
        total = 0.0
        for size in range(count):
            weight = math.factorial(size) * math.factorial(count - 1 - size) / math.factorial(count)
            for chosen in itertools.combinations(others, size):
                total += weight * (expected(frozenset({*chosen, player})) - expected(frozenset(chosen)))
        found.append(total)
    return found


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8))
def test_a_trees_contributions_are_its_shapley_values(seed: int, depth: int) -> None:
    rows = np.random.default_rng(seed).integers(0, len(X), 60)
    model = DecisionTreeRegressor(max_depth=depth, random_state=0).fit(X[rows], Y[rows])
    x = X[rows[0]] + 0.1
    base, parts = machine(model).explain([tuple(x)])
    assert parts[0] == pytest.approx(definition(model.tree_, x), abs=1e-9)
    assert base == pytest.approx(float(np.average(Y[rows])), abs=1e-9)


def logit(p: Any) -> Any:
    return np.log(p / (1 - p))


@pytest.mark.parametrize(
    ("model", "raw"),
    [
        (RandomForestRegressor(20, random_state=0), lambda m, x: m.predict(x)),
        (GradientBoostingClassifier(n_estimators=30), lambda m, x: logit(m.predict_proba(x)[:, 1])),
        (HistGradientBoostingRegressor(max_iter=30), lambda m, x: m.predict(x)),
        (make_pipeline(StandardScaler(), LogisticRegression()), lambda m, x: logit(m.predict_proba(x)[:, 1])),
    ],
    ids=["forest", "boosting", "histogram boosting", "logistic regression"],
)
def test_contributions_and_base_add_up_to_the_raw_score(model: Any, raw: Any) -> None:
    target = (Y > 0).astype(int) if hasattr(model, "predict_proba") else Y
    model.fit(X, target)
    rows = DICE.normal(size=(20, 3))
    base, parts = machine(model).explain([tuple(row) for row in rows])
    assert base + parts.sum(axis=1) == pytest.approx(raw(model, rows), abs=1e-7)


def test_a_value_that_is_missing_goes_its_way_and_still_adds_up() -> None:
    x = np.where(DICE.random(X.shape) < 0.2, np.nan, X)
    model = HistGradientBoostingRegressor(max_iter=20).fit(x, Y)
    base, parts = machine(model).explain([(None, 0.1, None)])
    assert base + parts.sum() == pytest.approx(model.predict([[np.nan, 0.1, np.nan]])[0], abs=1e-9)


def test_a_texts_contribution_is_that_of_all_its_codes() -> None:
    import pandas as pd

    frame = pd.DataFrame({"plan": ["free", "paid", "gold"] * 20, "visits": np.arange(60.0)})
    model = make_pipeline(
        make_column_transformer((OneHotEncoder(), ["plan"]), ("passthrough", ["visits"])), LogisticRegression()
    ).fit(frame, (frame["plan"] == "paid").astype(int))
    made = Machine(extract(model, [Column(name="plan", kind="text"), Column(name="visits", kind="number")]))
    base, parts = made.explain([("paid", 3.0)])
    assert parts.shape == (1, 2)
    assert base + parts.sum() == pytest.approx(logit(model.predict_proba(frame.iloc[[1]].assign(visits=3.0))[0, 1]))
    assert parts[0, 0] > 1
