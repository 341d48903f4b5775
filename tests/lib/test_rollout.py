"""When a version on its way goes on, goes back, or waits."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork.serving.rollout import Seen, distance, judge
from cellwork.wire.endpoints import Rollout
from cellwork.wire.evaluations import VersionRef

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def rollout(**more: Any) -> Rollout:
    limits = {"stages": [0.1, 1.0], "hold_seconds": 60.0, "least": 50, "errors": 0.01, "slower": 2.0, "scores": 0.2}
    return Rollout(version=VersionRef(name="shop/churn", version=2), began=BEGAN, since=BEGAN, **(limits | more))


def seen(count: int = 500, *, failed: int = 0, slow: float = 1.0, shift: float = 0.0, seed: int = 0) -> Seen:
    dice = np.random.default_rng(seed)
    return Seen(count, failed, dice.exponential(2.0 * slow, count), dice.normal(shift, 1.0, count))


def action(canary: Seen, live: Seen, *, seconds: float = 120, **more: Any) -> str:
    return judge(rollout(**more), canary, live, canary, BEGAN + timedelta(seconds=seconds)).action


def test_a_version_like_the_live_one_goes_on_when_its_time_is_over_and_enough_was_answered() -> None:
    assert action(seen(seed=1), seen()) == "on"
    assert action(seen(seed=1), seen(), seconds=30) == "wait"
    assert action(seen(20, seed=1), seen()) == "wait"


@pytest.mark.parametrize(
    ("canary", "why"),
    [
        (seen(failed=30), "failed 30 of 530"),
        (seen(slow=9.0, seed=1), "ms at the 95th percentile"),
        (seen(shift=0.8, seed=1), "gives other scores"),
    ],
)
def test_a_version_that_fails_is_slow_or_scores_elsewhere_goes_back_at_once_and_says_why(
    canary: Seen, why: str
) -> None:
    verdict = judge(rollout(), canary, seen(), canary, BEGAN + timedelta(seconds=1))
    assert (verdict.action, why in verdict.text) == ("back", True), verdict


def test_failures_that_the_live_version_has_too_do_not_count_against_it() -> None:
    assert action(seen(failed=25, seed=1), seen(failed=25)) == "on"


def test_a_few_requests_decide_nothing() -> None:
    assert action(seen(10, failed=2), seen()) == "wait"
    assert action(seen(60, slow=50), seen(90)) == "on"
    assert action(seen(60, shift=3.0), seen(90)) == "back"
    once = replace(seen(60), scores=np.full(1, 9.0))
    verdict = judge(rollout(), once, seen(90), once, BEGAN + timedelta(seconds=120))
    assert (verdict.action, "1 scores are too few to compare" in verdict.text) == ("on", True)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(50, 3000), st.integers(50, 3000))
def test_versions_that_do_not_differ_are_never_sent_back(seed: int, count: int, others: int) -> None:
    assert action(seen(count, seed=seed), seen(others, seed=seed + 1)) == "on"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1), st.lists(st.integers(-3, 3), min_size=1))
def test_the_distance_is_scipys(one: list[int], other: list[int]) -> None:
    from scipy.stats import ks_2samp

    assert distance(np.array(one, float), np.array(other, float)) == pytest.approx(
        ks_2samp(one, other, method="asymp").statistic
    )
