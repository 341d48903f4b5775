"""Numbers of a sealed holdout as they may be told: on a grid as coarse as chance makes them, with a secret, fixed rounding.

Whoever asks may choose each row's score, and so could read a label from a metric's last digits: one row scored apart moves the ROC AUC of
26,000 rows by 0.0002. A metric is therefore told in steps of about its own standard error, and of no less than 0.5 / sqrt(n), or in the
label's own unit than its standard deviation / sqrt(n), for a model that says the same to all rows but one has an error of that row's size;
digits below say nothing of a model anyway.
Before it is rounded it is shifted by up to `WIDE` steps, by a keyed hash of the exact value and of the question (which rows are scored like
which, and in what order). The same question gets the same answer; nobody can bring a value to the edge of a step and watch one row push it
over, for the shift has no hard edge; and of many questions about one row each has a shift of its own: were it the value's alone, all late
rows would share one answer and all others the other, for setting any late row apart gives the same exact value.
An interval told is as much wider as the value told is less sure: around a value two steps off, one of no more than its own width would not
hold the true value in 19 of 20 cases.
What is left is bounded by the number of questions, which are counted: one row's label moves a metric by about 4 / n, a step is about
1 / sqrt(n), so small holdouts keep less of a secret than large ones, and of several thousand rows it takes hundreds of questions about one
row to make out its label.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cellwork.wire.evaluations import Difference, Metric

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

FINEST = 1e-4
"""The least step, of shares or of a label's standard deviation."""
P_STEP = 0.02
"""Of a difference's p."""
Z = 2 * 1.959964
"""Standard errors in a 95 % interval."""
WIDE = 1.5
"""Steps by which a value is shifted at most; small shifts are more frequent than large ones."""
ROUNDED = Z / 2 * math.sqrt(WIDE**2 / 6 + 1 / 12)
"""Half a 95 % interval of what shift and rounding add to a value, in steps: the sum of two uniform shifts, and of rounding to a step."""
CLIP = 0.01
"""Probabilities are taken between this and one less this in a loss, so that no single row can stand out of it."""
SHARES = frozenset({"roc_auc", "pr_auc", "brier", "rate", "ece"})
"""Metrics between 0 and 1."""
IN_UNITS = frozenset({"rmse", "mae"})
"""Metrics in the label's own unit."""


def step(name: str, metric: Metric, rows: int, spread: float) -> float:
    """Return the largest of …, 0.1, 0.05, 0.02, 0.01, … that is not over the standard error, or over the least that one row needs.

    `spread` is the standard deviation of the holdout's labels.
    """
    least = (spread if name in IN_UNITS else 0.5) / math.sqrt(rows)
    finest = FINEST * (spread or 1.0) if name in IN_UNITS else FINEST
    error = max(least, (metric.high - metric.low) / Z)
    if not error > finest:
        return finest
    power: float = 10.0 ** math.floor(math.log10(error))
    return max(finest, max(k * power for k in (1, 2, 5) if k * power <= error * (1 + 1e-12)))


def question(scores: ArrayLike) -> bytes:
    """Return what tells one question from another: the order of its scores, shape (n,), and which of them are equal."""
    ranks = np.unique(np.asarray(scores, dtype=float), return_inverse=True)[1]
    return hashlib.sha256(ranks.astype("<i8").tobytes()).digest()


@dataclass(frozen=True)
class Rounding:
    """The rounding of one holdout's numbers, under the platform's secret."""

    secret: bytes
    holdout: str
    rows: int
    spread: float
    """The standard deviation of its labels."""

    def metrics(self, found: dict[str, Metric], asked: bytes) -> dict[str, Metric]:
        """Round the metrics of the question `asked`."""
        return {name: self._metric(name, metric, asked) for name, metric in found.items()}

    def difference(self, found: Difference, unit: float, one: bytes, other: bytes) -> Difference:
        """Round to the step of the metric itself: that of the difference between near twins would be one row's.

        Only models that answer in the same order may be told to differ by nothing, with an interval of no width: of two that swap a pair
        of rows that would say that the pair's labels are equal.
        """
        if one == other and found.value == found.low == found.high == 0:
            return found
        asked = one + other
        value = self.number(f"{found.metric} difference", found.value, unit, asked)
        low, high = _around(value, found.value - found.low, found.high - found.value, unit)
        p = self.number(f"{found.metric} p", found.p, P_STEP, asked)
        return Difference(metric=found.metric, value=value, low=low, high=high, p=min(1.0, max(0.0, p)))

    def number(self, name: str, value: float, unit: float, asked: bytes) -> float:
        """Return a multiple of `unit` at most ``WIDE + 0.5`` of them from `value`."""
        about = f"{self.holdout}\0{name}\0{value!r}\0".encode() + asked
        seal = hmac.digest(self.secret, about, hashlib.sha256)
        one, other = (int.from_bytes(part, "big") / 2**64 - 0.5 for part in (seal[:8], seal[8:16]))
        return _tidy(round(value / unit + WIDE * (one + other)), unit)

    def _metric(self, name: str, metric: Metric, asked: bytes) -> Metric:
        unit = step(name, metric, self.rows, self.spread)
        value = self.number(name, metric.value, unit, asked)
        low, high = _around(value, metric.value - metric.low, metric.high - metric.value, unit)
        if name in SHARES:
            value, low, high = (min(1.0, max(0.0, each)) for each in (value, low, high))
        return Metric(value=value, low=low, high=high)


def _around(value: float, below: float, above: float, unit: float) -> tuple[float, float]:
    """Return the bounds of an interval around a value told: its halves take in what telling it added, and are rounded up to steps."""
    down, up = (math.ceil(math.hypot(half / unit, ROUNDED) - 1e-9) * unit for half in (below, above))
    return round(value - down, 10), round(value + up, 10)


def _tidy(steps: int, unit: float) -> float:
    return round(steps * unit, 10)
