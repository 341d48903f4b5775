"""What a model must beat: the label's rate (or mean) in groups of one column, or overall, or the value that a column has already.

scikit-learn estimators, by protocol.

They don't inherit from scikit-learn, so that naming a baseline does not import it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cellwork.errors import BadInput, near_miss

if TYPE_CHECKING:
    import numpy as np


class Constant:
    """The label's overall rate, whatever the features."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {}

    def set_params(self, **parameters: Any) -> Constant:
        if parameters:
            raise BadInput(
                "parameter",
                next(iter(parameters)),
                f"is not one of {type(self).__name__}",
                near_miss(next(iter(parameters)), self.get_params()),
            )
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier", target_tags=TargetTags(required=True), transformer_tags=None, regressor_tags=None,
            classifier_tags=ClassifierTags(multi_class=False), input_tags=InputTags(allow_nan=True, string=True),
        )  # fmt: skip

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "rate_")

    def fit(self, X: Any, y: Any) -> Constant:
        """Learn the rate of `y`, shape (n,), 0 and 1."""
        import numpy as np

        self.classes_ = np.array([0, 1])
        self.rate_ = float(np.mean(np.asarray(y, dtype=float)))
        return self

    def _rates(self, X: Any) -> np.ndarray[Any, Any]:
        import numpy as np

        return np.full(len(X), self.rate_)

    def predict_proba(self, X: Any) -> np.ndarray[Any, Any]:
        """Return the rates of 0 and 1, shape (n, 2)."""
        import numpy as np

        rates = self._rates(X)
        return np.column_stack([1 - rates, rates])

    def predict(self, X: Any) -> np.ndarray[Any, Any]:
        return (self._rates(X) >= 0.5).astype(int)


class RateBy(Constant):
    """The label's rate by the value of one column; the overall rate where a value is missing or was not seen.

    Parameters
    ----------
    column : e.g. the scheduled hour.
    """

    def __init__(self, column: str) -> None:
        self.column = column

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {"column": self.column}

    def set_params(self, **parameters: Any) -> RateBy:
        self.column = parameters.pop("column", self.column)
        super().set_params(**parameters)
        return self

    def fit(self, X: Any, y: Any) -> RateBy:
        """Learn the rate of `y`, shape (n,), for each value of the column of `X`."""
        import numpy as np

        super().fit(X, y)
        codes, self.values_ = self._codes(X)
        seen = codes >= 0
        counts = np.bincount(codes[seen], minlength=len(self.values_))
        self.rates_ = np.bincount(codes[seen], np.asarray(y, dtype=float)[seen], minlength=len(self.values_)) / counts
        return self

    def _codes(self, X: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        import numpy as np
        import pandas as pd

        if self.column not in X.columns:
            raise BadInput(
                "baseline column", self.column, "is not in the frame", near_miss(self.column, map(str, X.columns))
            )
        codes, values = pd.factorize(np.asarray(X[self.column]))
        return codes, np.asarray(values)

    def _rates(self, X: Any) -> np.ndarray[Any, Any]:
        import numpy as np

        codes, values = self._codes(X)
        known = dict(zip(self.values_.tolist(), self.rates_.tolist(), strict=True))
        table = np.array([*(known.get(value, self.rate_) for value in values.tolist()), self.rate_])
        rates: np.ndarray[Any, Any] = table[codes]
        return rates


class LastValue(Constant):
    """What a column says already: the label's last value, a forecast of somebody's, a rule's answer; the overall rate where it is missing.

    Parameters
    ----------
    column : numbers, for classes between 0 and 1.
    """

    def __init__(self, column: str) -> None:
        self.column = column

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {"column": self.column}

    def set_params(self, **parameters: Any) -> LastValue:
        self.column = parameters.pop("column", self.column)
        super().set_params(**parameters)
        return self

    def _rates(self, X: Any) -> np.ndarray[Any, Any]:
        import numpy as np

        if self.column not in X.columns:
            way = near_miss(self.column, map(str, X.columns))
            raise BadInput("baseline column", self.column, "is not in the frame", way)
        try:
            values = np.asarray(X[self.column], dtype=float)
        except (TypeError, ValueError):
            raise BadInput(
                "baseline column", self.column, "holds no numbers", "take the rate by it: without '='"
            ) from None
        return np.where(np.isnan(values), self.rate_, values)


VALUE, VERSION = "=", "@"


def of(name: str) -> Constant:
    """Return the unfitted baseline of a name: a column's, ``=column`` for what that column says itself, empty for the overall rate."""
    if name.startswith(VALUE):
        return LastValue(name.removeprefix(VALUE))
    return RateBy(name) if name else Constant()


def text(name: str) -> str:
    """Return how a baseline's name is said in a sentence."""
    if name.startswith(VALUE):
        return f"what {name.removeprefix(VALUE)!r} says"
    if name.startswith(VERSION):
        return f"version {name.removeprefix(VERSION)}"
    return f"the rate by {name!r}" if name else "the overall rate"
