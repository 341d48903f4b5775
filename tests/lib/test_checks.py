from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork.data import checks, schema
from cellwork.errors import BadInput
from cellwork.wire.batches import Check, RawDataset

NOW = datetime(2013, 11, 2, tzinfo=UTC)
ROWS = schema.canonical(
    pl.DataFrame(
        {
            "id": [1, 2, 2, None, 5],
            "delay": [1.0, -90.0, 4000.0, None, 2.0],
            "carrier": ["UA", "ua", "AA", None, "UAA"],
            "at": [datetime(2013, 11, 1, hour, tzinfo=UTC) for hour in range(5)],
            "day": [date(2013, 11, 1)] * 5,
        }
    )
)


def judge(*declared: Check, rows: pl.DataFrame = ROWS, **more: Any) -> checks.Verdict:
    checks.check_declared(RawDataset(name="flights", checks=list(declared)), schema.columns(rows))
    numbered = rows.with_columns(_row=pl.int_range(pl.len(), dtype=pl.Int64))
    return checks.judge(numbered, declared, **{"sealed": (), "at": NOW, "before": (), **more})


@pytest.mark.parametrize(
    ("check", "failing"),
    [
        (Check(column="id", not_null=True), [3]),
        (Check(column="id", unique=True), [1, 2]),
        (Check(column="delay", least=-60), [1]),
        (Check(column="delay", least=-60.0, greatest=2.0), [1, 2]),
        (Check(column="carrier", pattern="[A-Z]{2}"), [1, 4]),
        (Check(column="carrier", pattern="UA|AA"), [1, 4]),
        (Check(column="carrier", one_of=["UA", "AA"]), [1, 4]),
        (Check(column="at", least="2013-11-01T03:00:00Z"), [0, 1, 2]),
        (Check(column="day", greatest="2013-10-31"), [0, 1, 2, 3, 4]),
        (Check(column="at", within="2d"), []),
    ],
)
def test_rows_that_fail_a_check_are_named_and_hold_the_batch_back(check: Check, failing: list[int]) -> None:
    verdict = judge(check)
    assert verdict.failed["_row"].to_list() == failing
    assert verdict.kept["_row"].to_list() == [row for row in range(5) if row not in failing]
    assert verdict.passed is (not failing)
    assert all(reason.startswith("check failed: column") for reason in verdict.failed["_reason"])


def test_a_tolerance_lets_the_others_through() -> None:
    assert judge(Check(column="delay", least=-60, tolerance=0.2)).passed
    assert not judge(Check(column="delay", least=-60, greatest=2, tolerance=0.19)).passed


def test_freshness_and_row_counts_are_of_the_whole_batch() -> None:
    assert not judge(Check(column="at", within="12h")).passed
    assert not judge(Check(column="day", within="12h")).passed
    assert judge(Check(column="day", within="1d")).passed
    close = Check(rows_near_mean=0.5)
    assert judge(close, before=[100, 100]).passed, "two batches say too little"
    assert not judge(close, before=[100, 100, 100]).passed
    assert judge(close, before=[5, 6, 8]).passed


def test_sealed_columns_are_not_looked_at() -> None:
    verdict = judge(Check(column="delay", not_null=True, greatest=0), sealed=["delay"])
    assert (verdict.passed, verdict.failed.height, verdict.outcomes) == (True, 0, [])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(-5, 5)), min_size=1, max_size=30), st.permutations(range(3)))
def test_the_verdict_does_not_depend_on_the_order_of_rows(values: list[int | None], order: list[int]) -> None:
    declared = [
        Check(column="x", not_null=True),
        Check(column="x", unique=True),
        Check(column="x", least=-2, greatest=3),
    ]
    rows = schema.canonical(pl.DataFrame({"x": pl.Series(values, dtype=pl.Int64)}))
    first, second = judge(*declared, rows=rows), judge(*declared, rows=rows.reverse())
    assert [o.failed for o in first.outcomes] == [o.failed for o in second.outcomes]
    assert first.kept["x"].to_list() == second.kept["x"].to_list()[::-1]
    plain = [v for v in values if v is not None and values.count(v) == 1 and -2 <= v <= 3]
    assert first.kept["x"].to_list() == plain


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (Check(), "needs a column"),
        (Check(column="delay", rows_near_mean=0.5), "needs a column"),
        (Check(column="dely", not_null=True), "did you mean 'delay'"),
        (Check(column="delay", pattern="x"), "does not fit the type double"),
        (Check(column="carrier", pattern="["), "is no regular expression"),
        (Check(column="carrier", least="A"), "does not fit the type string"),
        (Check(column="delay", least="2"), "is no limit for double"),
        (Check(column="day", least="2013-13-01"), "is no date"),
        (Check(column="at", least="2013-01-01T00:00:00"), "has no time zone"),
        (Check(column="at", within="2 days"), "is not a positive number with a unit"),
        (Check(column="delay", not_null=True, tolerance=5), "is not a share"),
    ],
)
def test_a_check_that_can_not_be_meant_is_refused_when_it_is_declared(check: Check, words: str) -> None:
    with pytest.raises(BadInput, match=words.replace("[", r"\[")):
        judge(check)
