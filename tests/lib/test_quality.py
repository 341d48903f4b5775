"""AUC and its interval against counting pairs; quality per day against doing it by hand."""

from __future__ import annotations

import math
from datetime import date
from statistics import NormalDist

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork.monitoring import summary
from cellwork.monitoring.ranking import auc
from cellwork.ui.dashboard import by_version, leading
from cellwork.wire.outcomes import QualityPoint

DAY = date(2024, 5, 1)


def counted(labels: list[int], scores: list[float]) -> float:
    pairs = [
        (p > n) + 0.5 * (p == n)
        for p, positive in zip(scores, labels, strict=True)
        if positive
        for n, other in zip(scores, labels, strict=True)
        if not other
    ]
    return sum(pairs) / len(pairs)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs_in_the_right_order_ties_a_half(rows: list[tuple[int, int]]) -> None:
    labels, scores = [row[0] for row in rows], [row[1] / 5 for row in rows]
    found = auc(labels, scores)
    if len(set(labels)) < 2:
        assert found is None
        return
    assert found is not None
    assert found.value == pytest.approx(counted(labels, scores))
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_auc_does_not_depend_on_the_order_of_rows_or_the_scale_of_scores() -> None:
    dice = np.random.default_rng(0)
    labels, scores = dice.integers(0, 2, 200), dice.normal(size=200)
    order = dice.permutation(200)
    assert auc(labels, scores) == auc(labels[order], np.exp(scores[order]))


def test_the_interval_covers_the_true_area_about_95_times_in_100() -> None:
    """Normal scores one standard deviation apart: the area is the normal distribution at 1 / sqrt(2), 0.7602."""
    dice = np.random.default_rng(1)
    labels = np.repeat([0.0, 1.0], 150)
    found = [auc(labels, dice.normal(size=300) + labels) for _ in range(400)]
    covered = sum(one is not None and one.low <= 0.76025 <= one.high for one in found) / len(found)
    assert 0.92 <= covered <= 0.98


@pytest.mark.parametrize("positives", [1, 2, 5, 20, 195])
@pytest.mark.parametrize(("area", "wide"), [(0.6, 1.0), (0.76, 1.0), (0.9, 1.0), (0.98, 1.0), (0.8, 2.0)])
def test_the_interval_covers_the_true_area_however_few_a_class_has(positives: int, area: float, wide: float) -> None:
    """Of 200, with normal scores; those of what happened may be spread twice as wide. A bound above is what a monitor goes by."""
    dice = np.random.default_rng(7)
    apart = NormalDist().inv_cdf(area) * math.hypot(1.0, wide)
    labels = np.arange(200) < positives
    found = [auc(labels, np.where(labels, apart + wide * dice.normal(size=200), dice.normal(size=200))) for _ in range(500)]  # fmt: skip
    intervals = [one for one in found if one is not None]
    assert len(intervals) == 500
    assert sum(one.low <= area <= one.high for one in intervals) >= 0.91 * 500
    assert sum(one.high < area for one in intervals) <= 0.05 * 500


def test_one_row_says_hardly_anything_and_an_area_of_0_or_1_is_not_sure() -> None:
    scores = np.arange(200.0)
    one = auc(scores == 60, scores)
    assert one is not None
    assert one.low < 0.05
    assert one.high > 0.85
    last, first = auc(scores < 3, scores), auc(scores >= 197, scores)
    assert last is not None
    assert first is not None
    assert (last.value, last.low, first.value, first.high) == (0.0, 0.0, 1.0, 1.0)
    assert last.high > 0.25
    assert first.low == pytest.approx(1 - last.high)
    halves = auc(scores >= 100, scores)
    assert halves is not None
    assert 0.95 < halves.low < 0.99


@pytest.mark.parametrize(("area", "rare"), [(0.6, 0.5), (0.76, 0.5), (0.76, 0.1), (0.9, 0.3)])
def test_with_many_of_both_the_interval_is_delongs(area: float, rare: float) -> None:
    dice = np.random.default_rng(2)
    labels = np.arange(20_000) < 20_000 * rare
    scores = dice.normal(size=20_000) + labels * NormalDist().inv_cdf(area) * math.sqrt(2)
    found = auc(labels, scores)
    assert found is not None
    above = np.searchsorted(np.sort(scores[~labels]), scores[labels]) / (~labels).sum()
    below = 1 - np.searchsorted(np.sort(scores[labels]), scores[~labels]) / labels.sum()
    half = 1.96 * math.sqrt(above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below))
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.15 * half)


