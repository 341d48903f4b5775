"""Whether a version on its way to all requests goes on, goes back, or waits: a pure judgement of what both versions have answered.

    stage k (its share of units) --held long enough, enough answered, nothing wrong--> stage k+1 ... --> live
              |
              +-- it fails more, is slower, or its scores lie elsewhere --> taken out, at once

Each verdict against the version needs evidence that chance alone would hardly give, so that a handful of requests decides nothing; and
a difference that matters, so that a million do not condemn what nobody would notice. Both versions are judged on the same kind of
requests: units are drawn by their hash, and the live version keeps its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cellwork.wire.endpoints import Rollout

LEAST_FAILED = 3
SLOW_MS = 10.0
"""A version that is slower by less than this is not slow, however quick the other one is."""
SURE = 1e-4
"""The chance of a wrong verdict by one look at scores of versions that do not differ."""
LEAST_TIMES = 100
LEAST_SCORES = 20
"""Different answers of both versions; fewer say hardly anything, however far apart."""
QUANTILE = 0.95


@dataclass(frozen=True)
class Seen:
    """What a version answered since a rollout, or its stage, began."""

    answered: int = 0
    failed: int = 0
    """Requests that it should have answered and another one did."""
    milliseconds: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """Of each unit every score once: one that asks the same again and again says no more than one that asks once."""


@dataclass(frozen=True)
class Verdict:
    action: Literal["wait", "on", "back"]
    text: str


def judge(rollout: Rollout, canary: Seen, live: Seen, stage: Seen, now: datetime) -> Verdict:
    """Return what follows from `canary` and `live` since the rollout began, and from the canary's `stage`."""
    for wrong in (_fails(rollout, canary, live), _slow(rollout, canary, live), _elsewhere(rollout, canary, live)):
        if wrong:
            return Verdict("back", wrong)
    left = rollout.hold_seconds - (now - rollout.since).total_seconds()
    missing = rollout.least - stage.answered
    if left > 0:
        return Verdict("wait", f"{left:.0f} s are left of this stage, {stage.answered} requests answered")
    if missing > 0:
        return Verdict("wait", f"waits for {missing} more requests of {rollout.least}")
    few = min(len(canary.scores), len(live.scores))
    scores = "scores and times" if few >= LEAST_SCORES else f"{few} scores are too few to compare, times"
    return Verdict("on", f"{stage.answered} requests answered, {stage.failed} failed, {scores} as the live version's")


def _fails(rollout: Rollout, canary: Seen, live: Seen) -> str:
    asked, asked_live = canary.answered + canary.failed, live.answered + live.failed
    if canary.failed < LEAST_FAILED:
        return ""
    rate, base = canary.failed / asked, live.failed / asked_live if asked_live else 0.0
    if rate <= base + rollout.errors:
        return ""
    return f"failed {canary.failed} of {asked} requests ({rate:.1%}; at most {base + rollout.errors:.1%})"


def _slow(rollout: Rollout, canary: Seen, live: Seen) -> str:
    if min(len(canary.milliseconds), len(live.milliseconds)) < LEAST_TIMES:
        return ""
    ours, theirs = (float(np.quantile(seen.milliseconds, QUANTILE)) for seen in (canary, live))
    most = max(rollout.slower * theirs, theirs + SLOW_MS)
    return (
        f"takes {ours:.1f} ms at the 95th percentile (the live version {theirs:.1f}, at most {most:.1f})"
        if ours > most
        else ""
    )


def _elsewhere(rollout: Rollout, canary: Seen, live: Seen) -> str:
    count, others = len(canary.scores), len(live.scores)
    if min(count, others) < LEAST_SCORES:
        return ""
    far, most = distance(canary.scores, live.scores), rollout.scores
    chance = float(np.sqrt(-np.log(SURE / 2) / 2 * (count + others) / (count * others)))
    if far <= max(most, chance):
        return ""
    middle = [float(np.median(seen.scores)) for seen in (canary, live)]
    return f"gives other scores: median {middle[0]:.3g} and {middle[1]:.3g}, KS distance {far:.2f} (at most {max(most, chance):.2f})"


def distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the greatest distance of two samples' distribution functions (Kolmogorov-Smirnov), 0 to 1."""
    every = np.concatenate([one, other])
    below = [np.searchsorted(np.sort(sample), every, side="right") / len(sample) for sample in (one, other)]
    return float(np.abs(below[0] - below[1]).max())
