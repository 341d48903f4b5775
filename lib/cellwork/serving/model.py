"""A registered model as a predictor's child holds it: columns of plain values in, one score a row out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cellwork.models import package
from cellwork.models.columns import Column, to_pandas
from cellwork.models.confine import confine


class Model:
    def __init__(self, estimator: Any, columns: list[Column]) -> None:
        self.estimator, self.columns = estimator, columns
        self.how = f"scikit-learn's {type(estimator).__name__} in a child process"

    def scores(self, values: dict[str, list[Any]]) -> list[float]:
        """Return one score a row; `values` holds one list a column, None where there is no value."""
        scores: list[float] = package.scores(self.estimator, to_pandas(values, self.columns)).tolist()
        return scores


def load(folder: Path) -> Model:
    """Return the model of a checked folder, and confine this process to it; see `cellwork.models.package.load` for what is refused."""
    estimator, manifest = package.load(folder), package.read(folder)
    if not manifest.wheels:
        confine(folder)
    return Model(estimator, manifest.columns)
