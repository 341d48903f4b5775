"""Ingest killed at any point and on a full disk: nothing to see of it, and the same delivery mends it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from need import need
from raw_platform import call, state_in
from sqlalchemy import text

from cellwork.errors import Unavailable
from cellwork.wire.batches import RawDataset, Seal
from cellwork_hub import records
from cellwork_hub.platform import batches
from cellwork_hub.platform.state import State

NOVEMBER = RawDataset(
    name="flights", key=["id"], seals=[Seal(holdout="november", partitions=["2013-11*"], columns=["delay"])]
)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return state_in(tmp_path, [batches])


NURSERY = """
import json, os, signal, sys
from pathlib import Path
import polars as pl
from raw_platform import call, state_in
from cellwork_hub.platform import batches

def ingest(folder, point, partition):
    state, frame, seen = state_in(Path(folder), [batches]), pl.read_parquet(Path(folder) / "delivery.parquet"), []
    def trace(frame, event, argument):
        name = frame.f_globals.get("__name__", "") + "." + frame.f_code.co_name
        if event == "return" and name.startswith("cellwork"):
            seen.append(name)
            if point == f"{name}#{seen.count(name)}":
                os.kill(os.getpid(), signal.SIGKILL)
    if point:
        sys.setprofile(trace)
    batches.ingest(state, call(), "demo", "flights", partition, frame)

for line in sys.stdin:
    child = os.fork()
    if not child:
        ingest(*json.loads(line))
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
POINTS = [
    "cellwork.data.sealed.write#1",
    "cellwork.data.tables.write#1",
    "cellwork.data.tables.write#2",
    "cellwork_hub.records.event#1",
    "cellwork_hub.records.audit#1",
]
DELIVERY = pl.DataFrame({"id": [1, 2, None], "delay": [1.0, 2.0, 3.0]})


class Nursery:
    """Has done its imports; forks a process for each ingest that may be killed."""

    def __init__(self) -> None:
        here = Path(__file__).parent
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
        command = [sys.executable, "-c", NURSERY]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)

    def start(self, folder: Path, point: str, partition: str) -> int:
        """Begin the ingest of DELIVERY and return the process id; `point` names the return of a function that kills it."""
        assert self.process.stdin
        DELIVERY.write_parquet(folder / "delivery.parquet")
        self.process.stdin.write(json.dumps([str(folder), point, partition]) + "\n")
        self.process.stdin.flush()
        return self.line()

    def line(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.process.communicate(timeout=60)


def check_whole(state: State, partitions: list[str]) -> None:
    """After the same deliveries were sent again: everything is there, once, and nothing else."""
    for partition in partitions:
        batches.ingest(state, call(), "demo", "flights", partition, DELIVERY)
        assert not batches.ingest(state, call(), "demo", "flights", partition, DELIVERY).new
    there = batches.current(state, "demo", "flights")
    assert sorted(batch.partition for batch in there) == sorted({"2013-10", *partitions})
    assert all((batch.rows, batch.rejected) == (2, 1) for batch in there)
    rows = batches.raw_rows(state, "demo", "flights", sealed=True)
    assert rows.select("id", "delay").rows() == [(1, 1.0), (2, 2.0)] * len(there)
    ready = [event.subject for event in records.events(state.engine, 0, "batch.ready")]
    assert sorted(ready) == sorted(batch.id for batch in there)
    assert len(list(state.home.sealed("demo").rglob("*.parquet"))) == len(partitions)
    with state.engine.connect() as db:
        assert db.execute(text("PRAGMA integrity_check")).scalar() == "ok"


@pytest.fixture
def october(state: State) -> State:
    """A state with one batch, so that a crash meets tables that are there."""
    batches.declare(state, call(), "demo", NOVEMBER)
    batches.ingest(state, call(), "demo", "flights", "2013-10", DELIVERY)
    return state


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own, of 4 MB."""
    need(os.geteuid() == 0 and bool(shutil.which("mount")), "the right to mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    need(made.returncode == 0, "the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_named_and_what_did_not_fit_is_taken_when_there_is_room(small_disk: Path) -> None:
    state, rng = state_in(small_disk, [batches]), random.Random(7)
    small = pl.DataFrame({"x": [rng.random() for _ in range(1000)]})
    large = pl.DataFrame({"x": [rng.random() for _ in range(150_000)]})
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2_500_000))
    batches.ingest(state, call(), "demo", "draws", "small", small)
    with pytest.raises(Unavailable, match=r"disk.*is full; free some space"):
        batches.ingest(state, call(), "demo", "draws", "large", large)
    assert [batch.partition for batch in batches.current(state, "demo", "draws")] == ["small"]
    assert batches.raw_rows(state, "demo", "draws").height == 1000
    ballast.unlink()
    assert batches.ingest(state, call(), "demo", "draws", "large", large).new
    assert batches.raw_rows(state, "demo", "draws").height == 151_000


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_between_any_two_writes_leaves_nothing_to_see_and_the_same_delivery_mends_it(
    tmp_path: Path, october: State, nursery: Nursery, point: str
) -> None:
    nursery.start(tmp_path, point, "2013-11")
    assert nursery.line() == -signal.SIGKILL
    assert [batch.partition for batch in batches.current(october, "demo", "flights")] == ["2013-10"]
    assert batches.raw_rows(october, "demo", "flights").height == 2
    check_whole(october, ["2013-11"])


def test_kills_at_seeded_moments_lose_nothing_and_double_nothing(
    tmp_path: Path, october: State, nursery: Nursery
) -> None:
    seed = 20131121
    rng, partitions = random.Random(seed), []
    for number in range(8):
        partitions.append(f"2013-11-{number:02}")
        process = nursery.start(tmp_path, "", partitions[-1])
        time.sleep(rng.uniform(0, 0.6))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        print(f"seed {seed}: {partitions[-1]} ended with {nursery.line()}")
    check_whole(october, partitions)


def test_a_first_batch_that_crashed_does_not_pin_the_schema(tmp_path: Path, state: State, nursery: Nursery) -> None:
    nursery.start(tmp_path, "cellwork_hub.records.event#1", "2013-01")
    assert nursery.line() == -signal.SIGKILL
    other = pl.DataFrame({"id": ["a"], "delay": ["late"], "more": [1]})
    batches.ingest(state, call(), "demo", "flights", "2013-01", other)
    assert batches.raw_rows(state, "demo", "flights").drop("_batch").equals(other)


# The command line
