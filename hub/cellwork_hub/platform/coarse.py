"""Numbers of a sealed holdout as they may be told: on a grid as coarse as chance makes them, with a secret, fixed rounding.

Whoever asks may choose each row's score, and so could read a label from a metric's last digits: one row scored apart moves the ROC AUC of
26,000 rows by 0.0002. A metric is therefore told in steps of about its own standard error, and for classes of no less than 0.5 / sqrt(n), for
a model that says the same to all rows but one has an error of that row's size; digits below say nothing of a model anyway.
Where it is rounded is shifted by a keyed hash of the exact value, so that nobody can bring a value to the edge of a step and watch one row
push it over, and the same question gets the same answer. What is left is bounded by the number of questions, which are counted: one row's
label moves a metric by about 4 / n, a step is about 1 / sqrt(n), so small holdouts keep less of a secret than large ones.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from dataclasses import dataclass

from cellwork.wire.evaluations import Difference, Metric

FINEST = 1e-4
Z = 2 * 1.959964
"""Standard errors in a 95 % interval."""
CLIP = 0.01
"""Probabilities are taken between this and one less this in a loss, so that no single row can stand out of it."""
SHARES = frozenset({"roc_auc", "pr_auc", "brier", "rate", "ece"})
"""Metrics between 0 and 1."""


def step(name: str, metric: Metric, rows: int) -> float:
    """Return the largest of …, 0.1, 0.05, 0.02, 0.01, … that is not over the standard error, or over what a metric of classes needs."""
    least = 0.5 / math.sqrt(rows) if name in SHARES or name == "log_loss" else 0.0
    error = max(least, (metric.high - metric.low) / Z)
    if not error > FINEST:
        return FINEST
    power: float = 10.0 ** math.floor(math.log10(error))
    return max(FINEST, max(k * power for k in (1, 2, 5) if k * power <= error * (1 + 1e-12)))


@dataclass(frozen=True)
class Rounding:
    """The rounding of one holdout, under the platform's secret."""

    secret: bytes
    holdout: str
    rows: int

    def metrics(self, found: dict[str, Metric]) -> dict[str, Metric]:
        return {name: self._metric(name, metric) for name, metric in found.items()}

    def difference(self, found: Difference, unit: float) -> Difference:
        """Round to the step of the metric itself: that of the difference between near twins would be one row's."""
        value = self.number(f"{found.metric} difference", found.value, unit)
        low, high = _around(value, found.value - found.low, found.high - found.value, unit, least=0)
        return Difference(metric=found.metric, value=value, low=low, high=high, p=round(found.p, 2))

    def number(self, name: str, value: float, unit: float) -> float:
        """Return a multiple of `unit` less than one `unit` from `value`."""
        seal = hmac.digest(self.secret, f"{self.holdout}\0{name}\0{value!r}".encode(), hashlib.sha256)
        shift = int.from_bytes(seal[:8], "big") / 2**64 - 0.5
        return _tidy(round(value / unit + shift), unit)

    def _metric(self, name: str, metric: Metric) -> Metric:
        unit = step(name, metric, self.rows)
        value = self.number(name, metric.value, unit)
        low, high = _around(value, metric.value - metric.low, metric.high - metric.value, unit, least=1)
        if name in SHARES:
            value, low, high = (min(1.0, max(0.0, each)) for each in (value, low, high))
        return Metric(value=value, low=low, high=high)


def _around(value: float, below: float, above: float, unit: float, *, least: int) -> tuple[float, float]:
    """Return the bounds of an interval around `value` whose halves are rounded up to steps."""
    down, up = (max(least, math.ceil(half / unit - 1e-9)) * unit for half in (below, above))
    return round(value - down, 10), round(value + up, 10)


def _tidy(steps: int, unit: float) -> float:
    return round(steps * unit, 10)
