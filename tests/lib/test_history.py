"""The point-in-time join against a reference that looks at one observation after the other."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork.errors import BadInput, TooLarge
from cellwork.features.estimate import estimate
from cellwork.features.history import JoinView, Progress, join, late
from cellwork.features.row import value_hash
from cellwork.wire.features import Field, Select, View

START = datetime(2013, 6, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
TIME = pl.Datetime("us", "UTC")
PIPELINE = Select(rows="r", event="event", known="known")
FIELDS = [Field(name="temp", type="Int64"), Field(name="wind", type="Int64")]


def view(ttl: str = "") -> View:
    return View(name="weather", entities=["origin"], fields=FIELDS, pipeline=PIPELINE, ttl=ttl)


def feature_rows(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    """Rows (origin, event minute, created minute, temp, wind)."""
    records = [
        (origin, temp, wind, START + event * MINUTE, START + created * MINUTE, f"batch{n}")
        for n, (origin, event, created, temp, wind) in enumerate(rows)
    ]
    types = {
        "origin": pl.String,
        "temp": pl.Int64,
        "wind": pl.Int64,
        "event_timestamp": TIME,
        "created_timestamp": TIME,
        "_batch": pl.String,
    }
    return pl.DataFrame(records, types, orient="row")


def observed(rows: list[tuple[str | None, int | None]]) -> pl.DataFrame:
    records = [(key, None if at is None else START + at * MINUTE) for key, at in rows]
    return pl.DataFrame(records, {"airport": pl.String, "at": TIME}, orient="row")


def joined(observations: pl.DataFrame, rows: pl.DataFrame, ttl: str = "") -> tuple[pl.DataFrame, Any]:
    views = [JoinView(view(ttl), {"origin": "airport"}, ["temp", "wind"], rows)]
    frame, coverage = join(observations, at="at", views=views)
    return frame, coverage[0]


def plain(rows: pl.DataFrame, key: str | None, at: datetime | None, ttl: timedelta | None) -> tuple[Any, ...]:
    """What one observation gets: of what was known, the newest by (event, created, value hash), unless it is too old."""
    known = [
        row for row in rows.iter_rows(named=True)
        if at is not None and row["origin"] == key and max(row["event_timestamp"], row["created_timestamp"]) <= at
    ]  # fmt: skip
    if key is None or not known:
        return (None, None, None)
    best = max(
        known,
        key=lambda r: (
            r["event_timestamp"],
            r["created_timestamp"],
            value_hash({"temp": r["temp"], "wind": r["wind"]}),
        ),
    )
    if ttl is not None and at is not None and at - best["event_timestamp"] > ttl:
        return (None, None, None)
    return (best["temp"], best["wind"], best["event_timestamp"])


few = st.integers(0, 5)
value = st.one_of(st.none(), st.integers(0, 3))
source = st.tuples(st.sampled_from(["JFK", "LGA"]), few, few, value, value)
asked = st.tuples(st.sampled_from(["JFK", "LGA", "EWR", None]), st.one_of(st.none(), st.integers(-2, 30)))


@settings(max_examples=250, deadline=None)
@given(st.lists(source, max_size=25), st.lists(asked, max_size=25), st.sampled_from(["", "3m", "10m"]))
def test_every_observation_gets_what_was_known_then(rows, observations, ttl):
    features, wanted = feature_rows(rows), observed(observations)
    frame, coverage = joined(wanted, features, ttl)
    assert frame.select("airport", "at").equals(wanted)
    limit = timedelta(minutes=int(ttl[:-1])) if ttl else None
    expected = [plain(features, key, at, limit) for key, at in wanted.iter_rows()]
    assert frame.select("weather__temp", "weather__wind", "weather__event_timestamp").rows() == expected
    assert coverage.rows == wanted.height
    assert coverage.found == sum(event is not None for *_, event in expected)
    unlimited = [plain(features, key, at, None) for key, at in wanted.iter_rows()]
    assert coverage.expired == sum(event is not None for *_, event in unlimited) - coverage.found


unit = st.sampled_from(["ns", "us", "ms"])
zone = st.sampled_from(["UTC", "America/New_York", "Asia/Kathmandu"])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(source, max_size=25), st.lists(asked, max_size=25), st.sampled_from(["", "3m"]), st.booleans(),
    st.tuples(unit, unit, unit), zone, st.sampled_from([None, 6_000]), st.booleans(),
)  # fmt: skip
def test_units_zones_partitions_and_lazy_rows_change_nothing(
    rows, observations, ttl, arrival, units, place, memory, lazy
):
    features, wanted = feature_rows(rows), observed(observations)
    expected = join(
        wanted, at="at", views=[JoinView(view(ttl), {"origin": "airport"}, ["temp"], features)], arrival=arrival
    )
    at, event, created = units
    other = wanted.with_columns(pl.col("at").dt.convert_time_zone(place).dt.cast_time_unit(at))
    kept = features.with_columns(
        pl.col("event_timestamp").dt.convert_time_zone(place).dt.cast_time_unit(event),
        pl.col("created_timestamp").dt.cast_time_unit(created),
    )
    there = [JoinView(view(ttl), {"origin": "airport"}, ["temp"], kept.lazy() if lazy else kept)]
    steps: list[Progress] = []
    frame, coverage = join(other, at="at", views=there, arrival=arrival, memory=memory, progress=steps.append)
    chosen = ["airport", "weather__temp", "weather___batch"]
    assert frame.select(chosen).equals(expected[0].select(chosen))
    assert coverage == expected[1]
    assert [step.done for step in steps] == list(range(len(steps)))
    assert steps[-1].done == steps[-1].steps
    first = coverage[0]
    assert first.found + first.expired + first.no_key + first.unknown + first.early == first.rows


def test_memory_asks_for_partitions_and_refuses_what_can_not_be():
    rows = feature_rows([("JFK", n, n, 1, 1) for n in range(400)] + [("LGA", n, n, 1, 1) for n in range(400)])
    views, wanted = [JoinView(view(), {"origin": "airport"}, ["temp"], rows)], observed([("JFK", 5), ("LGA", 5)])
    whole, halves = estimate(wanted, views), estimate(wanted, views, memory=90_000)
    assert (whole.partitions, halves.partitions) == (1, 2)
    assert halves.work_bytes < whole.work_bytes
    assert (whole.observations, whole.feature_rows) == (2, 800)
    with pytest.raises(TooLarge, match="ask for fewer features"):
        join(wanted, at="at", views=views, memory=100)


def test_within_a_limit_of_memory_the_late_report_is_the_same():
    rows = feature_rows([(name, n, 2 * n, n, 1) for name in ("JFK", "LGA") for n in range(400)])
    views, wanted = (
        [JoinView(view(), {"origin": "airport"}, ["temp"], rows.lazy())],
        observed([("JFK", 50), ("LGA", 70)]),
    )
    assert estimate(wanted, views, memory=90_000).partitions == 2
    assert late(wanted, at="at", views=views, memory=90_000) == late(wanted, at="at", views=views)
    assert late(wanted, at="at", views=views)[0].observations == 2


CHILD = """
import sys
from pathlib import Path
import polars as pl
from cellwork.features.history import JoinView, join
from cellwork.wire.features import Field, Select, View

