"""How numbers of a sealed holdout are rounded: close to the truth, the same each time, and no edge that a single row could be seen at."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork.evaluation import metrics
from cellwork.wire.evaluations import Difference, Metric
from cellwork_hub.platform import coarse
from cellwork_hub.platform.coarse import Rounding

ROUNDING = Rounding(b"secret", "rail/last", 20_000)
numbers = st.floats(-1e6, 1e6, allow_nan=False)


@given(numbers, st.floats(0, 1e5), st.floats(0, 1e5))
@settings(max_examples=200, deadline=None)
def test_a_number_told_is_within_a_step_of_the_true_one_and_its_interval_no_narrower(
    value: float, below: float, above: float
) -> None:
    true = Metric(value=value, low=value - below, high=value + above)
    unit = coarse.step("rmse", true, 20_000)
    told = ROUNDING.metrics({"rmse": true})["rmse"]
    assert abs(told.value - value) <= unit * (1 + 1e-6) + 1e-9
    assert told.high - told.low >= (true.high - true.low) * (1 - 1e-6) - 1e-9
    assert ROUNDING.metrics({"rmse": true})["rmse"] == told
    assert unit == coarse.FINEST or unit <= (true.high - true.low) / coarse.Z * (1 + 1e-6)


def test_steps_are_round_numbers_of_the_size_of_chance() -> None:
    assert [coarse.step("rmse", Metric(value=0, low=-1.96 * e, high=1.96 * e), 100) for e in (0.004, 0.0199, 0.0201, 0.07, 3.0, 0.0)] == [
        0.002, 0.01, 0.02, 0.05, 2.0, coarse.FINEST,
    ]  # fmt: skip


def test_a_difference_is_rounded_to_the_metrics_own_step() -> None:
    """A candidate that differs from the champion in one row: the exact difference would tell that row's label."""
    told = {
        ROUNDING.difference(
            Difference(metric="roc_auc", value=sign * 0.0002, low=-0.0004, high=0.0004, p=0.7), 0.005
        ).value
        for sign in (-1, 1)
    }
    assert told <= {0.0, 0.005, -0.005}
    same = ROUNDING.difference(Difference(metric="roc_auc", value=0.0, low=0.0, high=0.0, p=1.0), 0.005)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_two_hundred_questions_about_single_rows_tell_no_label() -> None:
    """The attack: of many rows that all score 0.5, one is scored 1 in each question. Guesses have to be right no more often than chance has it."""
    random = np.random.default_rng(7)
    truth = (random.random(4_000) < 0.5).astype(float)
    exact, told = [], []
    for row in range(200):
        scores = np.full(len(truth), 0.5)
        scores[row] = 1.0
        found = metrics.measure(truth, scores, draws=20, clip=coarse.CLIP)
        exact.append((found["roc_auc"].value > 0.5) == (truth[row] == 1))
        told.append(Rounding(b"secret", "rail/last", 4_000).metrics(found)["roc_auc"].value > 0.5)
    assert np.mean(exact) == 1.0, "without rounding every label is told"
    right = np.mean([guess == (truth[row] == 1) for row, guess in enumerate(told)])
    assert abs(right - 0.5) < 0.15


def test_no_row_stands_out_of_a_loss() -> None:
    truth = np.tile([0.0, 1.0], 500)
    scores = np.full(1000, 0.5)
    scores[0] = 1.0
    free, clipped = (
        metrics.measure(truth, scores, draws=0, clip=clip)["log_loss"].value for clip in (1e-15, coarse.CLIP)
    )
    assert free - np.log(2) > 0.03
    assert clipped - np.log(2) < 0.005
