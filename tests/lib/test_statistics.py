from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork.data import schema, sketches, statistics


def one(values: list[Any], dtype: Any = None) -> Any:
    return statistics.of(schema.canonical(pl.DataFrame({"x": pl.Series(values, dtype=dtype)})))[0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(-1000, 1000)), min_size=1, max_size=30))
def test_numbers_agree_with_a_plain_count(values: list[int | None]) -> None:
    there, found = [v for v in values if v is not None], one(values, pl.Int64)
    assert (found.nulls, found.distinct) == (len(values) - len(there), len(set(there)))
    if there:
        assert (found.min, found.max) == (min(there), max(there))
        assert found.mean == pytest.approx(sum(there) / len(there))
    else:
        assert (found.min, found.max, found.mean) == (None, None, None)


@pytest.mark.parametrize(
    ("values", "low", "high", "mean"),
    [
        (["b", "a", None], "a", "b", None),
        ([True, False, True, True], None, None, 0.75),
        ([date(2013, 1, 2), date(2013, 1, 1)], "2013-01-01", "2013-01-02", None),
        ([datetime(2013, 1, 1, tzinfo=UTC)], "2013-01-01T00:00:00Z", "2013-01-01T00:00:00Z", None),
        (["x" * 5000], "x" * 200, "x" * 200, None),
    ],
)
def test_each_type_has_the_statistics_that_make_sense_for_it(values: list[Any], low: Any, high: Any, mean: Any) -> None:
    found = one(values)
    assert (found.min, found.max, found.mean) == (low, high, mean)


def test_columns_come_in_their_order_and_odd_names_do_no_harm() -> None:
    found = statistics.of(pl.DataFrame({"min:x": [1], "x": [2], "nulls:x": ["a"]}))
    assert [(c.name, c.min) for c in found] == [("min:x", 1.0), ("x", 2.0), ("nulls:x", "a")]


def test_distinct_numbers_are_exact_as_long_as_every_value_is_kept() -> None:
    found = statistics.of(pl.DataFrame({"x": [float(k % 1500) for k in range(6000)]}))[0]
    assert (found.distinct, found.exact) == (1500, True)
    halves = [sketches.of(pl.DataFrame({"x": range(start, start + 1200)})) for start in (0, 300)]
    merged = statistics.said(sketches.merge(halves))[0]
    assert (merged.distinct, merged.exact) == (1500, True)
    many = statistics.said(sketches.merge([sketches.of(pl.DataFrame({"x": range(k, k + 9000)})) for k in (0, 9000)]))[0]
    assert (many.distinct, many.exact) == (pytest.approx(18_000, rel=0.12), False)
