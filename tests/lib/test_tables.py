from __future__ import annotations

import json
import os
import shutil
from datetime import UTC
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork.data import erase, tables
from cellwork.errors import Unavailable


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


@pytest.mark.parametrize("first", ["plain", "by the Delta writer"])
def test_whoever_opens_a_table_of_many_batches_reads_ten_commits_at_most(tmp_path: Path, first: str) -> None:
    """The log before the newest checkpoint is not needed: without it the table is the same."""
    table, known = tmp_path / "t", [bat(number) for number in range(25)]
    for number, batch in enumerate(known):
        frame = rows(number) if first == "plain" else rows(number).with_columns(small=pl.lit(1, pl.Int32))
        tables.write(table, frame, batch, known=known[:number])
    newest = json.loads((table / "_delta_log" / "_last_checkpoint").read_text())["version"]
    assert newest >= len(known) - 11
    for commit in (table / "_delta_log").glob("*.json"):
        if int(commit.stem) <= newest:
            commit.unlink()
    assert tables.read(table, known)["x"].to_list() == list(range(25))


def test_an_erased_subject_is_in_no_checkpoint_either(tmp_path: Path) -> None:
    """A small integer takes the Delta writer, whose log has the least and greatest values."""
    table, known = tmp_path / "t", [bat(number) for number in range(12)]
    for number, batch in enumerate(known):
        frame = rows("ann", "SUBJECT-7").with_columns(small=pl.lit(1, pl.Int32))
        tables.write(table, frame, batch, known=known[:number])
    assert list((table / "_delta_log").glob("*.checkpoint.parquet"))
    erase.from_table(table, "x", "SUBJECT-7")
    assert tables.read(table, known)["x"].to_list() == ["ann"] * 12
    assert not [path for path in table.rglob("*") if path.is_file() and b"SUBJECT-7" in path.read_bytes()]


@pytest.mark.parametrize("gone", ["a file", "the table"])
def test_a_source_that_vanished_is_named_with_a_way_out(tmp_path: Path, gone: str) -> None:
    table = tmp_path / "table"
    tables.write(table, rows(1, 2), bat(1), known=[])
    if gone == "a file":
        next(table.glob("_batch=*/*.parquet")).unlink()
    else:
        shutil.rmtree(table)
    with pytest.raises(Unavailable, match=r"table '.*table': has lost what it is made of: .*; bring it back"):
        tables.read(table, [bat(1)])


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