FIELDS = [f"x{k}" for k in range(6)]
VIEW = View(name="v", entities=["who"], pipeline=Select(rows="r", event="e", known="k"), fields=[Field(name=f, type="Float64") for f in FIELDS])

def ask(rows, memory):
    asked = pl.DataFrame({"who": range(0, 100_000, 10)}).with_columns(at=pl.datetime(2021, 1, 1, time_zone="UTC"))
    frame, _ = join(asked, at="at", views=[JoinView(VIEW, {"who": "who"}, FIELDS, rows)], memory=memory)
    return frame["v__x0"].count()

def size(of):
    return int(Path("/proc/self/status").read_text().split(of + ":")[1].split()[0]) * 1024

small, large, memory = *sys.argv[1:3], int(sys.argv[3])
ask(pl.scan_parquet(small), memory)  # libraries are loaded and their threads there
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = size("VmRSS")
found = ask(pl.scan_parquet(large), memory)
capped = size("VmHWM")
ask(pl.read_parquet(large), None)
print(found, capped - before, size("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process since a moment")
def test_a_capped_join_never_has_half_of_the_feature_rows_in_memory(tmp_path: Path) -> None:
    """Beside its limit it takes what reading takes; the same join without a limit takes what the rows are."""
    import pyarrow.parquet as pq

    random, memory = np.random.default_rng(0), 70_000_000
    chunk = pl.DataFrame({"who": np.arange(100_000), **{f"x{k}": random.normal(size=100_000) for k in range(6)}})
    whole = 30 * int(chunk.estimated_size() * 9 / 7)
    with pq.ParquetWriter(tmp_path / "large.parquet", stamped(chunk, 0).schema) as file:
        for day in range(30):
            file.write_table(stamped(chunk, day))
    pq.write_table(stamped(chunk, 0), tmp_path / "small.parquet")
    command = [sys.executable, "-c", CHILD, *(str(tmp_path / f"{name}.parquet") for name in ("small", "large"))]
    done = subprocess.run([*command, str(memory)], capture_output=True, text=True, timeout=300, check=True)
    found, capped, uncapped = map(int, done.stdout.split())
    assert found == 10_000
    assert capped < whole / 2
    assert uncapped > 0.8 * whole


def stamped(chunk: pl.DataFrame, day: int) -> Any:
    at = pl.lit(datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=day)).cast(TIME)
    return chunk.with_columns(event_timestamp=at, created_timestamp=at).to_arrow()


