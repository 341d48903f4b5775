"""The prediction log's old days become Parquet: readers see no difference, and a kill at any step loses and doubles nothing."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import compaction_process
import msgspec
import polars as pl
import postgres_server
import prediction_log
import pytest
from prediction_log import START, answers, filled, opened

from cellwork import files, ids
from cellwork.errors import Conflict, NotFound
from cellwork.serving import archive, compaction
from cellwork.serving.log import PredictionLog

SEED = 2013
COUNT = 240
UNTIL = START + timedelta(days=4)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "GROUP_ROWS", prediction_log.GROUP_ROWS)
    monkeypatch.setattr(compaction, "DELETED_ROWS", prediction_log.DELETED_ROWS)


def compacted(log: PredictionLog, until: datetime = UNTIL) -> int:
    assert log.archive is not None
    return compaction.compact(log.engine, log.archive.folder, until, most=prediction_log.MOST_ROWS)


def in_table(log: PredictionLog) -> list[int]:
    with log.engine.connect() as db:
        return list(db.exec_driver_sql("SELECT seq FROM predictions ORDER BY seq").scalars())


@pytest.mark.parametrize(("kind", "rounds"), [("sqlite", 8), ("postgresql", 2)])
def test_whoever_reads_the_log_sees_no_difference_when_old_days_become_parquet(
    kind: str, rounds: int, tmp_path: Path
) -> None:
    log = opened(tmp_path, postgres_server.database() if kind == "postgresql" else "")
    known = filled(log, random.Random(SEED), count=COUNT, days=6)
    before = answers(log, known, random.Random(SEED), rounds)
    young = min(p.seq for p in known if p.logged_at >= UNTIL)
    assert compacted(log) == young - 1
    assert in_table(log) == list(range(young, COUNT + 1))
    assert answers(log, known, random.Random(SEED), rounds) == before
    with pytest.raises(NotFound):
        log.get(ids.new("pred"))
    assert compacted(log) == 0
    assert compacted(log, UNTIL + timedelta(days=1)) > 0
    assert answers(log, known, random.Random(SEED), rounds) == before


def test_a_rollout_looks_at_each_score_of_a_unit_once_in_the_table_and_in_old_days(tmp_path: Path) -> None:
    """What one unit is told again and again is one piece of evidence: units that asked often took good versions back."""
    log, dice = opened(tmp_path), random.Random(SEED)
    whose: list[dict[str, object]] = [
        {"unit": "busy", "entities": {"id": 1}}, {"unit": "", "entities": {"id": 2}}, {"unit": "", "entities": {}}
    ]  # fmt: skip
    scores = {0: 0.5, 1: 0.5}
    for number in range(60):
        made = prediction_log.prediction(dice, START + timedelta(hours=2 * number), number)
        changes = {
            **whose[number % 3],
            "deployment": "dep_0",
            "score": scores.get(number % 3, number // 6 / 10),
            "tried": "",
        }
        log.write([msgspec.structs.replace(made, **changes)])
    alone = [number // 6 / 10 for number in range(2, 60, 3)]
    for _ in range(2):
        seen = log.seen("dep_0", "live", START)
        assert (seen.answered, len(seen.milliseconds)) == (60, 60)
        assert sorted(seen.scores.tolist()) == sorted([0.5, 0.5, *alone])
        assert compacted(log) > 0 or len(in_table(log)) < 60


def test_any_program_reads_the_days_as_parquet(tmp_path: Path) -> None:
    log = opened(tmp_path)
    known = filled(log, random.Random(SEED), count=COUNT, days=6)
    count = compacted(log)
    frame = pl.read_parquet(tmp_path / "days" / "**" / "*.parquet", hive_partitioning=True).sort("seq")
    assert frame["id"].to_list() == [p.id for p in known[:count]]
    assert frame["logged_at"].to_list() == [p.logged_at for p in known[:count]]
    assert (frame["day"].cast(pl.String) == frame["logged_at"].dt.strftime("%Y-%m-%d")).all()
    assert frame["score"].to_list() == [p.score for p in known[:count]]


def test_a_number_once_given_is_given_to_no_other_prediction(tmp_path: Path) -> None:
    log, dice = opened(tmp_path), random.Random(SEED)
    known = filled(log, dice, count=30, days=2)
    assert compacted(log) == 30
    log.write([prediction_log.prediction(dice, UNTIL, 99)])
    assert [p.seq for p in log.after(0)] == [*(p.seq for p in known), 31]


def test_a_repeated_key_gets_the_archived_answer(tmp_path: Path) -> None:
    log, dice = opened(tmp_path), random.Random(SEED)
    known = [p for p in filled(log, dice, count=60, days=2) if p.request_id]
    assert compacted(log) == 60
    for one in known:
        assert log.find(one.endpoint, [one.id]) == {one.id: one}
        assert log.find("shop/other", [one.id]) == {}


def test_one_process_compacts_at_a_time(tmp_path: Path) -> None:
    log = opened(tmp_path)
    filled(log, random.Random(SEED), count=20, days=2)
    with files.locked(tmp_path / "days" / ".lock", "the other one"), pytest.raises(Conflict, match="the other one"):
        compacted(log)


def test_a_day_is_old_an_hour_after_its_end() -> None:
    late, early = datetime(2024, 5, 8, 0, 59, tzinfo=UTC), datetime(2024, 5, 8, 1, 1, tzinfo=UTC)
    assert compaction.before(late, 7) == datetime(2024, 4, 30, tzinfo=UTC)
    assert compaction.before(early, 7) == datetime(2024, 5, 1, tzinfo=UTC)
    assert compaction.before(early, 0) == datetime(2024, 5, 8, tzinfo=UTC)


def killed_at(folder: Path, step: int) -> str:
    command = [sys.executable, compaction_process.__file__, str(folder), UNTIL.isoformat(), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == (-9 if step else 0), done.stderr
    return done.stdout


@pytest.mark.parametrize("kills", [3, pytest.param(0, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_a_compaction_killed_at_any_step_loses_and_doubles_nothing(tmp_path: Path, kills: int) -> None:
    """With 0 it is killed at every step there is; each time it is read, finished, and read again."""
    log, dice = opened(tmp_path), random.Random(SEED)
    known = filled(log, dice, count=120, days=6)
    before = answers(log, known, random.Random(1), 2)
    log.engine.dispose()
    start = tmp_path / "inference.sqlite"
    whole = tmp_path / "whole"
    whole.mkdir()
    shutil.copy(start, whole)
    steps = int(killed_at(whole, 0))
    print(f"{steps} steps; seed {SEED}")
    for step in sorted(dice.sample(range(1, steps + 1), kills)) if kills else range(1, steps + 1):
        folder = tmp_path / str(step)
        folder.mkdir()
        shutil.copy(start, folder)
        killed_at(folder, step)
        again = opened(folder)
        assert answers(again, known, random.Random(1), 2) == before, f"killed at step {step} of {steps}"
        compacted(again)
        assert answers(again, known, random.Random(1), 2) == before, f"finished after a kill at step {step} of {steps}"
        assert min(in_table(again)) == min(p.seq for p in known if p.logged_at >= UNTIL)
        with again.engine.connect() as db:
            named = {part.path for part in archive.Archive(folder / "days").parts(db)}
        assert set((folder / "days").glob("day=*/*")) == named
        again.engine.dispose()
