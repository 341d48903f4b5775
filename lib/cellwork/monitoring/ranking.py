"""ROC AUC and its interval: how well scores order what happened after what did not.

The value is the share of (positive, negative) pairs in the right order, ties a half. The interval holds every area from which the value
is at most 1.96 standard errors away, so that few members of a class or an area of 0 or 1 make it wide, never narrow. The variance is
the greater of two:

- DeLong's (1988), from where each score of one class stands among the sorted scores of the other, with one more member in each class, of
  which nothing is known: it counts with the most that the spread can be where the area is A, A (1 - A). Beside many that one is nothing.
- Hanley and McNeil's (1982) as in method 5 of Newcombe, Confidence intervals for an effect size measure based on the Mann-Whitney statistic,
  part 2 (Statistics in Medicine 25, 2006, 559-573): what the area and the numbers of both classes let expect, however alike the few members are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellwork.wire.evaluations import Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

Z95 = 1.959963984540054
HALVINGS = 50

Spreads = tuple[tuple[float, int], tuple[float, int]]
"""Of positives and negatives: the sum of squares of where they stand among the others, around its mean, and how many they are."""


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
    spreads = ((_squares(above), m), (_squares(below), n))
    return Metric(value=value, low=_bound(value, 0.0, spreads), high=_bound(value, 1.0, spreads))


def _share_below(values: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each of the sorted `values` which share of the sorted `others` is smaller, equal ones counting half."""
    import numpy as np

    places = np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")
    shares: NDArray[np.float64] = places / (2 * len(others))
    return shares


def _squares(values: NDArray[np.float64]) -> float:
    return float(((values - values.mean()) ** 2).sum())


def _bound(value: float, end: float, spreads: Spreads) -> float:
    """Return the area nearest to `end`, 0 or 1, that `value` is not surely away from."""
    inside = value
    for _ in range(HALVINGS):
        area = (inside + end) / 2
        if (area - value) ** 2 > Z95**2 * _variance(area, spreads):
            end = area
        else:
            inside = area
    return end


def _variance(area: float, spreads: Spreads) -> float:
    """Return the variance of the value where the area is `area`; see the module."""
    most = area * (1 - area)
    (_, m), (_, n) = spreads
    delong = sum((squares + most) / members**2 for squares, members in spreads)
    newcombe = most * (1 + ((m + n) / 2 - 1) * ((1 - area) / (2 - area) + area / (1 + area))) / (m * n)
    return max(delong, newcombe)
