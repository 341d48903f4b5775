"""Baselines: the label's rate by a column, or overall."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pytest

from cellwork.errors import BadInput
from cellwork.evaluation.baseline import Constant, LastValue, RateBy, of, text

ROWS = pl.DataFrame({"hour": [6, 6, 6, 6, 18, 18], "carrier": ["AA", None, "BB", "AA", "AA", "BB"]})
LATE = [0, 0, 0, 1, 1, 1]


def test_the_rate_is_that_of_the_value_and_overall_where_it_was_not_seen() -> None:
    fitted = RateBy("hour").fit(ROWS, LATE)
    assert fitted.predict_proba(pl.DataFrame({"hour": [6, 18, 3]}))[:, 1].tolist() == [0.25, 1.0, 0.5]


def test_a_missing_value_gets_the_overall_rate() -> None:
    fitted = RateBy("carrier").fit(ROWS, LATE)
    asked = pd.DataFrame({"carrier": ["AA", None, np.nan, "BB"]})
    assert fitted.predict_proba(asked)[:, 1].tolist() == pytest.approx([2 / 3, 0.5, 0.5, 0.5])


def test_the_rate_of_each_group_is_its_mean_label() -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"hour": random.integers(0, 24, 5000).astype(float)})
    y = (random.random(5000) < frame["hour"] / 24).astype(int)
    expected = y.groupby(frame["hour"]).mean()[frame["hour"]].to_numpy()
    assert np.allclose(RateBy("hour").fit(frame, y).predict_proba(frame)[:, 1], expected)


def test_a_constant_says_the_overall_rate() -> None:
    assert Constant().fit(ROWS, LATE).predict_proba(ROWS).tolist() == [[0.5, 0.5]] * 6
    assert type(of("")) is Constant
    assert of("hour").get_params() == {"column": "hour"}


def test_scikit_learn_takes_it_for_a_classifier_and_cross_validates_it() -> None:
    from sklearn.base import clone, is_classifier
    from sklearn.model_selection import cross_val_score

    frame = pd.DataFrame({"hour": np.arange(400) % 24})
    y = (frame["hour"] > 12).astype(int)
    assert is_classifier(RateBy("hour"))
    assert clone(RateBy("hour")).column == "hour"
    assert cross_val_score(RateBy("hour"), frame, y, scoring="roc_auc", cv=3).min() == 1.0


def test_a_column_that_is_not_there_is_told_with_its_near_miss() -> None:
    with pytest.raises(BadInput, match="did you mean 'hour'"):
        RateBy("hours").fit(ROWS, LATE)


def test_what_a_column_says_is_a_baseline_and_the_rate_where_it_says_nothing() -> None:
    frame = pd.DataFrame({"before": [0.9, np.nan, 0.1], "carrier": ["AA", "BB", "AA"]})
    fitted = LastValue("before").fit(frame, [1, 0, 0])
    assert fitted.predict_proba(frame)[:, 1].tolist() == pytest.approx([0.9, 1 / 3, 0.1])
    assert of("=before").get_params() == {"column": "before"}
    assert [text(name) for name in ("", "hour", "=before", "@2")] == [
        "the overall rate", "the rate by 'hour'", "what 'before' says", "version 2",
    ]  # fmt: skip
    with pytest.raises(BadInput, match="did you mean 'before'"):
        LastValue("befor").fit(frame, [1, 0, 0]).predict(frame)
    with pytest.raises(BadInput, match="holds no numbers"):
        LastValue("carrier").fit(frame, [1, 0, 0]).predict(frame)