def test_what_progress_raises_ends_the_join():
    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        join(
            observed([("JFK", 1)]),
            at="at",
            views=[JoinView(view(), {"origin": "airport"}, ["temp"], feature_rows([]))],
            progress=stop,
        )


def test_the_late_report_counts_values_that_a_careless_join_would_have_given():
    rows = feature_rows([("JFK", 0, 0, 54, 1), ("JFK", 10, 40, 31, 1), ("LGA", 0, 0, 1, 1)])
    views = [JoinView(view(), {"origin": "airport"}, ["temp"], rows)]
    found = late(
        observed([("JFK", 20), ("JFK", 30), ("JFK", 50), ("LGA", 20), ("XXX", 1), (None, 1)]), at="at", views=views
    )
    assert [(each.view, each.observations) for each in found] == [("weather", 2)]
    assert (found[0].median_seconds, found[0].most_seconds) == (900.0, 1200.0)
    assert late(observed([("LGA", 20)]), at="at", views=views)[0].median_seconds is None


def test_coverage_says_why_there_is_no_value():
    rows = feature_rows([("JFK", 10, 10, 1, 1), ("LGA", 0, 0, 1, 1)])
    _, found = joined(
        observed([("JFK", 5), ("LGA", 30), ("XXX", 5), (None, 5), ("JFK", None), ("JFK", 11)]), rows, "3m"
    )
    assert (found.early, found.expired, found.unknown, found.no_key, found.found) == (1, 1, 1, 2, 1)


def test_times_of_all_ages_beside_many_entities_are_searched_by_rank():
    """Year 1 to 9999 in microseconds leaves no room for a group in one word; the answers are the same."""
    far = [datetime(1, 1, 2, tzinfo=UTC), datetime(9998, 1, 1, 0, 0, 0, 1, tzinfo=UTC)]
    rows = pl.DataFrame(
        {
            "origin": [f"n{n}" for n in range(100) for _ in far],
            "temp": range(200),
            "wind": [1] * 200,
            "event_timestamp": far * 100,
            "created_timestamp": far * 100,
            "_batch": ["b"] * 200,
        }
    ).with_columns(pl.col("event_timestamp", "created_timestamp").cast(TIME))
    wanted = pl.DataFrame(
        {"airport": ["n0", "n99", "n99", "n50"], "at": [far[0], far[1], START, far[0] - MINUTE]}
    ).with_columns(pl.col("at").cast(TIME))
    frame, _ = join(wanted, at="at", views=[JoinView(view(), {"origin": "airport"}, ["temp"], rows)])
    assert frame["weather__temp"].to_list() == [0, 199, 198, None]


def test_keys_of_any_integer_width_and_categories_match():
    rows = pl.DataFrame(
        {
            "id": pl.Series([1, 300], dtype=pl.Int16),
            "c": pl.Series(["a", "b"]),
            "temp": [1, 2],
            "event_timestamp": [START] * 2,
            "created_timestamp": [START] * 2,
            "_batch": ["b"] * 2,
        }
    ).with_columns(pl.col("event_timestamp", "created_timestamp").cast(TIME))
    wanted = pl.DataFrame(
        {
            "number": pl.Series([300, 2**40, 1], dtype=pl.Int64),
            "word": pl.Series(["b", "b", "z"], dtype=pl.Categorical),
            "at": [START] * 3,
        }
    ).with_columns(pl.col("at").cast(TIME))
    frame, _ = join(wanted, at="at", views=[JoinView(view(), {"id": "number", "c": "word"}, ["temp"], rows)])
    assert frame["weather__temp"].to_list() == [2, None, None]


