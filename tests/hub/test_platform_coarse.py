"""How numbers of a sealed holdout are rounded: close to the truth, the same each time, and no edge that a single row could be seen at."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork.evaluation import metrics
from cellwork.wire.evaluations import Difference, Metric
from cellwork_hub.platform import coarse
from cellwork_hub.platform.coarse import Rounding

ROUNDING = Rounding(b"secret", "rail/last", 20_000, 0.0)
numbers = st.floats(-1e6, 1e6, allow_nan=False)


@given(numbers, st.floats(0, 1e5), st.floats(0, 1e5))
@settings(max_examples=200, deadline=None)
def test_a_number_told_is_within_two_steps_of_the_true_one_and_its_interval_no_narrower(
    value: float, below: float, above: float
) -> None:
    true = Metric(value=value, low=value - below, high=value + above)
    unit = coarse.step("rmse", true, 20_000, 0.0)
    told = ROUNDING.metrics({"rmse": true}, b"asked")["rmse"]
    assert abs(told.value - value) <= 2 * unit * (1 + 1e-6) + 1e-9
    assert told.high - told.low >= (true.high - true.low) * (1 - 1e-6) - 1e-9
    assert ROUNDING.metrics({"rmse": true}, b"asked")["rmse"] == told
    assert unit == coarse.FINEST or unit <= (true.high - true.low) / coarse.Z * (1 + 1e-6)


@pytest.mark.parametrize("error", [0.01, 0.0102, 0.0127, 0.02, 0.035])
def test_intervals_told_hold_the_true_value_as_often_as_they_say(error: float) -> None:
    """The sample differs from the truth by chance, and what is told from the sample: 19 of 20 intervals have to hold the truth."""
    dice, held, true = np.random.default_rng(3), {"one": 0, "pair": 0}, 0.7
    for number in range(1_000):
        value, half = true + error * dice.normal(), 1.96 * error
        rounding = Rounding(str(number).encode(), "rail/last", 20_000, 0.0)
        told = rounding.metrics({"rmse": Metric(value=value, low=value - half, high=value + half)}, b"asked")["rmse"]
        held["one"] += told.low <= true <= told.high
        near = Difference(metric="rmse", value=value - true, low=value - true - half, high=value - true + half, p=0.5)
        pair = rounding.difference(near, 4 * error, b"twin", b"champion")
        held["pair"] += pair.low <= 0 <= pair.high
    assert min(held.values()) >= 930, held


def test_steps_are_round_numbers_of_the_size_of_chance() -> None:
    assert [coarse.step("rmse", Metric(value=0, low=-1.96 * e, high=1.96 * e), 100, 0.0) for e in (0.004, 0.0199, 0.0201, 0.07, 3.0, 0.0)] == [
        0.002, 0.01, 0.02, 0.05, 2.0, coarse.FINEST,
    ]  # fmt: skip


def test_a_difference_is_rounded_to_the_metrics_own_step() -> None:
    """A candidate that differs from the champion in one row: the exact difference would tell that row's label."""
    told = [
        ROUNDING.difference(
            Difference(metric="roc_auc", value=sign * 0.0002, low=-0.0004, high=0.0004, p=0.7), 0.005, b"twin", b"champion"
        )
        for sign in (-1, 1)
    ]  # fmt: skip
    assert {each.value for each in told} <= {0.0, 0.005, -0.005, 0.01, -0.01}
    assert {round(each.high - each.low, 9) for each in told} == {0.02}
    same = ROUNDING.difference(Difference(metric="roc_auc", value=0.0, low=0.0, high=0.0, p=1.0), 0.005, b"one", b"one")
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_a_difference_of_nothing_does_not_tell_that_two_rows_have_one_label() -> None:
    """A twin that swaps two rows differs by nothing where their labels are equal: that is told as any small difference is."""
    nothing = Difference(metric="roc_auc", value=0.0, low=0.0, high=0.0, p=1.0)
    told = [
        ROUNDING.difference(nothing, 0.005, coarse.question([1, 2, 3, k]), coarse.question([2, 1, 3, k]))
        for k in range(4, 40)
    ]
    assert {round(each.high - each.low, 9) for each in told} == {0.02}
    told = [
        ROUNDING.difference(nothing, 0.005, coarse.question(np.arange(9)), coarse.question(np.roll(np.arange(9), k)))
        for k in range(1, 9)
    ]
    assert len({each.value for each in told}) > 1


def test_a_question_is_the_order_of_its_scores_and_what_is_equal() -> None:
    asked = coarse.question([0.1, 0.5, 0.5, 0.9])
    assert asked == coarse.question([1, 2, 2, 30])
    assert asked != coarse.question([0.1, 0.5, 0.6, 0.9])
    assert asked != coarse.question([0.1, 0.5, 0.9, 0.5])


@pytest.mark.parametrize("secret", range(12))
def test_two_hundred_questions_about_single_rows_tell_no_label(secret: int) -> None:
    """The attack: of many rows that all score 0.5, one is scored 1 in each question. What is told has to sort late rows from others
    hardly better than chance, whatever the platform's secret is: not even where all late rows have the same exact value."""
    random = np.random.default_rng(7)
    truth = (random.random(4_000) < 0.5).astype(float)
    rounding, exact, told = Rounding(str(secret).encode(), "rail/last", 4_000, 0.5), [], []
    for row in range(200):
        scores = np.full(len(truth), 0.5)
        scores[row] = 1.0
        exact.append(metrics.measure(truth, scores, draws=0, clip=coarse.CLIP))
        told.append(rounding.metrics(exact[-1], coarse.question(scores)))
    late = truth[:200]
    for metric in ("roc_auc", "brier"):
        assert _sorts([each[metric].value for each in exact], late) == 1.0, "without rounding every label is told"
        assert _sorts([each[metric].value for each in told], late) < 0.72, metric


@pytest.mark.parametrize("secret", range(6))
def test_neither_does_a_regressor_of_the_same_labels(secret: int) -> None:
    """Predicting 0.5 of all rows but one has errors that are alike but for that row's: the bootstrap alone takes them for certain."""
    random = np.random.default_rng(7)
    truth = (random.random(2_000) < 0.5).astype(float)
    rounding, exact, told = Rounding(str(secret).encode(), "rail/last", 2_000, float(truth.std())), [], []
    for row in range(200):
        scores = np.full(len(truth), 0.5)
        scores[row] = 1.0
        exact.append(metrics.measure(truth, scores, kind="regressor", draws=20))
        told.append(rounding.metrics(exact[-1], coarse.question(scores)))
    late = truth[:200]
    for metric in ("rmse", "mae", "r2", "mape"):
        assert _sorts([each[metric].value for each in exact], late) == 1.0, "without rounding every label is told"
        assert _sorts([each[metric].value for each in told], late) < 0.72, metric


def _sorts(values: list[float], late: np.ndarray) -> float:
    """Return how well values sort late rows from others, the better way round: 0.5 is chance."""
    found = metrics.value("roc_auc", late, np.array(values))
    return max(found, 1 - found)


def test_no_row_stands_out_of_a_loss() -> None:
    truth = np.tile([0.0, 1.0], 500)
    scores = np.full(1000, 0.5)
    scores[0] = 1.0
    free, clipped = (
        metrics.measure(truth, scores, draws=0, clip=clip)["log_loss"].value for clip in (1e-15, coarse.CLIP)
    )
    assert free - np.log(2) > 0.03
    assert clipped - np.log(2) < 0.005
