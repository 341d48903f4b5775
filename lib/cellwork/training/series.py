"""A time series as a model of one column: the number of the moment (day, hour, week) in, the series' value out.

The fitted model keeps the series and a handful of numbers, nothing of statsmodels, and is a function of its row: any order of
rows and any distance from the end will do.
"""

from __future__ import annotations

import warnings
from typing import Any

from cellwork.errors import BadInput, near_miss
from cellwork.training.estimator import Estimator

MOST_AHEAD = 100_000


class Arima(Estimator):
    """ARIMA(p, d, q) of evenly spaced moments, one row each.

    Parameters
    ----------
    time : the column with the moment's number; empty: the first one.
    p, d, q : terms of the past, differences taken, terms of past errors.
    season : moments a season has; with it a seasonal term of each.
    """

    _NAMES = ("time", "p", "d", "q", "season")

    def __init__(self, time: str = "", p: int = 1, d: int = 0, q: int = 0, season: int = 0) -> None:
        self.time, self.p, self.d, self.q, self.season = time, p, d, q, season

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, RegressorTags, Tags, TargetTags

        return Tags(
            estimator_type="regressor", target_tags=TargetTags(required=True), transformer_tags=None,
            regressor_tags=RegressorTags(), classifier_tags=None, input_tags=InputTags(string=True, allow_nan=True),
        )  # fmt: skip

    def fit(self, X: Any, y: Any) -> Arima:
        """Fit to `y`, shape (n,), at the moments of `X`.

        Raises
        ------
        BadInput
            Moments are missing, twice there or unevenly spaced, or they are too few.
        """
        import numpy as np

        moments = self._moments(X)
        order = np.argsort(moments, kind="stable")
        moments, series = moments[order], np.asarray(y, dtype=float)[order]
        least = max(8, 2 * self.season + self.p + self.d + self.q + 2)
        if len(series) < least:
            raise BadInput("time series", f"{len(series)} moments", f"is shorter than {least}", "give it more")
        steps = np.diff(moments)
        if not np.allclose(steps, steps[0]) or steps[0] <= 0:
            verdict = "are missing, twice there or unevenly spaced"
            raise BadInput(
                "moments", f"steps from {steps.min():g} to {steps.max():g}", verdict, "aggregate to one row a moment"
            )
        self.start_, self.step_, self.series_ = float(moments[0]), float(steps[0]), series
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # starting values and convergence, which the score tells better
            self.weights_ = np.asarray(self._model().fit().params)
        return self

    def predict(self, X: Any) -> Any:
        """Return the value expected at each row's moment: one step ahead within the series, as far ahead as asked behind it."""
        import numpy as np

        places = np.round((self._moments(X) - self.start_) / self.step_).astype(int)
        if not len(places):
            return np.empty(0)
        last = int(places.max())
        if last > len(self.series_) + MOST_AHEAD:
            raise BadInput(
                "moment", f"{last - len(self.series_)} steps ahead", f"is over {MOST_AHEAD}", "ask for nearer ones"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = np.asarray(self._model().filter(self.weights_).predict(0, max(last, 0)))
        return np.where(places < 0, self.series_.mean(), expected[np.clip(places, 0, None)])

    def _model(self) -> Any:
        from statsmodels.tsa.arima.model import ARIMA

        seasonal = (1, 0, 0, self.season) if self.season else (0, 0, 0, 0)
        return ARIMA(self.series_, order=(self.p, self.d, self.q), seasonal_order=seasonal)

    def _moments(self, X: Any) -> Any:
        import numpy as np

        if hasattr(X, "columns"):
            name = self.time or X.columns[0]
            if name not in X.columns:
                raise BadInput(
                    "column of the moment", name, "is not in the frame", near_miss(name, map(str, X.columns))
                )
            values = X[name]
        else:
            values = np.asarray(X)[:, 0]
        moments = np.asarray(values, dtype=float)
        if not np.isfinite(moments).all():
            raise BadInput(
                "moments", f"{(~np.isfinite(moments)).sum()}", "are missing or infinite", "leave those rows out"
            )
        return moments
