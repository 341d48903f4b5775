from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cellwork.data import tables


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
