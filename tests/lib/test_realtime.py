"""A twin that takes rows one by one gives what the batch pipeline writes, at every grid time, to the last bit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork.errors import BadInput
from cellwork.features import pipeline
from cellwork.features.pipeline import Step
from cellwork.features.realtime import Twin
from cellwork.wire.features import Aggregate, Field, Rolling, Select, View

START = datetime(2013, 6, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
TIME = pl.Datetime("us", "UTC")
ROLLING = View(
    name="late", entities=["key"],
    pipeline=Rolling(
        rows="r", event="event", known="known", window="60m", every="15m",
        aggregates={
            "rows": Aggregate(function="count"), "values": Aggregate(function="count", column="value"),
            "mean": Aggregate(function="mean", column="value"), "short": Aggregate(function="sum", column="value"),
            "total": Aggregate(function="sum", column="whole"),
        },
    ),
    fields=[
        Field(name="rows", type="Int64"), Field(name="values", type="Int64"), Field(name="mean", type="Float64"),
        Field(name="short", type="Float32"), Field(name="total", type="Int64"),
    ],
)  # fmt: skip
FEATURES = [field.name for field in ROLLING.fields]
SCHEMA = {"key": pl.String, "event": TIME, "known": TIME, "value": pl.Float64, "whole": pl.Int64}

source = st.tuples(
    st.sampled_from(["a", "b", None]), st.integers(0, 300), st.one_of(st.none(), st.integers(-20, 90)),
    st.one_of(st.none(), st.floats(-1e6, 1e6, allow_subnormal=False), st.just(float("nan"))),
    st.one_of(st.none(), st.integers(-(2**50), 2**50)),
)  # fmt: skip


def records(rows: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Rows (key, event minute, minutes until known, value, whole)."""
    return [
        {
            "key": key, "event": START + event * MINUTE, "value": value, "whole": whole,
            "known": None if later is None else START + (event + later) * MINUTE,
        }
        for key, event, later, value, whole in rows
    ]  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(st.lists(source, max_size=8), st.integers(0, 100)), min_size=1, max_size=5))
def test_rows_one_by_one_give_what_batches_give(parts):
    twin, frames, steps = Twin(ROLLING, ["key"]), [], []
    at, after, stood = START, None, {}
    for number, (rows, minutes) in enumerate(parts):
        at += minutes * MINUTE
        for row in records(rows):
            twin.add([row])
        stood.update(twin.advance(at))
        batch = f"batch{number}"
        frames.append(pl.DataFrame(records(rows), SCHEMA).with_columns(_batch=pl.lit(batch)))
        until = datetime.fromtimestamp(at.timestamp() // 900 * 900, UTC)
        steps.append(Step(batch, after, until))
        after = until
        written = pipeline.rolling_rows(ROLLING, ["key"], pl.concat(frames), steps)
        for key in ("a", "b"):
            held = written.filter(pl.col("key") == key, pl.col("event_timestamp") <= at).sort("event_timestamp")
            there = held.select(FEATURES).row(-1, named=True) if held.height else Twin(ROLLING, ["key"]).values((key,))
            assert twin.values((key,)) == there
            assert stood.get((key,)) == (held["event_timestamp"][-1] if held.height else None)


def test_a_row_leaves_with_its_window_and_nothing_is_kept_of_it():
    twin = Twin(ROLLING, ["key"])
    assert twin.add(records([("a", 0, 0, 0.1, 1), ("a", 5, 0, 0.2, 1)])) == 2
    assert twin.advance(START + 15 * MINUTE) == {("a",): START + 15 * MINUTE}
    assert twin.values(("a",))["rows"] == 2
    twin.advance(START + 60 * MINUTE)
    assert twin.values(("a",))["total"] == 1
    twin.advance(START + 75 * MINUTE)
    assert twin.values(("a",)) == {"rows": 0, "values": 0, "mean": None, "short": 0.0, "total": 0}
    assert (twin._coming, twin._totals) == ([], {})


def test_a_closed_time_is_not_opened_again():
    twin = Twin(ROLLING, ["key"])
    twin.advance(START + 30 * MINUTE)
    twin.add(records([("a", 10, 0, 1.0, 1)]))
    twin.advance(START + 30 * MINUTE)
    assert twin.values(("a",))["rows"] == 0
    twin.advance(START + 45 * MINUTE)
    assert twin.values(("a",))["rows"] == 1
    with pytest.raises(BadInput, match="advance only forward"):
        twin.advance(START)


def test_what_has_no_sum_and_what_is_no_rolling_view_is_refused():
    with pytest.raises(BadInput, match="has no sum"):
        Twin(ROLLING, ["key"]).add([{**records([("a", 0, 0, 1.0, 1)])[0], "value": "text"}])
    with pytest.raises(BadInput, match="has no rolling pipeline"):
        Twin(View(name="v", entities=[], fields=[], pipeline=Select(rows="r", event="e", known="k")), ["key"])
