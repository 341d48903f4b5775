"""ROC AUC and its interval: how well scores order what happened after what did not.

The value is the share of (positive, negative) pairs in the right order, ties a half; the variance is DeLong's (1988), from where
each score of one class stands among the sorted scores of the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellwork.wire.evaluations import Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

Z95 = 1.959963984540054


def auc(labels: ArrayLike, scores: ArrayLike) -> Metric | None:
    """Return the area under the ROC curve with its 95 % interval, or None where it is not defined.

    Parameters
    ----------
    labels, scores : shape (n,)
        Labels other than 0 and 1, or only one of the two, leave the area undefined.
    """
    import numpy as np

    truth, score = np.asarray(labels, dtype=float), np.asarray(scores, dtype=float)
    positive, negative = np.sort(score[truth == 1]), np.sort(score[truth == 0])
    m, n = len(positive), len(negative)
    if not m or not n or m + n != len(truth):
        return None
    above, below = _share_below(positive, negative), 1 - _share_below(negative, positive)
    value = float(above.mean())
    half = Z95 * (_variance(above) / m + _variance(below) / n) ** 0.5
    return Metric(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def _share_below(values: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each of the sorted `values` which share of the sorted `others` is smaller, equal ones counting half."""
    import numpy as np

    places = np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")
    shares: NDArray[np.float64] = places / (2 * len(others))
    return shares


def _variance(values: NDArray[np.float64]) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0
