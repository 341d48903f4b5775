"""How far two sketched columns are apart: measures and tests on bins and distribution functions. Pure, on NumPy arrays.

Sources: PSI as used for credit scores (Siddiqi 2006); Jensen-Shannon (Lin 1991) with base 2; the two-sample Kolmogorov-Smirnov
test; Pearson's chi-squared test of homogeneity; Wasserstein-1, the area between both distribution functions; Holm (1979).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cellwork.data.sketches import Ranks

Floats = NDArray[np.float64]

FLOOR = 1e-4
"""A share of nothing counts as this in PSI, which has a logarithm."""
BINS = 10


def bins(reference: Ranks) -> tuple[Floats, Floats]:
    """Return the upper edges of all bins but the last, which are the reference's deciles, and its shares of the bins, shape (k,).

    A value on an edge is in the bin below it; k is at most `BINS`.
    """
    edges = np.unique(reference.quantile(np.linspace(0, 1, BINS + 1)[1:-1]))
    return edges, _between(reference, edges)


def shares(reference: Ranks, window: Ranks) -> tuple[Floats, Floats]:
    """Return the shares of both in the bins of the reference, shape (k,) each."""
    edges, expected = bins(reference)
    return expected, _between(window, edges)


def _between(ranks: Ranks, edges: Floats) -> Floats:
    return np.diff(np.concatenate([[0.0], ranks.cdf(edges), [1.0]]))


def psi(reference: Floats, window: Floats) -> float:
    """Return the population stability index of two arrays of shares."""
    p, q = np.maximum(reference, FLOOR), np.maximum(window, FLOOR)
    return float(np.sum((q - p) * np.log(q / p)))


def jensen_shannon(reference: Floats, window: Floats) -> float:
    """Return the Jensen-Shannon distance of two arrays of shares, 0 to 1."""
    middle = (reference + window) / 2
    divergence = 0.0
    for part in (reference, window):
        there = part > 0
        divergence += float(np.sum(part[there] * np.log2(part[there] / middle[there]))) / 2
    return float(max(divergence, 0.0) ** 0.5)


class Apart:
    """Both distribution functions at every value that either column keeps: exact there, straight lines between."""

    def __init__(self, reference: Ranks, window: Ranks) -> None:
        self.values = np.union1d(reference.values, window.values)
        self.at_most = reference.cdf(self.values) - window.cdf(self.values)
        self.below = reference.cdf(self.values, "left") - window.cdf(self.values, "left")

    def ks(self) -> float:
        """Return the greatest distance between them."""
        return float(max(np.abs(self.at_most).max(), np.abs(self.below).max()))

    def wasserstein(self) -> float:
        """Return the area between them, in the column's unit."""
        left, right = np.abs(self.at_most[:-1]), np.abs(self.below[1:])
        crossing = np.sign(self.at_most[:-1]) * np.sign(self.below[1:]) < 0
        total = left + right
        mean = np.where(crossing, (left**2 + right**2) / np.where(total > 0, 2 * total, 1), total / 2)
        with np.errstate(over="ignore", invalid="ignore"):
            return float(np.sum(mean * np.diff(self.values)))


def ks_p_values(distances: Floats, reference: Floats, window: Floats) -> Floats:
    """Return p-values of KS distances, of columns with so many rows, all shape (k,).

    Kolmogorov's limit with Stephens' correction (1970): within 5 % of the exact value from 100 rows on, at a
    thousandth of its time.
    """
    from scipy.special import kolmogorov

    root = np.sqrt(reference * window / (reference + window))
    found: Floats = kolmogorov((root + 0.12 + 0.11 / root) * distances)
    return found


def chi_squared(reference: Floats, window: Floats) -> tuple[float, float]:
    """Return (statistic, p-value) of two arrays of counts by category; categories expected fewer than five times are one."""
    from scipy.special import chdtrc

    table = _pooled(np.stack([reference, window]))
    if table.shape[1] < 2 or not table.sum(axis=1).all():
        return 0.0, 1.0
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    statistic = float(np.sum((table - expected) ** 2 / expected))
    return statistic, float(chdtrc(table.shape[1] - 1, statistic))


def _pooled(table: Floats) -> Floats:
    """Return `table` (2, k) with its rare categories added up, and to the next rarest if they are still too few."""
    expected = table.sum(axis=0) * table.sum(axis=1).min() / max(table.sum(), 1.0)
    order = np.argsort(expected)
    rare = int((expected < 5).sum())
    if not rare:
        return table
    if expected[order[:rare]].sum() < 5:
        rare += 1
    kept = np.sort(order[rare:])
    return np.concatenate([table[:, kept], table[:, order[:rare]].sum(axis=1, keepdims=True)], axis=1)


def chance_of_at_least(found: float, rows: int, share: float) -> float:
    """Return how likely `found` or more of `rows` are hits when each is one with probability `share`."""
    from scipy.special import bdtrc

    return 1.0 if found < 1 else float(bdtrc(round(found) - 1, rows, min(share, 1.0)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted so that the chance of any false alarm among all of them stays what is asked of one."""
    order = np.argsort(p_values)
    scaled = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0) if len(p_values) else scaled
    return [float(p) for p in adjusted]
