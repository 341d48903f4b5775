"""The prediction log's segments, in the moments in which a process, its disk or its power goes: what was acknowledged is read.

Of two segments that were begun in the same millisecond either may be read first.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from cellwork import db
from cellwork.errors import Unavailable
from cellwork.serving import segments
from cellwork.serving.log import PredictionLog
from cellwork.serving.segments import Turn, Writer
from cellwork.wire.evaluations import VersionRef
from cellwork_hub.inference.app import MIGRATIONS


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = db.open_database(f"sqlite:///{tmp_path / 'log.db'}", MIGRATIONS)
    yield engine
    engine.dispose()


@pytest.fixture
def kept(engine: Engine, tmp_path: Path) -> PredictionLog:
    return PredictionLog(engine, tmp_path / "segments")


def turn(*names: str) -> Turn:
    many = len(names)
    return Turn(
        "shop/churn", 1, VersionRef(name="shop/churn", version=1, digest="d"), "dep_1", "live", ["visits"], 1_700_000_000_000_000,
        list(names), [(1.0,)] * many, [0.5] * many, ["ada"] * many, [10] * many,
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10_000))
def test_whatever_is_left_of_a_torn_segment_its_whole_frames_are_read(
    tmp_path_factory: pytest.TempPathFactory, left: int
) -> None:
    folder = tmp_path_factory.mktemp("segments")
    writer = Writer(folder)
    ends = [0]
    for number in range(5):
        writer.append(turn(f"pred_{number}a", f"pred_{number}b"))
        ends.append(segments.listing(folder)[0].stat().st_size)
    path = segments.listing(folder)[0]
    assert not segments.is_finished(path)
    writer.close()
    assert segments.is_finished(path)
    size = min(left, ends[-1])
    os.truncate(path, size)
    whole = sum(end <= size for end in ends) - 1
    assert [offset for _, offset in segments.turns(path, 0)] == ends[1 : whole + 1]
    assert [t.ids[0] for t, _ in segments.turns(path, ends[min(1, whole)])] == [f"pred_{k}a" for k in range(1, whole)]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_segment_that_is_just_begun_is_not_taken_for_one_whose_writer_is_gone(
    kept: PredictionLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The log's keeper looks just before or after the new segment is locked, when nothing stands in it yet."""
    writer = Writer(tmp_path / "segments")
    lock, looks = fcntl.flock, [moment]

    def looked_at(file: int, how: int) -> None:
        looking = looks.pop() if looks else ""
        if looking == "before":
            kept.take_over()
        lock(file, how)
        if looking == "after":
            kept.take_over()

    monkeypatch.setattr(fcntl, "flock", looked_at)
    writer.append(turn("pred_a"))
    writer.append(turn("pred_b"))
    assert looks == []
    assert [p.id for p in kept.after(0)] == ["pred_a", "pred_b"]
    writer.close()
    kept.take_over()
    assert list((tmp_path / "segments").iterdir()) == []
    assert [p.id for p in kept.after(0)] == ["pred_a", "pred_b"]


@pytest.mark.parametrize("step", ["lock", "name"])
def test_a_segment_that_could_not_be_begun_is_not_written_to(
    kept: PredictionLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It stayed unlisted, and all that was acknowledged from then on stood where nobody looks."""
    writer = Writer(tmp_path / "segments")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((fcntl, "flock", full) if step == "lock" else (Path, "rename", full)))
        with pytest.raises(Unavailable, match="No space left"):
            writer.append(turn("pred_refused"))
        assert list((tmp_path / "segments").iterdir()) == []
    writer.append(turn("pred_a"))
    assert [p.id for p in kept.after(0)] == ["pred_a"]
    writer.close()


def test_nothing_follows_a_torn_prediction_that_can_not_be_taken_back(
    kept: PredictionLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, write = Writer(tmp_path / "segments"), os.write
    writer.append(turn("pred_a"))

    def half(file: int, data: bytes) -> int:
        return write(file, data[: len(data) // 2])

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        patch.setattr(os, "ftruncate", fails)
        with pytest.raises(Unavailable, match="the disk is full"):
            writer.append(turn("pred_torn"))
    writer.append(turn("pred_b"))
    assert sorted(p.id for p in kept.after(0)) == ["pred_a", "pred_b"]
    writer.close()


def test_zeros_that_a_power_loss_left_behind_the_last_prediction_hold_up_nothing(
    kept: PredictionLog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Writer(tmp_path / "segments")
    writer.append(turn("pred_a"))
    writer.close()
    with segments.listing(tmp_path / "segments")[0].open("ab") as file:
        file.write(bytes(4096))
    writer.append(turn("pred_b"))
    with caplog.at_level(logging.WARNING):
        assert sorted(p.id for p in kept.after(0)) == ["pred_a", "pred_b"]
    assert "the last 4096 bytes of segment" in caplog.text
    writer.close()


def test_what_was_begun_and_never_listed_is_tidied_away(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.append(turn("pred_a"))
    now = time.time()
    for name, age in (("killed", 3600), ("locked", 3600), ("young", 0)):
        path = tmp_path / f"{name}.begun"
        path.touch()
        os.utime(path, (now - age, now - age))
    with (tmp_path / "locked.begun").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        segments.tidy(tmp_path)
    assert {path.name for path in tmp_path.glob("*.begun")} == {"locked.begun", "young.begun"}
    assert len(segments.listing(tmp_path)) == 1
    writer.close()
