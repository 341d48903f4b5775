"""An answer is computed once for all who ask, until what it is made of changes."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cellwork_hub.once import Once


def test_ten_that_ask_at_once_get_one_answer_and_a_new_revision_a_new_one() -> None:
    once, asked = Once[int](), []

    def compute() -> int:
        asked.append(1)
        time.sleep(0.05)
        return len(asked)

    together = threading.Barrier(10)

    def ask(_: int) -> int:
        together.wait(60)
        return once("quality", 1, compute)

    with ThreadPoolExecutor(10) as pool:
        assert set(pool.map(ask, range(10))) == {1}
    assert once("quality", 2, compute) == 2
    assert once("quality", 2, compute) == 2


def test_an_error_is_the_callers_and_the_next_one_may_succeed() -> None:
    once = Once[int]()
    with pytest.raises(ZeroDivisionError):
        once("q", 1, lambda: 1 // 0)
    assert once("q", 1, lambda: 7) == 7


def test_only_the_last_questions_are_kept() -> None:
    once, asked = Once[str](most=2), []
    for name in ("a", "b", "c", "a"):
        once(name, 1, lambda name=name: asked.append(name) or name)  # type: ignore[misc]
    assert asked == ["a", "b", "c", "a"]
