"""An erased subject is in no byte of the prediction log, nobody else's rows change, and a kill at any step loses neither."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import forgetting_process
import msgspec
import polars as pl
import postgres_server
import prediction_log
import pytest
from forgetting_process import ERASURE, OBSERVATIONS, SPOOR, WHO, WISH, World, world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prediction_log import START

from cellwork import ids
from cellwork.errors import Conflict
from cellwork.serving import archive, compaction, forgetting, segments
from cellwork.serving.log import COLUMNS, PredictionLog
from cellwork.wire.endpoints import Forget

SEED = 4711
UNTIL = START + timedelta(days=4)
KEPT = ("id", "seq", "at", "logged_at", "endpoint", "revision", "version", "deployment", "route", "latency_us", "caller", "batch_run", "tried")  # fmt: skip


def spoors(folder: Path) -> list[str]:
    """Return the files that tell of the subject: by their bytes, or by what Parquet has packed."""
    found = []
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        data = path.read_bytes()
        if path.suffix in (".parquet", ".new"):
            data += repr(pl.read_parquet(path, hive_partitioning=False).rows()).encode()
        if any(mark.encode() in data for mark in (WHO, SPOOR)):
            found.append(str(path.relative_to(folder)))
    return found


def check(made: World, log: PredictionLog, *, told: int | None = None) -> None:
    """All is as it was but that the subject's rows are empty, and nothing of them is in a file."""
    rows = {each.id: each for each in log.after(0, limit=len(made.known) + 1)}
    assert len(rows) == len(made.known)
    for one in made.known:
        now = rows[one.id]
        assert now == log.get(one.id)
        if one.id not in made.own:
            assert now == one
            continue
        assert all(getattr(now, name) == getattr(one, name) for name in KEPT)
        assert (now.erased, now.score, now.entities, now.features, now.defaults) == (ERASURE, None, {}, {}, [])
        assert (now.observation, now.unit, now.request_id, now.reason, now.feature_events) == ("", "", "", "", {})
    assert log.scored("shop/churn", OBSERVATIONS) == {}
    assert told is None or told == len(made.own)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "GROUP_ROWS", prediction_log.GROUP_ROWS)
    monkeypatch.setattr(compaction, "DELETED_ROWS", prediction_log.DELETED_ROWS)


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), share=st.floats(0, 1), days=st.integers(0, 7))
def test_nothing_of_the_subject_is_left_in_any_byte_and_nobody_elses_row_changes(
    tmp_path_factory: pytest.TempPathFactory, seed: int, share: float, days: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    with world(folder, random.Random(seed), count=60, share=share, until=START + timedelta(days=days)) as made:
        assert bool(spoors(folder)) == bool(made.own)
        done = forgetting.forget(made.log, "shop", WISH)
        assert {each.id for each in done.predictions} == made.own
        check(made, made.log)
        assert spoors(folder) == []
        again = forgetting.forget(made.log, "shop", msgspec.structs.replace(WISH, erasure=ids.new("ers")))
        assert (again.predictions, again.archived, again.files) == ([], 0, 0)
        check(made, made.log)
    shutil.rmtree(folder)


def test_a_log_on_postgresql_is_emptied_too(tmp_path: Path) -> None:
    url = postgres_server.database()
    with world(tmp_path, random.Random(SEED), count=90, share=0.3, until=UNTIL, url=url) as made:
        done = forgetting.forget(made.log, "shop", WISH)
        assert {each.id for each in done.predictions} == made.own
        check(made, made.log)
        assert spoors(tmp_path) == []
        assert "write-ahead log" in done.left[0]


def test_a_number_is_meant_as_text_or_number_and_a_longer_one_is_not(tmp_path: Path) -> None:
    log, dice = prediction_log.opened(tmp_path), random.Random(SEED)
    said: list[dict[str, Any]] = [
        {"entities": {"user": 17}}, {"entities": {"user": "17"}}, {"features": {"user": 17.0}},
        {"features": {"of_user__user": 17}}, {"unit": "17"}, {"observation": "o17", "endpoint": "shop/churn"},
        {"entities": {"user": 170}}, {"entities": {"shop": 17}}, {"features": {"age": 17.0}}, {"observation": "o17", "endpoint": "shop/worth"},
        {"entities": {"user": 17}, "endpoint": "shop2/churn"}, {"entities": {"user": 17}, "endpoint": "shopX/churn"},
    ]  # fmt: skip
    for number, changes in enumerate(said):
        plain = {"entities": {}, "features": {}, "observation": "", "endpoint": "shop/churn"}
        log.write([msgspec.structs.replace(prediction_log.prediction(dice, START, number), **plain | changes)])
    wish = Forget(erasure=ERASURE, value="17", names=["user"], observations={"shop/churn": ["o17"]})
    forgetting.forget(log, "shop", wish)
    assert [bool(each.erased) for each in log.after(0)] == [True] * 6 + [False] * 6


def test_a_repeated_key_of_an_emptied_prediction_finds_it_emptied(tmp_path: Path) -> None:
    with world(tmp_path, random.Random(SEED), count=90, share=0.5, until=UNTIL) as made:
        keyed = next(each for each in made.known if each.id in made.own and each.request_id)
        forgetting.forget(made.log, "shop", WISH)
        assert made.log.find(keyed.endpoint, [keyed.id])[keyed.id].erased == ERASURE
        young = next(each for each in reversed(made.known) if each.id in made.own and each.request_id)
        held = made.log.write([msgspec.structs.replace(young, seq=0)], [young.id])
        assert (held[young.id].erased, held[young.id].score) == (ERASURE, None)
        assert spoors(tmp_path) == []


def test_a_rollout_counts_emptied_predictions_and_looks_at_no_score_of_theirs(tmp_path: Path) -> None:
    with world(tmp_path, random.Random(SEED), count=90, share=0.5, until=UNTIL) as made:
        before = made.log.seen("dep_0", "live", START - timedelta(days=9))
        forgetting.forget(made.log, "shop", WISH)
        after = made.log.seen("dep_0", "live", START - timedelta(days=9))
        left = [each.score for each in made.known if each.deployment == "dep_0" and each.id not in made.own]
        assert set(before.scores) > set(after.scores) == set(left)
        assert (after.answered, after.failed) == (before.answered, before.failed)
        assert after.milliseconds.tolist() == before.milliseconds.tolist()


def test_a_file_of_before_there_were_erasures_is_read_and_emptied(tmp_path: Path) -> None:
    with world(tmp_path, random.Random(SEED), count=90, share=0.2, until=UNTIL) as made:
        for path in (tmp_path / "days").rglob("*.parquet"):
            _without_erased(path)
        assert made.log.after(0, limit=100) == made.known
        forgetting.forget(made.log, "shop", WISH)
        check(made, made.log)


def _without_erased(path: Path) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        groups = [file.read_row_group(k).drop_columns(["erased"]) for k in range(file.num_row_groups)]
    with pq.ParquetWriter(path, groups[0].schema, compression="zstd") as writer:
        for group in groups:
            writer.write_table(group)


def test_a_compaction_and_forgetting_at_once_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    """Days become Parquet by small commits while the subject is forgotten, from several threads, with a writer beside."""
    with world(tmp_path, random.Random(SEED), count=110, share=0.3, until=START) as made:
        failed: list[BaseException] = []

        def compacting() -> None:
            for day in range(5):
                end = time.monotonic() + 240
                while True:
                    try:
                        compaction.compact(made.log.engine, tmp_path / "days", START + timedelta(days=day), most=20)
                        break
                    except Conflict:  # the erasure is at it
                        if time.monotonic() > end:
                            raise
                        time.sleep(0.01)

        def forgets() -> None:
            for _ in range(2):
                forgetting.forget(made.log, "shop", WISH)

        def tried(work: Any) -> None:
            try:
                work()
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=tried, args=(work,)) for work in (compacting, forgets, forgets)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(240)
        assert failed == []
        check(made, made.log)
        assert list((tmp_path / "days").rglob("*.parquet"))
        assert spoors(tmp_path) == []


