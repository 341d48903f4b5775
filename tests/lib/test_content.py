"""The content hash of a frame: the same for the same rows, another for any others."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork.content import BLOCK, frame_sha256

COLUMNS: dict[str, tuple[pl.DataType, st.SearchStrategy[Any]]] = {
    "whole": (pl.Int64(), st.one_of(st.none(), st.sampled_from([-1, 0, 1, 2**63 - 1, -(2**63)]), st.integers(-5, 5))),
    "real": (pl.Float64(), st.one_of(st.none(), st.sampled_from([0.0, -1.0, 1e300]), st.floats(-9, 9))),
    "flag": (pl.Boolean(), st.one_of(st.none(), st.booleans())),
    "text": (pl.String(), st.one_of(st.none(), st.text(max_size=3))),
    "day": (pl.Date(), st.one_of(st.none(), st.dates())),
}
ROW = st.fixed_dictionaries({name: values for name, (_, values) in COLUMNS.items()})
ROWS = st.lists(ROW, min_size=1, max_size=6)
quick = settings(max_examples=60, deadline=None)


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={name: dtype for name, (dtype, _) in COLUMNS.items()})


def normal(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as a bag of texts: -0.0 is 0.0, the order does not count."""
    return sorted(
        repr([row[name] + 0.0 if isinstance(row[name], float) else row[name] for name in COLUMNS]) for row in rows
    )


@quick
@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_rows_and_columns_does_not_count(rows: list[dict[str, Any]], rng: random.Random) -> None:
    shuffled, names = rng.sample(rows, len(rows)), rng.sample(list(COLUMNS), len(COLUMNS))
    assert frame_sha256(frame(shuffled).select(names)) == frame_sha256(frame(rows))


@quick
@given(ROWS, ROWS)
def test_two_frames_have_one_hash_only_if_they_have_the_same_rows(
    a: list[dict[str, Any]], b: list[dict[str, Any]]
) -> None:
    assert (frame_sha256(frame(a)) == frame_sha256(frame(b))) == (normal(a) == normal(b))


@quick
@given(ROWS, st.data())
def test_one_changed_value_changes_the_hash(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(rows) - 1))
    name = data.draw(st.sampled_from(sorted(COLUMNS)))
    changed = [dict(row) for row in rows]
    changed[number][name] = data.draw(COLUMNS[name][1])
    assert (frame_sha256(frame(changed)) == frame_sha256(frame(rows))) == (normal(changed) == normal(rows))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (pl.Int64, -1),
        (pl.Int64, 0),
        (pl.Int64, -(2**63)),
        (pl.Float64, 0.0),
        (pl.Boolean, False),
        (pl.String, ""),
        (pl.Datetime("us", "UTC"), -1),
    ],
)
def test_a_missing_value_is_none_of_the_values(dtype: Any, value: Any) -> None:
    there = pl.DataFrame({"x": pl.Series([value]).cast(dtype)})
    missing = pl.DataFrame({"x": pl.Series([None], dtype=dtype)})
    assert frame_sha256(there) != frame_sha256(missing)


def test_the_same_content_in_other_libraries_types_is_the_same_content() -> None:
    wide = pl.DataFrame({"n": [1, 2], "x": [0.5, float("nan")], "t": ["a", "b"]})
    narrow = wide.with_columns(
        pl.col("n").cast(pl.Int8), pl.col("x").cast(pl.Float32), pl.col("t").cast(pl.Categorical)
    )
    assert frame_sha256(wide) == frame_sha256(narrow)
    assert frame_sha256(pl.DataFrame({"x": [-0.0]})) == frame_sha256(pl.DataFrame({"x": [0.0]}))
    assert frame_sha256(pl.DataFrame({"x": [1]})) != frame_sha256(pl.DataFrame({"x": [1.0]}))


def test_the_hash_is_the_same_on_every_machine_and_with_every_version() -> None:
    """Ids that were given must still be found: this text may never change."""
    known = pl.DataFrame({"a": [1, None, -1], "b": ["x", None, ""], "c": [0.5, None, -2.0]})
    assert frame_sha256(known) == "d4e6505a50bf628dc446410e765d253023fc27dc3ff4016a0dccefa0ad20984c"


def test_repeated_rows_count_as_often_as_they_occur() -> None:
    once, twice = pl.DataFrame({"x": [1, 2]}), pl.DataFrame({"x": [1, 2, 2]})
    assert frame_sha256(once) != frame_sha256(twice)


def test_a_value_that_moves_to_another_column_changes_the_hash() -> None:
    assert frame_sha256(pl.DataFrame({"a": [1], "b": [2]})) != frame_sha256(pl.DataFrame({"a": [2], "b": [1]}))


def test_rows_count_wherever_they_stand_in_a_long_frame() -> None:
    rows = 2 * BLOCK + 17
    long = pl.DataFrame(
        {
            "n": np.arange(rows),
            "t": [f"text {n % 1000}" for n in range(rows)],
            "gap": [None, 1.0, 2.0] * (rows // 3) + [None] * (rows % 3),
        }
    )
    shuffled = long.sample(fraction=1.0, shuffle=True, seed=3)
    assert frame_sha256(shuffled) == frame_sha256(long)
    for number in (0, BLOCK - 1, BLOCK, rows - 1):
        changed = long.with_columns(n=pl.when(pl.int_range(pl.len()) == number).then(-1).otherwise("n"))
        assert frame_sha256(changed) != frame_sha256(long)
    swapped = long.with_columns(n=pl.col("n").reverse())
    assert frame_sha256(swapped) != frame_sha256(long)
