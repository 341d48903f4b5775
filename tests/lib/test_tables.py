from __future__ import annotations

import os
from datetime import UTC
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork.data import erase, tables


def rows(*values: Any, column: str = "x") -> pl.DataFrame:
    return pl.DataFrame({column: list(values), "_row": range(len(values))}, schema_overrides={"_row": pl.Int64})


def bat(number: int) -> str:
    return f"bat_{number:026d}"


def test_batches_come_back_in_the_order_asked_and_their_rows_in_theirs(tmp_path: Path) -> None:
    for number, values in ((1, ("b", "a")), (2, ("d", "c")), (3, ("e",))):
        tables.write(tmp_path / "t", rows(*values), bat(number), known=[bat(n) for n in range(1, number)])
    assert tables.read(tmp_path / "t", [bat(3), bat(1)])["x"].to_list() == ["e", "b", "a"]
    assert tables.read(tmp_path / "t", []).height == 0


def test_writing_a_batch_again_replaces_what_an_earlier_attempt_left(tmp_path: Path) -> None:
    tables.write(tmp_path / "t", rows(1, 2), bat(1), known=[])
    tables.write(tmp_path / "t", rows(1, 2, 3), bat(1), known=[])
    assert tables.read(tmp_path / "t", [bat(1)])["x"].to_list() == [1, 2, 3]


def test_a_column_without_a_type_appears_when_its_first_value_comes(tmp_path: Path) -> None:
    tables.write(tmp_path / "t", rows(1).with_columns(gust=pl.lit(None)), bat(1), known=[])
    tables.write(tmp_path / "t", rows(2).with_columns(gust=pl.lit(9.5)), bat(2), known=[bat(1)])
    assert tables.read(tmp_path / "t", [bat(1), bat(2)])["gust"].to_list() == [None, 9.5]


@pytest.mark.parametrize("known", [[], [bat(1)]])
def test_a_table_left_by_a_crash_with_other_types_is_written_anew_without_it(tmp_path: Path, known: list[str]) -> None:
    """The batch with a text never became known; a number may still come into that column."""
    tables.write(tmp_path / "t", rows(1), bat(1), known=[])
    tables.write(tmp_path / "t", rows(2).with_columns(gust=pl.lit("left by a crash")), bat(2), known=known)
    tables.write(tmp_path / "t", rows(3).with_columns(gust=pl.lit(9.5)), bat(3), known=known)
    found = tables.read(tmp_path / "t", [*known, bat(3)])
    assert found["x"].to_list() == [*(1 for _ in known), 3]
    assert found["gust"].to_list() == [*(None for _ in known), 9.5]
    assert tables.read(tmp_path / "t", [bat(2)]).height == 0


@pytest.mark.parametrize("kept", ["erased", "compacted"])
def test_a_file_that_a_killed_write_left_is_not_kept(tmp_path: Path, kept: str) -> None:
    table = tmp_path / "table"
    tables.write(table, rows(1, 2), bat(1), known=[])
    there = next(table.glob("_batch=*/*.parquet"))
    left = there.with_name("left-by-a-crash.parquet")
    left.write_bytes(there.read_bytes())
    os.utime(left, (1, 1))
    if kept == "erased":
        erase.purge(table)
    else:
        tables.compact(table)
    assert not left.exists()
    assert tables.read(table, [bat(1)])["x"].to_list() == [1, 2]


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "n": st.none() | st.integers(-(2**63), 2**63 - 1),
                "x": st.none() | st.floats(),
                "t": st.none() | st.text(max_size=4),
                "b": st.none() | st.booleans(),
                "d": st.none() | st.dates(),
                "at": st.none() | st.datetimes(timezones=st.just(UTC)),
            }
        ),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=25, deadline=None)
def test_what_was_written_is_what_is_read(found: list[dict[str, Any]]) -> None:
    plain = {
        "n": pl.Int64,
        "x": pl.Float64,
        "t": pl.String,
        "b": pl.Boolean,
        "d": pl.Date,
        "at": pl.Datetime("us", "UTC"),
    }
    frame = pl.DataFrame(found, schema=plain).with_columns(_row=pl.int_range(pl.len(), dtype=pl.Int64))
    with TemporaryDirectory() as folder:
        table = Path(folder) / "table"
        for number in (1, 2):
            tables.write(
                table, frame.select(pl.all().exclude("t"), "t") if number == 2 else frame, bat(number), known=[]
            )
        for number in (1, 2):
            assert tables.read(table, [bat(number)]).drop("_batch").select(frame.columns).equals(frame)
