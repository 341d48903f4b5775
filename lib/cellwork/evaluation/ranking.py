"""How well scores rank within groups (a query, a session, a day): NDCG, MAP, precision and recall among the first k, with 95 % intervals.

Groups, not rows, are drawn for the intervals, for rows of one group share its luck. Ties are broken by a seeded draw, so that a model which
says the same to all does not live on the order in which the rows came. Groups without a relevant row can't be ranked well or badly: they are
left out of all four.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cellwork.errors import BadInput
from cellwork.wire.evaluations import Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

DRAWS = 1000


def measure(
    relevance: ArrayLike, scores: ArrayLike, groups: ArrayLike, *, k: int = 10, draws: int = DRAWS, seed: int = 0
) -> dict[str, Metric]:
    """Return ``ndcg``, ``map``, ``precision`` and ``recall`` at `k`, each the mean over groups.

    Parameters
    ----------
    relevance, scores, groups : shape (n,)
        How relevant a row is (0: not at all; NDCG's gain is 2 ** relevance - 1), its score, and which group it is of.

    Raises
    ------
    BadInput
        Shapes differ, a number is not finite or a relevance below 0, `k` is below 1, or no group has a relevant row.

    Source: Järvelin and Kekäläinen 2002 (NDCG); average precision at k divides by min(k, relevant rows).
    """
    import numpy as np

    each = _of_groups(*_sorted(relevance, scores, groups, k, seed), k)
    usable = {name: values[each["relevant"] > 0] for name, values in each.items() if name != "relevant"}
    count = len(next(iter(usable.values())))
    if not count:
        raise BadInput("relevance", 0, "is that of every row", "rank rows of which some are relevant")
    drawn = np.random.default_rng(seed).integers(0, count, (draws, count))
    return {name: _interval(values, values[drawn].mean(axis=1)) for name, values in usable.items()}


def _sorted(relevance: ArrayLike, scores: ArrayLike, groups: ArrayLike, k: int, seed: int) -> tuple[Any, Any, Any]:
    """Return relevance by falling score within each group, the group's number of each row, and where each group starts."""
    import numpy as np

    gain, score = np.asarray(relevance, dtype=float), np.asarray(scores, dtype=float)
    names = np.asarray(groups)
    if gain.ndim != 1 or gain.shape != score.shape or gain.shape != names.shape or not gain.size:
        raise BadInput(
            "relevance, scores and groups",
            f"{gain.shape}, {score.shape}, {names.shape}",
            "are not three columns of one length",
            "give one of each a row",
        )
    if not np.isfinite(gain).all() or not np.isfinite(score).all() or gain.min() < 0:
        raise BadInput(
            "relevance and scores", "", "are not all finite, or a relevance is below 0", "leave those rows out"
        )
    if k < 1:
        raise BadInput("k", k, "is below 1", "look at the first row at least")
    codes = np.unique(names, return_inverse=True)[1].ravel()
    tie = np.random.default_rng(seed).permutation(gain.size)
    order = np.lexsort((tie, -score, codes))
    codes = codes[order]
    return gain[order], codes, np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])


def _of_groups(gain: Any, codes: Any, starts: Any, k: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return name -> one value a group, and ``relevant``: its relevant rows."""
    import numpy as np

    place = np.arange(gain.size) - starts[codes]
    first, hit = place < k, (gain > 0).astype(float)
    hits = np.cumsum(hit) - (np.cumsum(hit) - hit)[starts][codes]
    best = np.lexsort((-gain, codes))
    discount = np.where(first, 1 / np.log2(place + 2.0), 0.0)

    def total(values: Any) -> Any:
        return np.add.reduceat(values, starts)

    relevant = total(hit)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "ndcg": total((2.0**gain - 1) * discount) / total((2.0 ** gain[best] - 1) * discount),
            "map": total(hit * first * hits / (place + 1)) / np.minimum(relevant, k),
            "precision": total(hit * first) / k,
            "recall": total(hit * first) / relevant,
            "relevant": relevant,
        }


def _interval(values: Any, means: Any) -> Metric:
    import numpy as np

    value = float(values.mean())
    low, high = np.percentile(means, [2.5, 97.5]) if len(means) else (value, value)
    return Metric(value=value, low=min(float(low), value), high=max(float(high), value))
