"""Quality before outcomes: near the measured one while scores mean the same, and following how hard the predictions are."""

from __future__ import annotations

from datetime import date

import numpy as np
import polars as pl

from cellwork.monitoring import estimate
from cellwork.monitoring.ranking import auc

FIRST, SECOND = date(2024, 5, 1), date(2024, 5, 2)


def day(at: date, spread: float, seed: int, rows: int = 40_000) -> pl.DataFrame:
    """Scores around a half; a score of s comes true with the probability s squared: they are not calibrated."""
    dice = np.random.default_rng(seed)
    scores = np.clip(dice.normal(0.5, spread, rows), 0.001, 0.999)
    return pl.DataFrame(
        {"day": [at] * rows, "version": 1, "score": scores, "outcome": (dice.random(rows) < scores**2).astype(float)}
    )


def asked(frame: pl.DataFrame) -> pl.DataFrame:
    step = (pl.col("score") * estimate.BINS).floor().cast(pl.Int32).alias("bin")
    return frame.group_by("day", "version", step).agg(rows=pl.len(), happened=pl.col("outcome").sum())


def known(frame: pl.DataFrame) -> pl.DataFrame:
    return asked(frame).drop("day")


def test_the_estimate_of_days_without_outcomes_is_near_what_is_measured_later() -> None:
    easy, hard = day(FIRST, 0.3, 1), day(SECOND, 0.05, 2)
    learned = known(day(FIRST, 0.3, 3))
    found = estimate.areas(asked(pl.concat([easy, hard])).drop("happened"), learned, ["day", "version"]).sort("day")
    for frame, estimated in zip((easy, hard), found["estimated_auc"], strict=True):
        measured = auc(frame["outcome"], frame["score"])
        assert measured
        assert abs(estimated - measured.value) < 0.02
    assert found["estimated_auc"][0] > found["estimated_auc"][1] + 0.1


def test_without_any_outcome_scores_count_as_probabilities() -> None:
    frame = day(FIRST, 0.3, 1)
    dice = np.random.default_rng(5)
    right = (dice.random(frame.height) < frame["score"].to_numpy()).astype(float)
    nothing = known(frame).clear()
    [estimated] = estimate.areas(asked(frame).drop("happened"), nothing, ["day", "version"])["estimated_auc"]
    measured = auc(right, frame["score"])
    assert measured
    assert abs(estimated - measured.value) < 0.01


def test_nothing_predicted_is_nothing_estimated() -> None:
    empty = asked(day(FIRST, 0.3, 1, rows=1)).clear()
    assert estimate.areas(empty.drop("happened"), empty.drop("day"), ["day", "version"]).height == 0
