"""Whether one model is better than another on the same rows: a paired bootstrap of the difference of one metric.

Both models are measured on the rows of each draw, so what makes rows hard for both cancels out; the interval is far narrower than what
two intervals beside each other would suggest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellwork.evaluation import metrics
from cellwork.wire.evaluations import Difference

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

DRAWS = 500


def difference(
    y: ArrayLike, scores: ArrayLike, others: ArrayLike, *, metric: str, draws: int = DRAWS, seed: int = 0
) -> Difference:
    """Return by how much `scores` are better than `others`, in the unit of `metric`; a loss counts the other way round.

    Parameters
    ----------
    y, scores, others : shape (n,), of the same rows in the same order
        Labels, and the scores of the two models.

    Raises
    ------
    BadInput
        The metric is unknown, shapes differ, or labels or scores are not what the metric takes.
    """
    import numpy as np

    kind = metrics.kind_of(metric)
    truth, one = metrics.checked(y, scores, kind)
    other = metrics.checked(y, others, kind)[1]
    sign = 1.0 if metric in metrics.GREATER_IS_BETTER else -1.0

    def gap(drawn: metrics.Floats) -> metrics.Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            found: metrics.Floats = sign * (
                metrics.under(metric, truth, one, drawn) - metrics.under(metric, truth, other, drawn)
            )
        return found

    value = float(gap(np.ones((1, len(truth))))[0])
    gaps = np.concatenate([gap(each) for each in metrics.weights(len(truth), draws, seed)])
    gaps = gaps[np.isfinite(gaps)]
    if not gaps.size:
        return Difference(metric=metric, value=value, low=value, high=value, p=1.0)
    low, high = np.percentile(gaps, [2.5, 97.5])
    beyond = 1 + min(int((gaps <= 0).sum()), int((gaps >= 0).sum()))
    return Difference(
        metric=metric, value=value, low=min(float(low), value), high=max(float(high), value), p=min(1.0, 2 * beyond / (gaps.size + 1))
    )  # fmt: skip
