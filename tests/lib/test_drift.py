"""Drift: the measures are SciPy's, reshuffled data does not drift, what moved is named with its numbers."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from cellwork.data import sketches
from cellwork.monitoring import distances
from cellwork.monitoring.drift import compare
from cellwork.wire.drift import ColumnDrift, DriftRules

NUMBERS = st.lists(st.integers(-20, 20) | st.floats(-50, 50, width=32), min_size=1, max_size=80)


def ranks(values: Any) -> sketches.Ranks:
    found = sketches.of(pl.DataFrame({"x": np.asarray(values, dtype=float)}))["x"].ranks
    assert found is not None
    return found


def only(reference: Any, window: Any, **rules: Any) -> ColumnDrift:
    old, new = (sketches.of(pl.DataFrame({"x": values})) for values in (reference, window))
    [column] = compare(old, new, DriftRules(**rules))
    return column


@settings(max_examples=150, deadline=None)
@given(NUMBERS, NUMBERS)
def test_ks_and_wasserstein_of_exact_summaries_are_scipys(reference: list[float], window: list[float]) -> None:
    apart = distances.Apart(ranks(reference), ranks(window))
    assert apart.ks() == pytest.approx(stats.ks_2samp(reference, window, method="asymp").statistic, abs=1e-9)
    assert apart.wasserstein() == pytest.approx(stats.wasserstein_distance(reference, window), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.5])
def test_ks_of_large_columns_is_scipys_within_a_thousandth(shift: float) -> None:
    dice = np.random.default_rng(1)
    reference, window = dice.lognormal(size=200_000), dice.lognormal(mean=shift, size=150_000)
    parts = [sketches.of(pl.DataFrame({"x": part})) for part in np.array_split(window, 24)]
    merged = sketches.merge(parts)["x"].ranks
    assert merged is not None
    found, true = distances.Apart(ranks(reference), merged), stats.ks_2samp(reference, window)
    assert found.ks() == pytest.approx(true.statistic, abs=1e-3)


@pytest.mark.parametrize("rows", [100, 1_000, 100_000])
@pytest.mark.parametrize("p", [0.3, 1e-3, 1e-7])
def test_p_values_of_ks_are_near_the_exact_ones(rows: int, p: float) -> None:
    distance, half = stats.kstwo.isf(p, rows), np.array([2.0 * rows])
    assert distances.ks_p_values(np.array([distance]), half, half)[0] == pytest.approx(p, rel=0.06)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(20, 500), st.integers(20, 500)), min_size=2, max_size=12))
def test_chi_squared_is_scipys_where_no_category_is_rare(counts: list[tuple[int, int]]) -> None:
    table = np.array(counts, dtype=float).T
    if (stats.contingency.expected_freq(table) < 5).any():
        return
    true = stats.chi2_contingency(table, correction=False)
    statistic, p = distances.chi_squared(table[0], table[1])
    assert (statistic, p) == (pytest.approx(true.statistic, abs=1e-9), pytest.approx(true.pvalue, abs=1e-9))


def test_rare_categories_are_tested_together() -> None:
    common, rare = [500.0, 500.0], [1.0] * 20
    assert distances.chi_squared(np.array(common + rare), np.array([*common, *reversed(rare)]))[1] == 1.0
    assert distances.chi_squared(np.array([*common, 0.0]), np.array([*common, 0.0])) == (0.0, 1.0)
    assert distances.chi_squared(np.array([10.0, 0.0]), np.array([0.0, 0.0])) == (0.0, 1.0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=10), st.lists(st.floats(0, 1), min_size=2, max_size=10))
def test_jensen_shannon_is_scipys_and_psi_is_zero_only_where_nothing_moved(a: list[float], b: list[float]) -> None:
    size = min(len(a), len(b))
    p, q = (np.array(each[:size]) + 1e-3 for each in (a, b))
    p, q = p / p.sum(), q / q.sum()
    true = np.nan_to_num(jensenshannon(p, q, base=2))  # where both are alike, SciPy may take the root of -1e-17
    assert distances.jensen_shannon(p, q) == pytest.approx(true, abs=1e-7)
    assert distances.psi(p, q) == pytest.approx(np.sum((q - p) * np.log(q / p)), rel=1e-9, abs=1e-12)
    assert distances.psi(p, p) == 0


def test_holm_is_the_textbooks() -> None:
    assert distances.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert distances.holm([]) == []


def mixed(dice: np.random.Generator, rows: int) -> pl.DataFrame:
    frame = {f"n{k}": dice.normal(size=rows) * (k + 1) for k in range(6)}
    frame |= {"late": dice.random(rows) < 0.2, "many": dice.integers(0, 3000, rows).astype(str)}
    frame |= {"carrier": dice.choice(["UA", "B6", "AA", "9E"], rows, p=[0.5, 0.3, 0.19, 0.01])}
    frame["gaps"] = np.where(dice.random(rows) < 0.1, np.nan, dice.exponential(size=rows))
    return pl.DataFrame(frame)


def test_reshuffled_data_does_not_drift() -> None:
    dice = np.random.default_rng(11)
    pool = mixed(dice, 60_000)
    reference, alarms = sketches.of(pool[:20_000]), []
    for number in range(200):
        rows = int(dice.choice([120, 400, 2_000]))
        window = pool[20_000:].sample(rows, seed=number)
        found = compare(reference, sketches.of(window))
        alarms += [(rows, c.column, c.reasons) for c in found if c.verdict == "drift"]
    assert len(alarms) <= 2, alarms


@pytest.mark.parametrize(
    ("window", "reason"),
    [
        (lambda x: x + 0.5, "distributed otherwise, PSI"),
        (lambda x: np.where(np.arange(len(x)) % 10 == 0, np.nan, x), "missing in 10.0%, was 0.0%"),
        (lambda x: np.where(np.arange(len(x)) % 20 == 0, 1e6, x), r"5.0% outside -\d"),
        (lambda x: np.full(len(x), np.nan), "missing in 100.0%"),
        (lambda x: np.full(len(x), 0.3), "distributed otherwise"),
    ],
)
def test_what_moved_is_said_with_its_numbers(window: Any, reason: str) -> None:
    values = np.random.default_rng(2).normal(size=5_000)
    found = only(values, window(values))
    assert found.verdict == "drift"
    assert any(re.search(reason, each) for each in found.reasons), found.reasons


def test_texts_drift_by_their_shares_and_by_new_ones() -> None:
    reference = ["a"] * 700 + ["b"] * 300
    assert only(reference, ["a"] * 350 + ["b"] * 150).verdict == "stable"
    turned = only(reference, ["a"] * 150 + ["b"] * 350)
    assert (turned.verdict, turned.severity) == ("drift", "critical")
    new = only(reference, ["a"] * 680 + ["b"] * 295 + ["c"] * 25)
    assert (new.verdict, new.severity, new.new_values) == ("drift", "warning", ["c"])
    assert "2.5% new: 'c'" in new.reasons


def test_a_significant_difference_that_is_small_is_no_drift() -> None:
    values = np.random.default_rng(3).normal(size=200_000)
    found = only(values, values + 0.05)
    assert found.p_value is not None
    assert found.p_value < 1e-20
    assert found.verdict == "stable"


def test_too_few_rows_give_no_verdict() -> None:
    values = np.random.default_rng(4).normal(size=1_000)
    assert only(values, values[:99] + 9).verdict == "not enough data"
    assert only(values, values[:100] + 9).verdict == "drift"
    assert only(values, values[:99] + 9, least_rows=50).verdict == "drift"


def test_a_column_that_vanished_appeared_or_changed_its_kind_is_said() -> None:
    rows = 200
    reference = sketches.of(pl.DataFrame({"gone": [1.0] * rows, "kind": [1.0] * rows, "same": [1.0] * rows}))
    window = sketches.of(pl.DataFrame({"came": ["x"] * rows, "kind": ["1"] * rows, "same": [1.0] * rows}))
    said = {each.column: each.reasons for each in compare(reference, window)}
    assert said == {
        "gone": ["is not in the window"],
        "came": ["is not in the reference"],
        "kind": ["is text and was number"],
        "same": [],
    }


@pytest.mark.parametrize(("reference", "window"), [(200, 99), (99, 200)])
def test_a_column_of_too_few_rows_that_vanished_appeared_or_changed_its_kind_gets_no_verdict(
    reference: int, window: int
) -> None:
    old = sketches.of(pl.DataFrame({"gone": [1.0] * reference, "kind": [1.0] * reference}))
    new = sketches.of(pl.DataFrame({"came": ["x"] * window, "kind": ["1"] * window}))
    found = compare(old, new)
    assert {c.column for c in found} == {"gone", "came", "kind"}
    assert {(c.verdict, c.severity, tuple(c.reasons)) for c in found} == {("not enough data", "", ())}
    assert {c.verdict for c in compare(old, new, DriftRules(least_rows=99))} == {"drift"}


def test_times_are_left_out_and_columns_of_nothing_are_stable() -> None:
    start = datetime(2024, 1, 1, tzinfo=UTC)
    old = pl.DataFrame({"at": [start] * 200, "empty": pl.Series([None] * 200, dtype=pl.Float64), "fixed": [5] * 200})
    new = old.with_columns(at=pl.col("at") + timedelta(days=90))
    found = compare(sketches.of(old), sketches.of(new))
    assert [(each.column, each.verdict) for each in found] == [("empty", "stable"), ("fixed", "stable")]
    assert (found[1].psi, found[1].ks) == (0.0, 0.0)


def test_true_and_false_drift_like_two_texts() -> None:
    found = only([True] * 300 + [False] * 700, [True] * 500 + [False] * 500)
    assert (found.kind, found.verdict) == ("bool", "drift")
    true = stats.chi2_contingency([[300, 700], [500, 500]], correction=False)
    assert (found.chi_squared, found.p_value) == (pytest.approx(true.statistic), pytest.approx(true.pvalue))
