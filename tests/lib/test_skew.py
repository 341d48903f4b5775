"""Skew: what was served beside what training would see, value by value and bit by bit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from cellwork.monitoring import skew

AT = datetime(2024, 5, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1.0, True), (0.1 + 0.2, 0.3, False), (0.0, -0.0, False), (float("nan"), float("nan"), True), (None, None, True),
        (None, 0.0, False), (True, 1, False), ("a", "a", True), ("1", 1, False), (float(np.float32(0.1)), 0.1, False),
    ],
)  # fmt: skip
def test_values_are_the_same_only_in_every_bit(one: object, other: object, same: bool) -> None:
    assert skew.same(one, other) is same


def frame(values: list[float | None], hours: list[int]) -> pl.DataFrame:
    times = [AT + timedelta(hours=hour) for hour in hours]
    names = [f"pred_{k}" for k in range(len(values))]
    return pl.DataFrame({"id": names, "shop__age": values, "shop__event_timestamp": times})


def test_skew_counts_what_differs_and_names_an_example() -> None:
    served, joined = frame([1.0, 2.0, None, 4.0], [0, 0, 0, 0]), frame([1.0, 2.5, 3.0, None], [0, 1, 0, 0])
    [found] = skew.compare(served, joined, ["shop__age"])
    assert (found.rows, found.differ, found.missing_online, found.only_online, found.older) == (4, 3, 1, 1, 1)
    assert (found.mean_online, found.mean_training, found.example) == (1.5, 1.75, "pred_1")


def test_what_is_the_same_has_no_example() -> None:
    [found] = skew.compare(frame([1.0], [0]), frame([1.0], [0]), ["shop__age"])
    assert (found.differ, found.example) == (0, "")
