"""Metrics and their bootstrap intervals, against scikit-learn and brute force."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork.errors import BadInput
from cellwork.evaluation import metrics


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=60))
def test_each_metric_is_what_scikit_learn_says_with_ties(rows: list[tuple[bool, int]]) -> None:
    from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

    y, scores = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows]) / 8
    if y.min() == y.max():
        with pytest.raises(BadInput, match="are all the same"):
            metrics.measure(y, scores)
        return
    found = metrics.measure(y, scores, draws=20)
    expected = {
        "roc_auc": roc_auc_score(y, scores),
        "pr_auc": average_precision_score(y, scores),
        "brier": brier_score_loss(y, scores),
        "log_loss": log_loss(y, np.clip(scores, 1e-15, 1 - 1e-15)),
        "rate": y.mean(),
    }
    assert 0 <= found.pop("ece").value <= 1
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, rel=1e-6), name
        assert found[name].low <= found[name].value <= found[name].high, name


def test_regression_metrics_are_scikit_learns() -> None:
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    random = np.random.default_rng(1)
    y = random.normal(100, 3, 300)
    scores = y + random.normal(size=300)
    found = metrics.measure(y, scores, kind="regressor")
    assert found["rmse"].value == pytest.approx(root_mean_squared_error(y, scores))
    assert found["mae"].value == pytest.approx(mean_absolute_error(y, scores))
    assert found["r2"].value == pytest.approx(r2_score(y, scores))


def test_an_interval_is_that_of_a_bootstrap_done_row_by_row() -> None:
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(2)
    y = (random.random(400) < 0.3).astype(float)
    scores = np.clip(0.3 + 0.2 * (y - 0.3) + random.normal(0, 0.15, 400), 0.01, 0.99)
    found = metrics.measure(y, scores, draws=1000)["roc_auc"]
    drawn = [roc_auc_score(y[rows], scores[rows]) for rows in random.integers(0, 400, (1000, 400))]
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.01)
    assert found.high == pytest.approx(high, abs=0.01)
    assert found.high - found.low > 0.05


def test_the_same_rows_in_another_call_give_the_same_interval() -> None:
    y, scores = np.arange(50) % 2, np.linspace(0.1, 0.9, 50)
    assert metrics.measure(y, scores) == metrics.measure(y, scores)


def test_a_month_of_flights_is_measured_in_a_few_seconds() -> None:
    random = np.random.default_rng(3)
    y = (random.random(27_000) < 0.2).astype(float)
    started = time.process_time()
    metrics.measure(y, random.random(27_000))
    assert time.process_time() - started < 8


@pytest.mark.parametrize(
    ("y", "scores", "verdict"),
    [
        ([0, 1], [0.5], "one length"),
        ([], [], "one length"),
        ([0, 1], [0.5, np.nan], "1 of 2'?: are missing or not finite"),
        ([0, None], [0.5, 0.5], "labels '1 of 2'"),
        ([0, 2], [0.5, 0.5], "are not 0 and 1"),
    ],
)
def test_what_can_not_be_measured_is_refused_with_its_value(y: list[float], scores: list[float], verdict: str) -> None:
    with pytest.raises(BadInput, match=verdict):
        metrics.measure(np.array(y, dtype=float), scores)


def test_an_unknown_metric_is_told_its_near_miss() -> None:
    with pytest.raises(BadInput, match="did you mean 'roc_auc'"):
        metrics.value("rocauc", [0, 1], [0.1, 0.9])


def test_better_knows_which_way_a_metric_points() -> None:
    assert metrics.better("roc_auc", 0.7, 0.6)
    assert metrics.better("log_loss", 0.6, 0.7)
    assert not metrics.better("rmse", 2.0, 2.0)
