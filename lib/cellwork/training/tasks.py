"""What runs on a worker: rows of a fold, a shared preparation, a fit, a score. Nothing here knows of Dask."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from cellwork.training import measure
from cellwork.training.catalogue.model import kind_of
from cellwork.training.rows import checked, features, truth

SEED = 0
LEAST_VALIDATION = 1000
"""A candidate tried on a share of the training rows is measured on the same share of the others, but not on fewer than this."""


@dataclass(frozen=True)
class Data:
    """What a worker holds: rows to fit on, and the rows of each measurement."""

    X: Any
    y: Any
    validation: tuple[Any, Any] | None
    splits: list[tuple[Any, Any]]

    @classmethod
    def of(cls, X: Any, y: Any, validation: tuple[Any, Any] | None, folds: Any) -> Data:
        from sklearn.model_selection import check_cv

        from cellwork.errors import BadInput

        frame, labels = checked(X, y)
        if validation is not None:
            return cls(frame, labels, (features(validation[0]), truth(validation[1])), [])
        try:
            splits = list(check_cv(folds, labels, classifier=kind_of(labels) == "classifier").split(frame, labels))
        except ValueError as error:
            raise BadInput(
                "folds", folds, f"do not suit the {len(labels):,} rows: {error}", "take fewer, or more rows"
            ) from None
        return cls(frame, labels, None, splits)

    @property
    def folds(self) -> int:
        return max(1, len(self.splits))

    def training(self, fold: int | None, fraction: float) -> tuple[Any, Any]:
        """Return rows and labels to fit on; of all folds (None), every row."""
        import numpy as np

        rows = self.splits[fold][0] if self.splits and fold is not None else np.arange(len(self.y))
        if fraction < 1:
            rows = sample(rows, fraction)
        elif len(rows) == len(self.y):
            return self.X, self.y
        return take(self.X, rows), self.y[rows]

    def measuring(self, fold: int, fraction: float) -> tuple[Any, Any]:
        """Return rows and labels to measure on."""
        import numpy as np

        if self.validation is not None:
            X, y = self.validation
            rows = np.arange(len(y))
        else:
            X, y, rows = self.X, self.y, self.splits[fold][1]
        if fraction < 1 and fraction * len(rows) < len(rows) and len(rows) > LEAST_VALIDATION:
            rows = sample(rows, max(fraction, LEAST_VALIDATION / len(rows)))
        elif self.validation is not None:
            return X, y
        return take(X, rows), y[rows]


def sample(rows: Any, fraction: float) -> Any:
    """Return a share of `rows`, in their order; a smaller share is part of a larger one."""
    import numpy as np

    order = np.random.default_rng(SEED).permutation(len(rows))
    return rows[np.sort(order[: max(1, round(fraction * len(rows)))])]


def take(X: Any, rows: Any) -> Any:
    return X.iloc[rows] if hasattr(X, "iloc") else X[rows]


@dataclass(frozen=True)
class Prepared:
    """The first steps of a pipeline, fitted, and what they make of the rows."""

    steps: list[tuple[str, Any]]
    training: tuple[Any, Any]
    measuring: tuple[Any, Any]
    seconds: float


def prepare(steps: list[tuple[str, Any]], data: Data, fold: int, fraction: float) -> Prepared:
    """Return the fitted `steps` with the rows they give for a fold."""
    from sklearn.base import clone
    from sklearn.pipeline import Pipeline

    started = time.perf_counter()
    X, y = data.training(fold, fraction)
    pipeline = Pipeline([(name, clone(step) if step != "passthrough" else step) for name, step in steps])
    fitted = pipeline.fit_transform(X, y)
    others, labels = data.measuring(fold, fraction)
    return Prepared(pipeline.steps, (fitted, y), (pipeline.transform(others), labels), time.perf_counter() - started)


def fit(model: Any, data: Data, fold: int | None, fraction: float = 1.0) -> tuple[Any, float]:
    """Return the fitted model and its seconds."""
    started = time.perf_counter()
    model.fit(*data.training(fold, fraction))
    return model, time.perf_counter() - started


def fit_last(step: tuple[str, Any], prepared: Prepared) -> tuple[Any, float]:
    """Return the pipeline whose first steps were `prepared`, its last one fitted here, and the seconds of that."""
    from sklearn.pipeline import Pipeline

    started = time.perf_counter()
    name, model = step
    model.fit(*prepared.training)
    return Pipeline([*prepared.steps, (name, model)]), time.perf_counter() - started


Scored = tuple[float, float, Any]
"""A metric, the seconds of the fit, and the answers where they are kept."""


def score(
    fitted: tuple[Any, float], data: Data, fold: int, fraction: float, metric: str, answers: bool = False
) -> Scored:
    """Return the metric on the fold's rows, the seconds of the fit, and what the model said of the rows."""
    X, y = data.measuring(fold, fraction)
    said = measure.answers(fitted[0], X) if answers else None
    return measure.value(metric, fitted[0], X, y), fitted[1], said


def score_last(fitted: tuple[Any, float], prepared: Prepared, metric: str) -> Scored:
    """Return the metric of a pipeline's last step on what the first steps made of the fold's rows."""
    return measure.value(metric, fitted[0].steps[-1][1], *prepared.measuring), fitted[1], None


def fit_and_score(model: Any, data: Data, fold: int, fraction: float, metric: str, answers: bool = False) -> Scored:
    return score(fit(model, data, fold, fraction), data, fold, fraction, metric, answers)


def fit_and_score_last(step: tuple[str, Any], prepared: Prepared, metric: str) -> Scored:
    return score_last(fit_last(step, prepared), prepared, metric)
