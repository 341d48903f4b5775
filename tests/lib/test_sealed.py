from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from cellwork import ids
from cellwork.data import sealed
from cellwork.errors import BadInput, Unavailable
from cellwork.wire.batches import RawDataset, Seal

BATCH = ids.of_content("bat", "x")
NOVEMBER = Seal(holdout="november", partitions=["2013-11*"], columns=["delay"])


def declared(*seals: Seal) -> RawDataset:
    return RawDataset(name="flights", key=["id"], seals=list(seals))


@pytest.mark.parametrize(
    ("partition", "kept"),
    [("2013-11", True), ("2013-11-30", True), ("2013-10", False), ("x2013-11", False), ("2013-1", False)],
)
def test_a_pattern_seals_the_partitions_that_match_it_whole(partition: str, kept: bool) -> None:
    assert sealed.sealing(declared(NOVEMBER), partition) == (sealed.Sealing("november", ("delay",)) if kept else None)


def test_two_seals_of_one_holdout_add_up_and_of_two_holdouts_are_refused() -> None:
    more = Seal(holdout="november", partitions=["*"], columns=["arrived"])
    assert sealed.sealing(declared(NOVEMBER, more), "2013-11") == sealed.Sealing("november", ("arrived", "delay"))
    with pytest.raises(BadInput, match=r"two holdouts \(christmas, november\)"):
        sealed.sealing(declared(NOVEMBER, Seal(holdout="christmas", partitions=["*"], columns=["delay"])), "2013-11")


@pytest.mark.parametrize(
    ("seal", "words"),
    [
        (Seal(holdout="november", partitions=[], columns=["delay"]), "no columns or no partitions"),
        (Seal(holdout="november", partitions=["*"], columns=[]), "no columns or no partitions"),
        (Seal(holdout="november", partitions=["*"], columns=["id"]), "is a key column"),
        (Seal(holdout="No Vember", partitions=["*"], columns=["delay"]), "is not a name"),
    ],
)
def test_a_seal_that_can_not_hold_is_refused(seal: Seal, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        sealed.check(declared(seal))


def test_a_misspelt_sealed_column_does_not_let_the_truth_through() -> None:
    with pytest.raises(BadInput, match="did you mean 'delay'"):
        sealed.take_out(pl.DataFrame({"delay": [1], "_row": [0]}), sealed.Sealing("november", ("dela",)))


def test_what_is_taken_out_comes_back_in_its_places_and_nowhere_else(tmp_path: Path) -> None:
    rows = pl.DataFrame({"id": [1, 2, 3], "delay": [5.0, None, 7.0], "_row": [0, 1, 2]})
    blank, values = sealed.take_out(rows, sealed.Sealing("november", ("delay",)))
    assert blank["delay"].to_list() == [None, None, None]
    assert blank.schema == rows.schema
    folder = tmp_path / "sealed" / "p"
    sealed.write(folder, "flights", BATCH, values)
    other = pl.DataFrame({"id": [9], "delay": [1.0], "_row": [0]}).with_columns(_batch=pl.lit("another"))
    readable = pl.concat([other, blank.with_columns(_batch=pl.lit(BATCH)).reverse()])
    restored = sealed.restore(readable, folder, "flights", [BATCH])
    assert restored["delay"].to_list() == [1.0, 7.0, None, 5.0]
    assert restored["id"].to_list() == [9, 3, 2, 1]
    assert restored.columns == readable.columns


def test_sealed_files_are_closed_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "sealed" / "p"
    sealed.write(folder, "flights", BATCH, pl.DataFrame({"delay": [1], "_row": [0]}))
    made = [tmp_path / "sealed", *sorted((tmp_path / "sealed").rglob("*"))]
    assert {path.stat().st_mode & 0o077 for path in made} == {0}


def test_a_sealed_file_that_vanished_is_said_not_read_as_empty(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="backup"):
        sealed.restore(pl.DataFrame({"_row": [0], "_batch": [BATCH]}), tmp_path, "flights", [BATCH])
