"""The schema of raw data: pinned by the first batch, enforced after it, without a guess and without a lost digit."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import pytest

from cellwork.data import schema
from cellwork.errors import BadInput
from cellwork.wire.batches import Column


def pinned(**types: str) -> list[Column]:
    return [Column(name=name, type=text) for name, text in types.items()]


def test_every_type_that_is_kept_comes_out_as_one_of_seven() -> None:
    frame = pl.DataFrame(
        {
            "b": [True],
            "i": pl.Series([1], dtype=pl.Int16),
            "u": pl.Series([1], dtype=pl.UInt64),
            "f": pl.Series([0.5], dtype=pl.Float32),
            "c": pl.Series(["x"], dtype=pl.Categorical),
            "d": [date(2013, 1, 1)],
            "t": pl.Series([datetime(2013, 1, 1, 5)], dtype=pl.Datetime("ns")).dt.replace_time_zone("America/New_York"),
            "n": pl.Series([None], dtype=pl.Float64),
        }
    )
    kept = schema.canonical(frame)
    assert [(c.name, c.type) for c in schema.columns(kept)] == [
        ("b", "bool"), ("i", "int64"), ("u", "int64"), ("f", "double"), ("c", "string"), ("d", "date32[day]"), ("t", "timestamp[us, tz=UTC]"), ("n", "null"),
    ]  # fmt: skip
    assert kept.item(0, "t") == datetime(2013, 1, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pl.Series("at", [datetime(2013, 1, 1, 5)]), "without a zone.*replace_time_zone"),
        (pl.Series("x", [2**64 - 1], dtype=pl.UInt64), "beyond 64 bits"),
        (pl.Series("x", [[1, 2]]), "explode"),
        (pl.Series("x", [{"a": 1}]), "unnest"),
        (pl.Series("x", ["1.10"]).cast(pl.Decimal(5, 2)), "every digit"),
        (pl.Series("x", [b"1"]), "encode it as text"),
        (pl.Series("_batch", [1]), "writes itself"),
        (pl.Series(" ", [1]), "is empty"),
    ],
)
def test_what_is_not_kept_is_refused_with_a_way_out(column: pl.Series, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        schema.canonical(column.to_frame())


def test_a_float_that_may_have_been_another_whole_number_does_not_become_one() -> None:
    """2**53 + 1 in a column of pandas with a gap comes as 2**53."""
    whole = pinned(x="int64")
    for sign in (1, -1):
        fits = pl.DataFrame({"x": [sign * float(2**53 - 1), None]})
        assert schema.conform(fits, whole, "data set 'p/d'")["x"].to_list() == [sign * (2**53 - 1), None]
        with pytest.raises(BadInput, match="since its first batch"):
            schema.conform(pl.DataFrame({"x": [sign * float(2**53 + 1), None]}), whole, "data set 'p/d'")
        exact = schema.conform(pl.DataFrame({"x": [sign * 2**53]}), pinned(x="double"), "data set 'p/d'")
        assert exact["x"].to_list() == [sign * 2.0**53]


def test_names_that_differ_only_by_case_are_refused() -> None:
    with pytest.raises(BadInput, match="only by case"):
        schema.canonical(pl.DataFrame({"Origin": [1], "origin": [2]}))


def test_nan_is_a_missing_value() -> None:
    assert schema.canonical(pl.DataFrame({"x": [1.0, float("nan")]}))["x"].to_list() == [1.0, None]


@pytest.mark.parametrize(
    ("known", "came", "kept"),
    [
        ("double", [1, None], [1.0, None]),
        ("int64", [1.0, None], [1, None]),
        ("string", [None, None], [None, None]),
        ("null", ["a", None], ["a", None]),
    ],
)
def test_what_fits_without_loss_takes_the_pinned_type(known: str, came: list[Any], kept: list[Any]) -> None:
    fitted = schema.conform(schema.canonical(pl.DataFrame({"x": came})), pinned(x=known), "data set 'p/d'")
    assert fitted["x"].to_list() == kept
    assert [type(value) for value in fitted["x"].to_list()] == [type(value) for value in kept]


@pytest.mark.parametrize(
    ("known", "came", "words"),
    [
        ("int64", [1.5], "column 'x' 'double': came as double .such as 1.5.; data set 'p/d' has it as int64"),
        ("int64", ["a"], "came as string"),
        ("int64", [1e300], "came as double"),
        ("double", [2**53 + 1], "came as int64"),
        ("string", [1], "cast it to string"),
        ("string", [date(2013, 1, 1)], "came as date32"),
        ("timestamp[us, tz=UTC]", [date(2013, 1, 1)], "came as date32"),
        ("bool", [1], "came as int64"),
    ],
)
def test_a_column_of_another_type_names_what_came_and_what_was_expected(
    known: str, came: list[Any], words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        schema.conform(schema.canonical(pl.DataFrame({"x": came})), pinned(x=known), "data set 'p/d'")


def test_missing_extra_and_renamed_columns_are_named_with_the_near_miss() -> None:
    known = pinned(origin="string", temp="double")
    with pytest.raises(BadInput, match=r"column 'temp' of data set 'p/d': is missing.*filled with nulls"):
        schema.conform(pl.DataFrame({"origin": ["JFK"]}), known, "data set 'p/d'")
    with pytest.raises(BadInput, match="'temp_f' instead: rename it to 'temp'"):
        schema.conform(pl.DataFrame({"origin": ["JFK"], "temp_f": [1.0]}), known, "data set 'p/d'")
    with pytest.raises(BadInput, match=r"column 'tempp': is not in the schema.*did you mean 'temp'"):
        schema.conform(pl.DataFrame({"origin": ["JFK"], "temp": [1.0], "tempp": [1.0]}), known, "data set 'p/d'")


def test_the_order_of_columns_is_the_pinned_one() -> None:
    assert schema.conform(pl.DataFrame({"b": [1], "a": [2]}), pinned(a="int64", b="int64"), "d").columns == ["a", "b"]


def test_a_column_without_values_hashes_the_same_before_and_after_its_type_is_known() -> None:
    before = schema.canonical(pl.DataFrame({"a": [1], "gust": [None]}))
    after = schema.conform(before, pinned(a="int64", gust="double"), "d")
    assert after.schema["gust"] == pl.Float64
    assert schema.content_sha256(before) == schema.content_sha256(after)


def test_a_table_that_lacks_a_column_gets_it_as_nulls_in_its_place() -> None:
    made = schema.complete(pl.DataFrame({"b": [1], "_batch": ["x"]}), pinned(a="double", b="int64"))
    assert made.columns == ["a", "b", "_batch"]
    assert made.schema["a"] == pl.Float64