def test_segments_that_are_still_written_to_lose_only_what_was_taken_over(tmp_path: Path) -> None:
    with world(tmp_path, random.Random(SEED), count=40, share=0.5, until=START) as made:
        forgetting.forget(made.log, "shop", WISH)
        paths = segments.listing(tmp_path / "segments")
        assert paths
        late = made.turn(START, "late", "user-1")
        made.writer.append(late)
        assert made.log.get(late.ids[0]).entities == {}
        assert [each.id for each in made.log.after(0, limit=100)] == [*(each.id for each in made.known), *late.ids]


# Kills


def killed_at(folder: Path, step: int) -> str:
    command = [sys.executable, forgetting_process.__file__, str(folder), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == (-9 if step else 0), done.stderr
    return done.stdout


@pytest.mark.parametrize("kills", [2, pytest.param(0, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_forgetting_killed_at_any_step_loses_nothing_and_leaves_nothing_after_the_retry(
    tmp_path: Path, kills: int
) -> None:
    """With 0 it is killed at every step there is; each time others' rows are read, it is asked again, and all is looked at."""
    start, dice = tmp_path / "start", random.Random(SEED)
    start.mkdir()
    with world(start, dice, count=60, share=0.4, until=UNTIL) as made:
        made.log.engine.dispose()
    whole = shutil.copytree(start, tmp_path / "whole")
    steps = int(killed_at(whole, 0))
    print(f"{steps} steps; seed {SEED}")
    others = [each for each in made.known if each.id not in made.own]
    for step in sorted(dice.sample(range(1, steps + 1), kills)) if kills else range(1, steps + 1):
        folder = shutil.copytree(start, tmp_path / str(step))
        killed_at(folder, step)
        again = prediction_log.opened(folder)
        rows = again.after(0, limit=100)
        assert [each for each in rows if each.id not in made.own] == others, f"killed at step {step} of {steps}"
        assert len(rows) == len(made.known)
        done = forgetting.forget(again, "shop", WISH)
        assert {each.id for each in done.predictions} == made.own, f"told after a kill at step {step} of {steps}"
        check(made, again)
        assert spoors(folder) == [], f"left after a kill at step {step} of {steps}"
        with again.engine.connect() as db:
            named = {part.path for part in archive.Archive(folder / "days").parts(db)}
        assert set((folder / "days").glob("day=*/*")) == named
        again.engine.dispose()
        shutil.rmtree(folder)


def test_every_column_of_the_log_is_either_kept_or_emptied() -> None:
    """A column that is added must be decided on."""
    kept = {*KEPT, "name", "digest", "erased"} - {"seq"}
    assert kept | set(forgetting.EMPTY) == set(COLUMNS)
    assert not kept & set(forgetting.EMPTY)
