"""ROC AUC by ranks, and its interval: how well scores order what happened after what did not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellwork.wire.evaluations import Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

Z95 = 1.959963984540054


def auc(labels: ArrayLike, scores: ArrayLike) -> Metric | None:
    """Return the area under the ROC curve with its 95 % interval, or None where it is not defined.

    The value is the share of (positive, negative) pairs in the right order, ties a half; the variance is DeLong's
    (1988), computed from midranks (Sun and Xu 2014).

    Parameters
    ----------
    labels, scores : shape (n,)
        Labels other than 0 and 1, or only one of the two, leave the area undefined.
    """
    import numpy as np

    truth, score = np.asarray(labels, dtype=float), np.asarray(scores, dtype=float)
    positive, negative = score[truth == 1], score[truth == 0]
    m, n = len(positive), len(negative)
    if not m or not n or m + n != len(truth):
        return None
    together = midranks(np.concatenate([positive, negative]))
    above = (together[:m] - midranks(positive)) / n
    below = 1 - (together[m:] - midranks(negative)) / m
    value = float(above.mean())
    variance = _variance(above) / m + _variance(below) / n
    half = Z95 * variance**0.5
    return Metric(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def _variance(values: NDArray[np.float64]) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


def midranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks from 1; equal values share the mean of their ranks."""
    import numpy as np

    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return ranks
