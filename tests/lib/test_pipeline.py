"""Pipelines against the plainest reference that can be written, and against themselves batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork.errors import BadInput
from cellwork.features import history, pipeline
from cellwork.features.pipeline import Step
from cellwork.wire.features import Aggregate, Field, Rolling, Select, View

START = datetime(2013, 6, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
ARRIVED = datetime(2026, 1, 1, tzinfo=UTC)
TIME = pl.Datetime("us", "UTC")
SCHEMA = {"key": pl.String, "event": TIME, "known": TIME, "value": pl.Float64, "whole": pl.Int64, "_batch": pl.String}
AGGREGATES = {
    "rows": Aggregate(function="count"),
    "values": Aggregate(function="count", column="value"),
    "total": Aggregate(function="sum", column="whole"),
    "mean": Aggregate(function="mean", column="value"),
}
ROLLING = View(
    name="late",
    entities=["key"],
    fields=[
        Field(name="rows", type="Int64"),
        Field(name="values", type="Int64"),
        Field(name="total", type="Int64"),
        Field(name="mean", type="Float64"),
    ],
    pipeline=Rolling(rows="r", event="event", known="known", window="60m", every="15m", aggregates=AGGREGATES),
)
FEATURES = [field.name for field in ROLLING.fields]
minutes = st.integers(0, 400)


def rows_of(delays: st.SearchStrategy[int | None]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(
        st.sampled_from(["a", "b"]),
        minutes,
        delays,
        st.one_of(st.none(), st.floats(-1e6, 1e6, allow_subnormal=False), st.just(float("nan"))),
        st.one_of(st.none(), st.integers(-(2**50), 2**50)),
    )


source = rows_of(st.one_of(st.none(), st.integers(-30, 120)))


def frame(rows: Sequence[tuple[Any, ...]], batch: str) -> pl.DataFrame:
    """Rows (key, event minute, minutes until known or None, value, whole) of one batch."""
    records = [
        (key, START + event * MINUTE, None if delay is None else START + (event + delay) * MINUTE, value, whole, batch)
        for key, event, delay, value, whole in rows
    ]
    return pl.DataFrame(records, SCHEMA, orient="row")


def steps_of(frames: Sequence[pl.DataFrame], arrived: datetime = ARRIVED) -> list[Step]:
    steps: list[Step] = []
    after: datetime | None = None
    for number, rows in enumerate(frames):
        until = pipeline.step_until(ROLLING, rows, arrived, after)
        steps.append(Step(f"batch{number}", after, until))
        after = until
    return steps


def plain_value(rows: pl.DataFrame, steps: Sequence[Step], key: str, g: datetime) -> dict[str, Any]:
    """The definition, row by row: what counts at grid time `g`."""
    after = {step.batch: step.after for step in steps}
    found = []
    for row in rows.iter_rows(named=True):
        if row["key"] != key or row["event"] is None or row["known"] is None:
            continue
        floor = after[row["_batch"]]
        if (floor is None or g > floor) and row["known"] <= g and g - timedelta(minutes=60) < row["event"] <= g:
            found.append(row)
    values = [r["value"] for r in found if r["value"] is not None and r["value"] == r["value"]]
    return {
        "rows": len(found),
        "values": len(values),
        "total": sum(r["whole"] for r in found if r["whole"] is not None),
        "mean": sum(values) / len(values) if values else None,
    }


def value_at(features: pl.DataFrame, key: str, at: datetime) -> dict[str, Any] | None:
    rows = features.filter((pl.col("key") == key) & (pl.col("event_timestamp") <= at)).sort("event_timestamp")
    return rows.select(FEATURES).row(-1, named=True) if rows.height else None


def same(found: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    if found is None:
        return wanted["rows"] == 0
    exact = all(found[name] == wanted[name] for name in ("rows", "values", "total"))
    if found["mean"] is None or wanted["mean"] is None:
        return exact and found["mean"] is wanted["mean"]
    return exact and found["mean"] == pytest.approx(wanted["mean"], abs=1e-9, rel=1e-12)


batches = st.lists(st.lists(source, max_size=12), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(batches, st.sampled_from(["a", "b"]), minutes)
def test_a_value_asked_for_is_that_of_the_definition_at_the_last_grid_time(lists, key, minute):
    frames = [frame(rows, f"batch{n}") for n, rows in enumerate(lists)]
    steps, rows = steps_of(frames), pl.concat(frames)
    features = pipeline.rolling_rows(ROLLING, ["key"], rows, steps)
    ends = [step.until for step in steps if step.until]
    if not ends:
        assert not features.height
        return
    asked = min(START + minute * MINUTE, max(ends))
    grid = datetime.fromtimestamp(asked.timestamp() // 900 * 900, UTC)
    assert same(value_at(features, key, asked), plain_value(rows, steps, key, grid))


@settings(max_examples=60, deadline=None)
@given(batches)
def test_batch_after_batch_gives_the_same_rows_as_all_at_once(lists):
    frames = [frame(rows, f"batch{n}") for n, rows in enumerate(lists)]
    steps = steps_of(frames)
    whole = pipeline.rolling_rows(ROLLING, ["key"], pl.concat(frames), steps)
    reach, parts = pipeline.reach(ROLLING), []
    for number, step in enumerate(steps):
        newest = [rows["event"].max() for rows in frames]
        near = [
            n for n in range(number) if newest[n] is not None and (step.after is None or newest[n] + reach > step.after)
        ]
        rows = pl.concat([frames[n] for n in [*near, number]])
        parts.append(pipeline.rolling_rows(ROLLING, ["key"], rows, [steps[n] for n in [*near, number]], emit=[step]))
    order = ["key", "event_timestamp"]
    assert pl.concat(parts).sort(order).equals(whole.sort(order))
    assert not whole.select(order).is_duplicated().any()


@settings(max_examples=60, deadline=None)
@given(batches, st.lists(source, max_size=12), st.integers(0, 3))
def test_after_a_correction_history_holds_what_it_would_have_been(lists, better, which):
    """The corrected batch in the place of the first delivery, asked for after its arrival; before it, nothing has changed."""
    frames = [frame(rows, f"batch{n}") for n, rows in enumerate(lists)]
    which %= len(frames)
    steps = steps_of(frames)
    written = pipeline.rolling_rows(ROLLING, ["key"], pl.concat(frames), steps)
    corrected = frame(better, "better")
    reached = steps[-1].until
    place = Step("better", steps[which].after, reached)
    rows = pl.concat([*frames[:which], *frames[which + 1 :], corrected])
    new_steps = [*steps[:which], *steps[which + 1 :], place]
    added = pipeline.corrected_rolling_rows(
        ROLLING, ["key"], rows, new_steps, written, corrected=place, arrived=ARRIVED
    )
    assert (added["created_timestamp"] == ARRIVED).all()
    everything = pl.concat([written, added]).sort("created_timestamp").unique(["key", "event_timestamp"], keep="last")
    if reached is None:
        assert not added.height
        return
    grid = datetime.fromtimestamp(START.timestamp() // 900 * 900, UTC)
    while grid <= reached:
        for key in ("a", "b"):
            assert same(value_at(everything, key, grid), plain_value(rows, new_steps, key, grid)), (key, grid)
        grid += 15 * MINUTE


@settings(max_examples=40, deadline=None)
@given(st.lists(rows_of(st.integers(0, 120)), min_size=1, max_size=20), st.data())
def test_delaying_outcomes_changes_exactly_the_rows_that_asked_before_they_arrived(rows, data):
    """From issue 1: only observations at which the delayed outcome was known before and is not known now may change."""
    first = frame(rows, "batch0")
    chosen = data.draw(st.integers(0, len(rows) - 1))
    delay = data.draw(st.integers(1, 300))
    later = [(*r[:2], r[2] + delay, *r[3:]) if n == chosen else r for n, r in enumerate(rows)]
    second = frame(later, "batch0")
    step = [Step("batch0", None, START + 800 * MINUTE)]
    asked = pl.DataFrame(
        {"k": ["a", "b"] * 100, "at": [START + 7 * n * MINUTE for n in range(100) for _ in range(2)]},
        {"k": pl.String, "at": TIME},
    )
    answers = []
    for source_rows in (first, second):
        features = pipeline.rolling_rows(ROLLING, ["key"], source_rows, step)
        view = history.JoinView(ROLLING, {"key": "k"}, FEATURES, features)
        joined, _ = history.join(asked, at="at", views=[view])
        answers.append(joined.with_columns(pl.col("late__rows", "late__values", "late__total").fill_null(0)))
    before, after = (a.select("k", "at", *(f"late__{name}" for name in FEATURES)) for a in answers)
    key, event = rows[chosen][0], START + rows[chosen][1] * MINUTE
    for old, new in zip(before.iter_rows(named=True), after.iter_rows(named=True), strict=True):
        grid = datetime.fromtimestamp(old["at"].timestamp() // 900 * 900, UTC)
        in_window = old["k"] == key and grid - 60 * MINUTE < event <= grid
        knew, knows = event + rows[chosen][2] * MINUTE <= grid, event + (rows[chosen][2] + delay) * MINUTE <= grid
        must_change = in_window and knew and not knows
        assert (old["late__rows"] != new["late__rows"]) == must_change
        if not must_change:
            assert old == new


def test_one_wrong_date_in_the_future_does_not_close_it():
    rows = frame([("a", 10, 0, 1.0, 1), ("a", 10**9, 0, 1.0, 1)], "batch0")
    assert pipeline.step_until(ROLLING, rows, ARRIVED, None) == ARRIVED


def test_a_batch_of_old_rows_does_not_move_the_watermark_back():
    assert (
        pipeline.step_until(ROLLING, frame([("a", 10, 0, 1.0, 1)], "b"), ARRIVED, START + 90 * MINUTE)
        == START + 90 * MINUTE
    )
    assert pipeline.step_until(ROLLING, frame([], "b"), ARRIVED, None) is None


def test_a_row_that_is_late_counts_from_the_next_grid_time_on():
    early, late = (
        frame([("a", 0, 0, 1.0, 1), ("a", 30, 0, 1.0, 1)], "batch0"),
        frame([("a", 20, 0, 1.0, 1), ("a", 50, 0, 1.0, 1)], "batch1"),
    )
    steps = steps_of([early, late])
    features = pipeline.rolling_rows(ROLLING, ["key"], pl.concat([early, late]), steps)
    counts = {row["event_timestamp"]: row["rows"] for row in features.iter_rows(named=True)}
    assert counts == {START: 1, START + 30 * MINUTE: 2, START + 45 * MINUTE: 3}


def test_each_step_starts_with_a_row_of_every_key_in_the_window():
    """Nothing of `a` changes in the second step; its row there says so, and that the second batch has seen to it."""
    first, second = frame([("a", 0, 0, 1.0, 1)], "batch0"), frame([("b", 30, 0, 1.0, 1)], "batch1")
    features = pipeline.rolling_rows(ROLLING, ["key"], pl.concat([first, second]), steps_of([first, second]))
    rows = features.filter(pl.col("key") == "a").sort("event_timestamp")
    assert rows.select("event_timestamp", "_batch", "rows").rows() == [
        (START, "batch0", 1),
        (START + 15 * MINUTE, "batch1", 1),
    ]


def test_no_drift_is_left_when_all_rows_have_gone():
    rows = frame([("a", n, 0, 0.1 * n, 1) for n in range(50)] + [("b", 300, 0, 1.0, 1)], "batch0")
    last = (
        pipeline.rolling_rows(ROLLING, ["key"], rows, steps_of([rows]))
        .filter(pl.col("key") == "a")
        .sort("event_timestamp")
    )
    assert last.select(FEATURES).row(-1) == (0, 0, 0, None)


def test_a_time_without_a_zone_is_refused_with_its_column():
    rows = frame([("a", 1, 0, 1.0, 1)], "b").with_columns(pl.col("known").dt.replace_time_zone(None))
    with pytest.raises(BadInput, match=r"'known'.*not a time with a zone"):
        pipeline.rolling_rows(ROLLING, ["key"], rows, steps_of([frame([], "b")]))


def test_a_missing_column_is_named_with_the_near_miss():
    rows = frame([("a", 1, 0, 1.0, 1)], "batch0").rename({"whole": "whole_"})
    with pytest.raises(BadInput, match="did you mean 'whole_'"):
        pipeline.rolling_rows(ROLLING, ["key"], rows, [Step("batch0", None, ARRIVED)])


SELECT = View(
    name="now",
    entities=["key"],
    fields=[Field(name="whole", type="Float32")],
    pipeline=Select(rows="r", event="event", known="known"),
)


def test_a_selected_row_has_its_times_and_its_type_and_needs_both_times():
    rows = pipeline.select_rows(SELECT, ["key"], frame([("a", 1, 5, 1.0, 7), ("b", 2, None, 1.0, 8)], "batch0"))
    assert rows.rows(named=True) == [
        {
            "key": "a",
            "whole": 7.0,
            "event_timestamp": START + MINUTE,
            "created_timestamp": START + 6 * MINUTE,
            "_batch": "batch0",
        }
    ]
    assert rows.schema["whole"] == pl.Float32


def test_a_correction_of_selected_rows_adds_what_changed_and_empties_what_is_gone():
    old = frame([("a", 1, 0, 1.0, 7), ("a", 2, 0, 1.0, 8), ("b", 3, 0, 1.0, 9)], "old")
    new = frame([("a", 1, 0, 1.0, 7), ("a", 2, 0, 1.0, 80)], "new")
    added = pipeline.corrected_select_rows(SELECT, ["key"], old, new, arrived=ARRIVED, batch="new").sort("key")
    assert added.select("key", "whole").rows() == [("a", 80.0), ("b", None)]
    assert added["created_timestamp"].to_list() == [ARRIVED, ARRIVED]
    assert added["_batch"].to_list() == ["new", "new"]


selected = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 2), st.integers(0, 3), st.just(1.0), st.integers(0, 2)),
    min_size=1,
    max_size=8,
)


def values_then(rows: pl.DataFrame, asked: Sequence[tuple[str, datetime]]) -> list[float | None]:
    """The newest values at (key, event), whenever they arrived."""
    observations = pl.DataFrame(asked, {"key": pl.String, "at": TIME}, orient="row")
    view = history.JoinView(SELECT, {"key": "key"}, ["whole"], rows)
    return history.join(observations, at="at", views=[view], arrival=False)[0]["now__whole"].to_list()


@settings(max_examples=150, deadline=None)
@given(selected, selected, st.one_of(st.just(ARRIVED), st.integers(0, 5).map(lambda minute: START + minute * MINUTE)))
def test_after_a_correction_the_newest_values_are_those_of_the_corrected_batch(before, after, arrived):
    """Whatever of one entity and event differs only in its arrival, and though what was wrong says that it is known later than now."""
    old, new = frame(before, "old"), frame(after, "new")
    made, alone = (pipeline.select_rows(SELECT, ["key"], rows) for rows in (old, new))
    added = pipeline.corrected_select_rows(SELECT, ["key"], old, new, arrived=arrived, batch="new")
    there = set(new.select("key", "event").rows())
    asked = sorted({*old.select("key", "event").rows(), *there})
    want = [value if place in there else None for value, place in zip(values_then(alone, asked), asked, strict=True)]
    assert values_then(pl.concat([made, added]), asked) == want
    assert pipeline.corrected_select_rows(SELECT, ["key"], old, old, arrived=arrived, batch="new").is_empty()


def test_a_value_that_is_not_of_the_fields_type_is_refused():
    view = View(name="n", entities=["key"], fields=[Field(name="key2", type="Int64")], pipeline=SELECT.pipeline)
    with pytest.raises(BadInput, match="not of its field's type"):
        pipeline.select_rows(view, ["key"], frame([("a", 1, 0, 1.0, 1)], "b").with_columns(key2=pl.lit("x")))


@pytest.mark.parametrize(
    ("values", "dtype", "wanted"),
    [
        (pl.Series([1, 2], dtype=pl.Int8), "Int64", [1, 2]),
        (pl.Series([1, 2**31 - 1]), "Int32", [1, 2**31 - 1]),
        (pl.Series([1, 2**53 + 1]), "Int64", [1, 2**53 + 1]),
        (pl.Series([1.0, None]), "Int64", [1, None]),
        (pl.Series([0.1, 1.0]), "Float32", pl.Series([0.1, 1.0], dtype=pl.Float32).to_list()),
        (pl.Series([1, 2]), "Float64", [1.0, 2.0]),
        (pl.Series([None, None]), "UnixTimestamp", [None, None]),
        (pl.Series([None, 3]), "Int64", [None, 3]),
        (pl.Series([START, None]), "UnixTimestamp", [START, None]),
        (pl.Series(["2013-06-01T02:00:00+02:00", None]), "UnixTimestamp", [START, None]),
        (pl.Series(["5", "6"]), "Int64", [5, 6]),
        (pl.Series([Decimal("5"), Decimal("6")]), "Int64", [5, 6]),
        (pl.Series([True, None]), "Bool", [True, None]),
    ],
)
def test_a_value_that_fits_its_field_is_kept(values, dtype, wanted):
    view = View(name="n", entities=["key"], fields=[Field(name="key2", type=dtype)], pipeline=SELECT.pipeline)
    rows = frame([("a", 1, 0, 1.0, 1), ("a", 2, 0, 1.0, 1)], "b").with_columns(key2=values)
    assert pipeline.select_rows(view, ["key"], rows)["key2"].to_list() == wanted


@pytest.mark.parametrize(
    ("value", "dtype", "why"),
    [
        (5.7, "Int64", "5.7 is no whole number"),
        (2.0**53, "Int64", "is no whole number below"),
        (float("nan"), "Int64", "is no whole number"),
        (Decimal("5.7"), "Int32", "5.7 is no whole number"),
        (2**31, "Int32", "conversion"),
        (1370044800, "UnixTimestamp", "1370044800 is a number, not a time"),
        (True, "UnixTimestamp", "not a time"),
        (7, "Bool", "7 is a number, not true or false"),
        (1.0, "Bool", "not true or false"),
        ([1], "Int64", "not one value"),
        ({"a": 1}, "String", "not one value"),
    ],
)
def test_a_value_that_would_become_another_is_refused(value, dtype, why):
    view = View(name="n", entities=["key"], fields=[Field(name="key2", type=dtype)], pipeline=SELECT.pipeline)
    rows = frame([("a", 1, 0, 1.0, 1)], "b").with_columns(key2=pl.Series([value]))
    with pytest.raises(BadInput, match=f"not of its field's type: .*{why}"):
        pipeline.select_rows(view, ["key"], rows)


@pytest.mark.parametrize(("value", "why"), [("2013-06-01T00:00:00", "no time zone"), ("", "not ISO 8601")])
def test_a_text_without_a_zone_is_no_time(value, why):
    view = View(name="n", entities=["key"], fields=[Field(name="key2", type="UnixTimestamp")], pipeline=SELECT.pipeline)
    rows = frame([("a", 1, 0, 1.0, 1)], "b").with_columns(key2=pl.lit(value))
    with pytest.raises(BadInput, match=why):
        pipeline.select_rows(view, ["key"], rows)