def test_labels_other_than_0_and_1_have_no_area() -> None:
    assert auc([0, 1, 2], [0.1, 0.2, 0.3]) is None


def frames(
    rows: list[tuple[date, int, float, float | None]], model: str = "shop/churn"
) -> tuple[pl.DataFrame, pl.DataFrame]:
    schema = {"day": pl.Date, "version": pl.Int32, "score": pl.Float64, "outcome": pl.Float64}
    every = pl.DataFrame(rows, schema=schema, orient="row").with_columns(model=pl.lit(model))
    traffic = every.group_by(summary.GROUP).agg(predictions=pl.len(), mean_score=pl.col("score").mean())
    traffic = traffic.with_columns(estimated_auc=pl.lit(None, pl.Float64))
    return traffic, every.drop_nulls("outcome")


def test_quality_keeps_days_and_versions_apart_and_none_where_nothing_is_known() -> None:
    later = date(2024, 5, 2)
    rows = [(DAY, 1, 0.2, 0.0), (DAY, 1, 0.8, 1.0), (DAY, 2, 0.4, None), (later, 1, 0.6, 1.0)]
    quality = summary.quality("shop/churn", *frames(rows))
    assert (quality.predictions, quality.outcomes) == (4, 3)
    seen = [(p.day, p.version, p.predictions, p.outcomes, p.rate, p.auc) for p in quality.points]
    assert seen == [
        ("2024-05-01", 1, 2, 2, 0.5, 1.0),
        ("2024-05-01", 2, 1, 0, None, None),
        ("2024-05-02", 1, 1, 1, 1.0, None),
    ]


def test_versions_of_two_models_with_the_same_number_are_kept_apart() -> None:
    """Of the one model every score is right, of the other every one is wrong."""
    rows = [(DAY, 1, score, outcome) for score, outcome in ((0.2, 0.0), (0.8, 1.0))]
    old, new = frames(rows), frames([(day, version, 1 - score, outcome) for day, version, score, outcome in rows], "shop/churn-trees")  # fmt: skip
    quality = summary.quality("shop/churn", pl.concat([old[0], new[0]]), pl.concat([old[1], new[1]]))
    lines = {called: [p.auc for p in points] for called, points in by_version(quality.points).items()}
    assert lines == {"churn version 1": [1.0], "churn-trees version 1": [0.0]}
    assert list(by_version(summary.quality("shop/churn", *old).points)) == ["version 1"]


def test_each_day_has_the_area_and_the_interval_of_its_own_rows() -> None:
    dice = np.random.default_rng(3)
    rows = [(date(2024, 5, 1 + k % 3), 1, float(dice.integers(0, 9)), float(dice.integers(0, 2))) for k in range(300)]
    for point in summary.quality("shop/churn", *frames(rows)).points:
        own = [row for row in rows if row[0].isoformat() == point.day]
        alone = auc([row[3] for row in own], [row[2] for row in own])
        assert alone is not None
        assert (point.auc, point.auc_low, point.auc_high) == pytest.approx((alone.value, alone.low, alone.high))


def test_quality_of_no_predictions_is_empty() -> None:
    quality = summary.quality("shop/churn", *frames([]))
    assert (quality.predictions, quality.auc, quality.points) == (0, None, [])


def point(day: str, version: int, outcomes: int, area: float | None) -> QualityPoint:
    return QualityPoint(
        day=day, version=version, predictions=outcomes, outcomes=outcomes, mean_score=0.5, rate=0.5, auc=area
    )


def test_one_line_of_several_versions_shows_each_day_once_by_the_one_that_most_is_known_of() -> None:
    points = [
        point("2024-05-02", 1, 3, 0.4),
        point("2024-05-02", 2, 90, 0.7),
        point("2024-05-01", 1, 50, 0.6),
        point("2024-05-03", 1, 40, None),
        point("2024-05-03", 2, 9, 0.8),
        point("2024-05-04", 2, 0, None),
    ]
    line = [(p.day, p.version, p.auc) for p in leading(points)]
    assert line == [
        ("2024-05-01", 1, 0.6),
        ("2024-05-02", 2, 0.7),
        ("2024-05-03", 2, 0.8),
        ("2024-05-04", 2, None),
    ]
