"""Rankings, clusters, segments, curves, paired differences and explanations, beside scikit-learn where it has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as theirs

from cellwork.errors import BadInput
from cellwork.evaluation import clustering, curves, explain, metrics, paired, ranking, segments

RANDOM = np.random.default_rng(3)
Y = (RANDOM.random(3000) < 0.3).astype(float)
SCORES = np.clip(0.3 * Y + RANDOM.random(3000) * 0.7, 0, 1)


# Ranking


def test_rankings_are_scikit_learns_group_by_group() -> None:
    groups = np.repeat(np.arange(60), 20)
    relevance = (RANDOM.random(1200) < 0.2).astype(float)
    scores = RANDOM.random(1200)
    found = ranking.measure(relevance, scores, groups, k=5)
    parts = [(relevance[groups == g], scores[groups == g]) for g in range(60) if relevance[groups == g].any()]
    assert found["ndcg"].value == pytest.approx(np.mean([theirs.ndcg_score([y], [s], k=5) for y, s in parts]))
    whole = ranking.measure(relevance, scores, groups, k=20)
    assert whole["map"].value == pytest.approx(np.mean([theirs.average_precision_score(y, s) for y, s in parts]))
    assert whole["recall"].value == 1.0
    top = [y[np.argsort(-s)][:5] for y, s in parts]
    assert found["precision"].value == pytest.approx(np.mean([y.mean() for y in top]))
    assert found["ndcg"].low < found["ndcg"].value < found["ndcg"].high


def test_grades_count_by_their_gain() -> None:
    found = ranking.measure([3, 2, 0, 1], [4, 3, 2, 1], ["q"] * 4, k=4)
    got = 7 + 3 / np.log2(3) + 1 / np.log2(5)
    assert found["ndcg"].value == pytest.approx(got / (7 + 3 / np.log2(3) + 1 / np.log2(4)))


def test_saying_the_same_to_all_does_not_live_on_the_order_of_the_rows() -> None:
    relevance = np.tile([1.0, 0.0, 0.0, 0.0, 0.0], 400)
    found = ranking.measure(relevance, np.zeros(2000), np.repeat(np.arange(400), 5), k=1)
    assert found["precision"].value == pytest.approx(0.2, abs=0.08)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (([1, 0], [1], [0, 0], 1), "not three columns of one length"),
        (([1, np.nan], [1, 2], [0, 0], 1), "not all finite"),
        (([1, 0], [1, 2], [0, 0], 0), "is below 1"),
        (([0, 0], [1, 2], [0, 0], 1), "is that of every row"),
    ],
)
def test_rankings_say_what_they_do_not_take(given: Any, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        ranking.measure(*given[:3], k=given[3])


# Clusters


def test_clusters_are_measured_as_scikit_learn_does_and_better_ones_measure_better() -> None:
    from sklearn.datasets import make_blobs

    X, names = make_blobs(400, centers=3, random_state=0)
    found, drawn = clustering.measure(X, names), clustering.measure(X, RANDOM.permutation(names))
    assert found["silhouette"].value == pytest.approx(theirs.silhouette_score(X, names))
    assert found["davies_bouldin"].value == pytest.approx(theirs.davies_bouldin_score(X, names))
    assert found["silhouette"].low > drawn["silhouette"].high
    for wrong, says in (
        ((X, np.zeros(400)), "can't be measured"),
        ((X, names[:3]), "do not belong"),
        ((X * np.nan, names), "not finite"),
    ):
        with pytest.raises(BadInput, match=says):
            clustering.measure(*wrong)


# Classes and numbers


def test_calibration_error_and_mape_are_what_they_say() -> None:
    found = metrics.measure(Y, np.full(3000, Y.mean()))
    assert found["ece"].value < 0.05
    assert metrics.measure(Y, np.full(3000, 0.9))["ece"].value == pytest.approx(0.9 - Y.mean(), abs=1e-9)
    assert metrics.value("mape", [1.0, 2.0, 0.0], [1.1, 1.0, 5.0]) == pytest.approx((0.1 + 0.5) / 2)
    assert "mape" not in metrics.measure([0.0, 0.0], [1.0, 2.0], kind="regressor")
    assert "r2" not in metrics.measure([1.0, 1.0], [1.0, 2.0], kind="regressor")
    with pytest.raises(BadInput, match="is not defined for these labels"):
        metrics.value("mape", [0.0, 0.0], [1.0, 2.0])


@given(st.integers(0, 1000), st.sampled_from(["roc_auc", "pr_auc", "log_loss", "brier", "ece"]))
@settings(max_examples=15, deadline=None)
def test_a_difference_is_that_of_the_two_metrics_and_turns_its_sign(seed: int, metric: str) -> None:
    random = np.random.default_rng(seed)
    y = np.r_[0.0, 1.0, (random.random(100) < 0.5)].astype(float)
    one, other = random.random(102), random.random(102)
    sign = 1 if metric in metrics.GREATER_IS_BETTER else -1
    found = paired.difference(y, one, other, metric=metric, draws=50)
    assert found.value == pytest.approx(sign * (metrics.value(metric, y, one) - metrics.value(metric, y, other)))
    turned = paired.difference(y, other, one, metric=metric, draws=50)
    assert (turned.value, turned.low, turned.high, turned.p) == pytest.approx(
        (-found.value, -found.high, -found.low, found.p)
    )


def test_pairing_sees_what_two_intervals_beside_each_other_do_not() -> None:
    worse = np.clip(SCORES + np.random.default_rng(0).normal(0, 0.08, 3000), 0, 1)
    one, other = (metrics.measure(Y, scores)["roc_auc"] for scores in (SCORES, worse))
    found = paired.difference(Y, SCORES, worse, metric="roc_auc")
    assert other.high > one.low, "the intervals overlap"
    assert found.low > 0
    assert found.p < 0.05


# Segments and curves


def test_calibration_does_not_depend_on_the_order_of_rows_that_score_alike() -> None:
    """All score 0.2 and a fifth comes true, all of it in the last rows."""
    truth, scores = np.repeat([0.0, 1.0], [800, 200]), np.full(1000, 0.2)
    assert metrics.measure(truth, scores)["ece"].value == pytest.approx(0, abs=1e-12)
    assert curves.calibration(truth, scores).select("score", "rate", "rows").rows() == [(pytest.approx(0.2), 0.2, 1000)]
    order, levels = np.random.default_rng(2).permutation(3000), np.round(SCORES * 4) / 4
    assert metrics.value("ece", Y, levels) == pytest.approx(metrics.value("ece", Y[order], levels[order]))
    assert curves.calibration(Y, levels).equals(curves.calibration(Y[order], levels[order]))


@pytest.mark.parametrize("about", [0.0, 1e8, 1.7e9])
def test_r2_is_scikit_learns_however_far_the_labels_are_from_zero(about: float) -> None:
    from sklearn.metrics import r2_score

    dice = np.random.default_rng(5)
    truth = about + dice.normal(size=500)
    score = truth + 0.3 * dice.normal(size=500)
    found = metrics.measure(truth, score, kind="regressor")["r2"]
    assert found.value == pytest.approx(r2_score(truth, score), abs=1e-6)
    assert found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize("label", [0.1, 0.3, 7.7, 1e8 + 0.1])
def test_labels_that_are_all_alike_have_no_r2(label: float) -> None:
    assert "r2" not in metrics.measure(np.full(1000, label), np.arange(1000.0), kind="regressor")


def test_segments_show_where_a_model_is_poor_the_worst_first() -> None:
    place = np.where(np.arange(3000) % 3 == 0, "B", "A")
    scores = np.where(place == "B", RANDOM.random(3000), SCORES)
    frame = pl.DataFrame({"place": place, "load": np.linspace(0, 1, 3000), "rare": ["x"] * 2990 + ["y"] * 10})
    found = segments.by(frame, "place", Y, scores)
    assert found["segment"].to_list() == ["B", "A"]
    assert found["high"][0] < found["low"][1]
    assert all(700 <= rows <= 800 for rows in segments.by(frame, "load", Y, scores)["rows"])
    gaps = frame.select(load=pl.when(pl.int_range(pl.len()) % 5 < 2).then(float("nan")).otherwise("load"))
    assert dict(segments.by(gaps, "load", Y, scores).select("segment", "rows").rows())[segments.MISSING] == 1200
    assert segments.OTHERS in segments.by(frame, "rare", Y, scores)["segment"].to_list()
    with pytest.raises(BadInput, match="did you mean 'place'"):
        segments.by(frame, "plaice", Y, scores)


def test_residuals_show_where_a_model_predicts_too_little() -> None:
    truth = np.arange(1000.0)
    found = curves.residuals(truth, np.where(truth < 500, truth, truth - 10))
    assert found["rows"].to_list() == [100] * 10
    assert found["residual"].to_list()[::9] == pytest.approx([0.0, 10.0])
    assert found["residual"].sum() == pytest.approx(50.0)
    assert (found["low"] <= found["residual"] + 1e-9).all()
    assert (found["residual"] <= found["high"] + 1e-9).all()


def test_curves_have_scikit_learns_areas_and_few_points() -> None:
    roc, pr = curves.roc(Y, SCORES), curves.precision_recall(Y, SCORES)
    area = np.trapezoid(roc["true_positive_rate"], roc["false_positive_rate"])
    assert area == pytest.approx(theirs.roc_auc_score(Y, SCORES), abs=0.005)
    assert (roc.height, pr.height) == (curves.POINTS, curves.POINTS)
    assert (pr["recall"][0], pr["recall"][-1]) == (1.0, 0.0)
    calibration = curves.calibration(Y, SCORES)
    assert calibration["rows"].sum() == 3000
    assert (calibration["low"] <= calibration["rate"]).all()
    assert (calibration["high"] >= calibration["rate"]).all()
    gains = curves.gains(Y, SCORES)
    assert (gains["share"][-1], gains["found"][-1], gains["lift"][-1]) == (1.0, 1.0, 1.0)
    assert gains["lift"][0] > 1


# Explanations


def _frame() -> tuple[pd.DataFrame, Any]:
    frame = pd.DataFrame(np.random.default_rng(5).normal(size=(500, 3)), columns=list("abc"))
    return frame, (frame.a + 0.3 * frame.b > 0).astype(int).to_numpy()


def test_a_column_that_matters_is_missed_most_and_one_of_noise_not_at_all() -> None:
    from sklearn.linear_model import LogisticRegression

    X, y = _frame()
    found = explain.permutation_importance(LogisticRegression().fit(X, y), X, y)
    assert found["column"].to_list() == ["a", "b", "c"]
    assert found["loss"][0] > 0.2
    assert abs(found["loss"][2]) < 0.01
    assert (found["low"] <= found["loss"]).all()


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_contributions_add_up_to_the_raw_score(library: str) -> None:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    module = pytest.importorskip(library)
    X, y = _frame()
    trees = (
        module.XGBClassifier(n_estimators=20)
        if library == "xgboost"
        else module.LGBMClassifier(n_estimators=20, verbose=-1)
    )
    model = make_pipeline(StandardScaler().set_output(transform="pandas"), trees).fit(X, y)
    found = explain.contributions(model, X)
    assert found.columns == ["a", "b", "c", "(base)"]
    raw = np.log(p := model.predict_proba(X)[:, 1]) - np.log1p(-p)
    assert found.sum_horizontal().to_numpy() == pytest.approx(raw, abs=1e-3)
    with pytest.raises(BadInput, match="use permutation_importance"):
        explain.contributions(StandardScaler(), X)
