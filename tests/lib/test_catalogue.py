"""The catalogue: every model fits what a dataset holds, comes back from its file, and says what is wrong with its rows."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import skops.io
from sklearn.metrics import r2_score, roc_auc_score
from threadpoolctl import threadpool_limits

from cellwork import training
from cellwork.errors import BadInput
from cellwork.models import package
from cellwork.training import catalogue
from cellwork.training.catalogue import entries

RANDOM = np.random.default_rng(0)
ROWS = 900
HOUR = RANDOM.integers(0, 24, ROWS).astype(float)
CARRIER = RANDOM.choice(["AA", "BB", "CC"], ROWS)
WORDS = np.where(RANDOM.random(ROWS) < 0.5, "calm and clear over field ", "storm with heavy rain near ")
MESSAGE = [f"{text} {number}" for text, number in zip(WORDS, RANDOM.integers(0, 10_000, ROWS), strict=True)]
SIGNAL = HOUR / 8 + (CARRIER == "AA") + 2 * np.char.startswith(WORDS, "storm") + RANDOM.normal(0, 0.3, ROWS)
FRAME = pl.DataFrame(
    {
        "hour": pl.Series([None if k % 50 == 0 else value for k, value in enumerate(HOUR)]),
        "wet": [k % 3 == 0 for k in range(ROWS)],
        "carrier": [None if k % 70 == 0 else str(value) for k, value in enumerate(CARRIER)],
        "message": [None if k % 90 == 0 else text for k, text in enumerate(MESSAGE)],
        "empty": pl.Series([None] * ROWS, dtype=pl.Float64),
    }
)
LATE = (np.median(SIGNAL) < SIGNAL).astype(int)
CLASSES = np.digitize(SIGNAL, np.quantile(SIGNAL, [0.33, 0.66]))
TABULAR = {"arima", "kmeans", "neural_network"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As on a worker; threads that wait for each other on a busy machine take most of the time otherwise."""
    with threadpool_limits(1):
        yield


def tabular(kind: catalogue.Kind) -> list[str]:
    return [name for name in catalogue.names(kind) if name not in TABULAR]


def test_the_catalogue_has_the_models_of_the_field_and_they_are_installed() -> None:
    asked = {
        "linear", "logistic", "ridge", "lasso", "decision_tree", "random_forest", "hist_gradient_boosting", "xgboost", "lightgbm", "kmeans",
        "linear_svm", "arima", "neural_network",
    }  # fmt: skip
    assert asked <= set(catalogue.names(installed=False))
    assert asked - {"neural_network"} <= set(catalogue.names())
    table = catalogue.listing()
    assert table.filter(model="xgboost")["kinds"].item() == "classifier, regressor"


@pytest.mark.parametrize("name", tabular("classifier"))
def test_every_classifier_fits_numbers_flags_categories_texts_and_gaps_and_comes_back_from_its_file(name: str) -> None:
    model = training.fit(catalogue.pipeline(name, FRAME, LATE), FRAME[:600], LATE[:600])
    frame = training.rows.features(FRAME[600:])
    rates = model.predict_proba(frame)
    assert rates.shape == (300, 2)
    assert np.isfinite(rates).all()
    if name != "constant":
        assert roc_auc_score(LATE[600:], rates[:, 1]) > 0.9
    data = skops.io.dumps(model)
    again = skops.io.loads(data, trusted=package.untrusted(data))
    assert again.predict_proba(frame).tolist() == rates.tolist()


@pytest.mark.parametrize("name", tabular("regressor"))
def test_every_regressor_does_too(name: str) -> None:
    model = training.fit(catalogue.pipeline(name, FRAME, SIGNAL), FRAME[:600], SIGNAL[:600])
    frame = training.rows.features(FRAME[600:])
    values = model.predict(frame)
    if name != "constant":
        assert r2_score(SIGNAL[600:], values) > 0.6
    data = skops.io.dumps(model)
    assert skops.io.loads(data, trusted=package.untrusted(data)).predict(frame).tolist() == values.tolist()


@pytest.mark.parametrize("name", ["logistic", "linear_svm", "random_forest", "xgboost", "lightgbm"])
def test_more_than_two_classes_are_told_apart(name: str) -> None:
    model = training.fit(catalogue.pipeline(name, FRAME, CLASSES), FRAME[:600], CLASSES[:600])
    frame = training.rows.features(FRAME[600:])
    assert (model.predict(frame) == CLASSES[600:]).mean() > 0.75
    assert model.predict_proba(frame).shape == (300, 3)


