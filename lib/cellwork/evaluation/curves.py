"""Curves of a classifier's scores, as frames to look at or to plot: ROC, precision and recall, calibration, gains; a regressor's residuals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cellwork.evaluation import metrics

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import ArrayLike

POINTS = 200
Z95 = 1.959963984540054


def roc(y: ArrayLike, scores: ArrayLike) -> pl.DataFrame:
    """Return ``threshold``, ``false_positive_rate``, ``true_positive_rate``: at most `POINTS` rows, the ends among them."""
    import polars as pl
    from sklearn.metrics import roc_curve

    truth, score = metrics.checked(y, scores, "classifier")
    false, true, threshold = roc_curve(truth, score)
    return _thinned(pl.DataFrame({"threshold": threshold, "false_positive_rate": false, "true_positive_rate": true}))


def precision_recall(y: ArrayLike, scores: ArrayLike) -> pl.DataFrame:
    """Return ``threshold``, ``recall``, ``precision``; the last point (recall 0) has no threshold."""
    import polars as pl
    from sklearn.metrics import precision_recall_curve

    truth, score = metrics.checked(y, scores, "classifier")
    precision, recall, threshold = precision_recall_curve(truth, score)
    return _thinned(pl.DataFrame({"threshold": [*threshold.tolist(), None], "recall": recall, "precision": precision}))


def calibration(y: ArrayLike, scores: ArrayLike, *, bins: int = metrics.BINS) -> pl.DataFrame:
    """Return ``score`` (mean), ``rate``, its Wilson interval ``low`` and ``high``, and ``rows``, of bins of about equally many rows.

    Rows of one score are in one bin, so the order of rows changes nothing.
    """
    import numpy as np
    import polars as pl

    truth, score = metrics.checked(y, scores, "classifier")
    order = np.argsort(score, kind="stable")
    parts = np.split(order, metrics.bins(score[order], bins)[1:])
    rows = [(float(score[part].mean()), *_wilson(float(truth[part].sum()), part.size), part.size) for part in parts]
    return pl.DataFrame(rows, ["score", "rate", "low", "high", "rows"], orient="row")


def gains(y: ArrayLike, scores: ArrayLike) -> pl.DataFrame:
    """Return ``share`` of rows taken from the best score down, ``found``: the share of positives among them, and ``lift``."""
    import numpy as np
    import polars as pl

    truth, score = metrics.checked(y, scores, "classifier")
    hits = np.cumsum(truth[np.argsort(-score, kind="stable")]) / truth.sum()
    share = np.arange(1, len(truth) + 1) / len(truth)
    return _thinned(pl.DataFrame({"share": share, "found": hits, "lift": hits / share}))


def residuals(y: ArrayLike, predictions: ArrayLike, *, bins: int = metrics.BINS) -> pl.DataFrame:
    """Return ``prediction`` (mean), ``residual`` (mean of label less prediction), ``low`` and ``high`` (the middle nine tenths of the
    residuals), and ``rows``, of bins of about equally many rows by prediction; rows of one prediction are in one bin."""
    import numpy as np
    import polars as pl

    truth, score = metrics.checked(y, predictions, "regressor")
    order = np.argsort(score, kind="stable")
    rows = []
    for part in np.split(order, metrics.bins(score[order], bins)[1:]):
        left = truth[part] - score[part]
        low, high = np.percentile(left, [5, 95])
        rows.append((float(score[part].mean()), float(left.mean()), float(low), float(high), part.size))
    return pl.DataFrame(rows, ["prediction", "residual", "low", "high", "rows"], orient="row")


def _thinned(frame: pl.DataFrame) -> pl.DataFrame:
    import numpy as np
    import polars as pl

    places = np.unique(np.linspace(0, frame.height - 1, min(POINTS, frame.height)).round().astype(int))
    return frame.select(pl.all().gather(places.tolist()))


def _wilson(hits: float, rows: int) -> tuple[Any, ...]:
    rate, spread = hits / rows, Z95**2 / rows
    middle = (rate + spread / 2) / (1 + spread)
    half = Z95 * ((rate * (1 - rate) + spread / 4) / rows) ** 0.5 / (1 + spread)
    return rate, min(rate, middle - half), max(rate, middle + half)
