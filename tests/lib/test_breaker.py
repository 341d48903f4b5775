"""When a live version is taken out, and how it comes back."""

from __future__ import annotations

import pytest

from cellwork.serving.breaker import Breaker


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def breaker(told: list[str]) -> Breaker:
    return Breaker(told.append, failures=3, seconds=0.0)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.failed("raised ValueError")


def test_failures_in_a_row_open_it_and_it_is_told_once(breaker: Breaker, told: list[str]) -> None:
    fail(breaker, 2)
    assert (breaker.allows(), breaker.reason, told) == (True, "", [])
    fail(breaker, 5)
    assert (breaker.reason, told) == ("raised ValueError", ["raised ValueError"])


def test_an_answer_in_between_starts_the_count_anew(breaker: Breaker, told: list[str]) -> None:
    fail(breaker, 2)
    breaker.succeeded()
    fail(breaker, 2)
    assert told == []


def test_while_it_is_open_one_try_is_let_through_in_each_rest_and_an_answer_closes_it(told: list[str]) -> None:
    breaker = Breaker(told.append, failures=1, seconds=1000.0)
    fail(breaker, 1)
    assert [breaker.allows() for _ in range(3)] == [False] * 3
    breaker._until = 0.0  # the rest is over
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    breaker.succeeded()
    assert [breaker.allows() for _ in range(3)] == [True] * 3
    fail(breaker, 1)
    assert len(told) == 2