@pytest.mark.parametrize("name", ["logistic", "random_forest", "hist_gradient_boosting"])
def test_a_category_that_was_never_seen_and_a_missing_row_get_an_answer(name: str) -> None:
    model = training.fit(catalogue.pipeline(name, FRAME, LATE), FRAME, LATE)
    strange = pd.DataFrame(
        {
            "hour": [np.nan, 5.0],
            "wet": [np.nan, 1.0],
            "carrier": [np.nan, "ZZ"],
            "message": [np.nan, "unheard of"],
            "empty": [np.nan, 3.0],
        }
    )
    assert np.isfinite(model.predict_proba(strange)).all()


def test_clusters_need_no_labels() -> None:
    numbers = FRAME.select(pl.col("hour").fill_null(0), "wet")
    model = catalogue.pipeline("kmeans", numbers, n_clusters=4).fit(training.rows.features(numbers))
    assert set(model.predict(training.rows.features(numbers))) == {0, 1, 2, 3}


# Time series


def test_a_series_is_followed_and_forecast_by_its_moment_alone_in_any_order() -> None:
    from sklearn.base import clone
    from statsmodels.tsa.arima.model import ARIMA

    days = np.arange(300.0)
    series = np.zeros(300)
    for k in range(1, 300):
        series[k] = 0.8 * series[k - 1] + RANDOM.normal()
    shuffled = RANDOM.permutation(280)
    pipeline = catalogue.pipeline("arima", pd.DataFrame({"day": days}), series, p=1)
    model = clone(pipeline).fit(pd.DataFrame({"day": days[shuffled]}), series[shuffled])
    peer = ARIMA(series[:280], order=(1, 0, 0)).fit()
    ahead = pd.DataFrame({"day": days[280:][::-1]})
    assert model.predict(ahead) == pytest.approx(peer.forecast(20)[::-1], rel=1e-6)
    assert model.predict(pd.DataFrame({"day": [280.0]})) == pytest.approx(peer.forecast(1), rel=1e-6)
    data = skops.io.dumps(model)
    assert (
        skops.io.loads(data, trusted=package.untrusted(data)).predict(ahead).tolist() == model.predict(ahead).tolist()
    )