def test_a_row_does_not_see_a_value_that_arrived_after_it():
    """Stamped before the departure, recorded after it: the row gets the value known then."""
    rows = feature_rows([("JFK", 0, 5, 54, 1), ("JFK", 30, 180, 31, 1)])
    frame, _ = joined(observed([("JFK", 60), ("JFK", 200)]), rows)
    assert frame["weather__temp"].to_list() == [54, 31]


def test_a_late_arrival_of_an_old_value_does_not_replace_a_newer_one():
    rows = feature_rows([("JFK", 10, 10, 54, 1), ("JFK", 5, 20, 31, 1)])
    frame, _ = joined(observed([("JFK", 30)]), rows)
    assert frame["weather__temp"].to_list() == [54]


def test_a_correction_holds_from_its_arrival_on():
    rows = feature_rows([("JFK", 10, 10, 54, 1), ("JFK", 10, 20, 31, 1)])
    frame, _ = joined(observed([("JFK", 19), ("JFK", 20)]), rows)
    assert frame["weather__temp"].to_list() == [54, 31]
    assert frame["weather___batch"].to_list() == ["batch0", "batch1"]


def test_of_values_that_came_together_the_hash_decides_in_either_order():
    for first, second in ((0, 3), (3, 0), (1, 2), (2, 1)):
        rows = feature_rows([("JFK", 10, 10, first, 0), ("JFK", 10, 10, second, 0)])
        winner = max((first, second), key=lambda temp: value_hash({"temp": temp, "wind": 0}))
        assert joined(observed([("JFK", 30)]), rows)[0]["weather__temp"].to_list() == [winner]


def test_a_value_of_just_the_ttl_still_counts():
    frame, coverage = joined(observed([("JFK", 13), ("JFK", 14)]), feature_rows([("JFK", 10, 10, 54, 1)]), "3m")
    assert frame["weather__temp"].to_list() == [54, None]
    assert (coverage.found, coverage.expired, coverage.median_age_seconds) == (1, 1, 180.0)


def test_a_view_without_rows_and_no_observations_are_fine():
    frame, coverage = joined(observed([("JFK", 1)]), feature_rows([]))
    assert frame["weather__temp"].to_list() == [None]
    assert coverage.median_age_seconds is None
    assert joined(observed([]), feature_rows([("JFK", 1, 1, 1, 1)]))[0].height == 0


def test_several_views_with_several_keys_are_joined_side_by_side():
    rows = pl.DataFrame(
        {
            "a": [1, 1],
            "b": ["x", "y"],
            "n": [5, 6],
            "event_timestamp": [START] * 2,
            "created_timestamp": [START] * 2,
            "_batch": ["b"] * 2,
        }
    ).with_columns(pl.col("event_timestamp", "created_timestamp").cast(TIME))
    pairs = View(name="pairs", entities=["a", "b"], fields=[Field(name="n", type="Int64")], pipeline=PIPELINE)
    asked_for = pl.DataFrame(
        {"first": [1, 1, 2], "second": ["y", "x", "x"], "airport": ["JFK"] * 3, "at": [START + MINUTE] * 3}
    )
    views = [
        JoinView(pairs, {"a": "first", "b": "second"}, ["n"], rows),
        JoinView(view(), {"origin": "airport"}, ["temp"], feature_rows([("JFK", 0, 0, 54, 1)])),
    ]
    frame, coverage = join(asked_for, at="at", views=views)
    assert frame["pairs__n"].to_list() == [6, 5, None]
    assert frame["weather__temp"].to_list() == [54, 54, 54]
    assert [c.found for c in coverage] == [2, 3]


def test_a_key_of_another_type_is_refused_not_left_without_values():
    with pytest.raises(BadInput, match="as the key 'origin' of view 'weather' is"):
        joined(pl.DataFrame({"airport": [1], "at": [START]}), feature_rows([("JFK", 0, 0, 1, 1)]))


def test_a_missing_column_is_named_with_the_near_miss():
    with pytest.raises(BadInput, match="did you mean 'airport'"):
        join(observed([]), at="at", views=[JoinView(view(), {"origin": "airports"}, ["temp"], feature_rows([]))])
    with pytest.raises(BadInput, match="did you mean 'temp'"):
        join(observed([]), at="at", views=[JoinView(view(), {"origin": "airport"}, ["temp_f"], feature_rows([]))])