@pytest.mark.parametrize(
    ("moments", "words"),
    [
        ([0.0, 1.0, 1.0, *range(2, 9)], "unevenly spaced"),
        ([0.0, 1.0], "is shorter than 8"),
        ([np.nan, *range(9)], "missing or infinite"),
    ],
)
def test_a_series_with_holes_is_refused(moments: list[float], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        catalogue.get("arima").make("regressor").fit(pd.DataFrame({"day": moments}), np.arange(float(len(moments))))


# What is done to the answer belongs to the pipeline


def test_calibration_threshold_selection_and_log_target_are_in_the_pipeline() -> None:
    from sklearn.metrics import brier_score_loss

    numbers = FRAME.select("hour", "wet", "carrier")
    plain = training.fit(
        catalogue.pipeline("decision_tree", numbers, LATE, min_samples_leaf=1), numbers[:600], LATE[:600]
    )
    calibrated = catalogue.pipeline(
        "decision_tree", numbers, LATE, calibrate="isotonic", threshold=0.9, select=0.5, min_samples_leaf=1
    )
    assert list(catalogue.space("decision_tree", calibrated)) == [
        "model__estimator__estimator__max_depth", "model__estimator__estimator__min_samples_leaf",
    ]  # fmt: skip
    fitted = training.fit(calibrated, numbers[:600], LATE[:600])
    later = training.rows.features(numbers[600:])
    rates = fitted.predict_proba(later)[:, 1]
    assert brier_score_loss(LATE[600:], rates) < brier_score_loss(LATE[600:], plain.predict_proba(later)[:, 1])
    assert fitted.predict(later).tolist() == (rates >= 0.9).astype(int).tolist()
    grown = np.exp(SIGNAL)
    logged = training.fit(catalogue.pipeline("ridge", FRAME, grown, log_target=True), FRAME, grown)
    assert r2_score(SIGNAL, np.log1p(logged.predict(training.rows.features(FRAME)))) > 0.9


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda: catalogue.pipeline("ridg", FRAME, SIGNAL), "did you mean 'ridge'"),
        (lambda: catalogue.pipeline("ridge", FRAME, LATE), "is no classifier"),
        (lambda: catalogue.pipeline("ridge", FRAME, SIGNAL, alfa=1), "unexpected keyword argument 'alfa'"),
        (lambda: catalogue.pipeline("ridge", FRAME, SIGNAL, calibrate="sigmoid"), "are for classifiers"),
        (lambda: catalogue.pipeline("logistic", FRAME, LATE, log_target=True), "is for regressors"),
        (lambda: catalogue.pipeline("logistic", FRAME, LATE, select=1.5), "is not between 0 and 1"),
        (lambda: catalogue.pipeline("logistic", FRAME.select([]), LATE), "has no columns"),
    ],
)
def test_what_does_not_fit_together_is_told_at_once(attempt: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        attempt()


# Bad rows


@pytest.mark.parametrize(
    ("X", "y", "words"),
    [
        (FRAME, [*LATE[:-1].tolist(), None], "1 of 900.*are missing"),
        (FRAME, [*SIGNAL[:-1].tolist(), float("inf")], "1 of 900.*are infinite"),
        (FRAME, np.ones(ROWS), "are all the same"),
        (FRAME, ["late"] * ROWS, "labels 'late': are no numbers; give each class a number"),
        (FRAME, LATE[:-1], "are not one for each of the 900 rows"),
        (FRAME[:0], LATE[:0], "are none"),
        (FRAME.with_columns(hour=pl.Series([float("inf"), *HOUR[1:]])), LATE, "column 'hour': holds 1 infinite values"),
        (FRAME.with_columns(hour=pl.Series([[1]] * ROWS)), LATE, "column 'hour': holds List"),
        (np.array([[np.inf]] * ROWS), LATE, "900.*are infinite"),
    ],
)
def test_rows_that_no_model_can_learn_from_are_refused_with_the_column(X: Any, y: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        training.fit(catalogue.pipeline("hist_gradient_boosting", FRAME, LATE), X, y)


# Others may add models


def test_a_package_adds_a_model_by_an_entry_point_and_cannot_take_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "orchard_models.py").write_text(
        "from cellwork.training.catalogue import Made, Model, Number\n"
        "nearest = Model('nearest', 'neighbours', {'classifier': Made('sklearn.neighbors:KNeighborsClassifier')},\n"
        "                {'n_neighbors': Number(1, 50, whole=True)})\n"
    )
    about = tmp_path / "orchard-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: orchard\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[cellwork.models]\nnearest = orchard_models:nearest\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    entries._all.cache_clear()
    try:
        assert "nearest" in catalogue.names("classifier")
        model = training.fit(catalogue.pipeline("nearest", FRAME, LATE, n_neighbors=5), FRAME, LATE)
        assert model[-1].n_neighbors == 5
        (about / "entry_points.txt").write_text("[cellwork.models]\nridge = orchard_models:nearest\n")
        entries._all.cache_clear()
        with pytest.raises(BadInput, match="takes its name"):
            catalogue.names()
    finally:
        sys.modules.pop("orchard_models", None)
        monkeypatch.undo()
        entries._all.cache_clear()


# PyTorch, run by `make torch`


@pytest.mark.torch
def test_a_network_learns_and_comes_back_from_its_file_without_torchs_pickle() -> None:
    for y, score in ((LATE, roc_auc_score), (CLASSES, None), (SIGNAL * 1000, r2_score)):
        model = training.fit(catalogue.pipeline("neural_network", FRAME, y, epochs=30, batch=64), FRAME[:600], y[:600])
        frame = training.rows.features(FRAME[600:])
        says = model.predict_proba(frame) if score is not r2_score else model.predict(frame)
        found = (
            score(y[600:], says[:, 1] if score is roc_auc_score else says)
            if score
            else (says.argmax(axis=1) == y[600:]).mean()
        )
        assert found > 0.8
        assert model[-1].losses_[-1] < model[-1].losses_[0]
        data = skops.io.dumps(model)
        again = skops.io.loads(data, trusted=package.untrusted(data))
        assert (again.predict_proba if score is not r2_score else again.predict)(frame).tolist() == says.tolist()
