"""A prediction log in which a subject stands everywhere it can, and the forgetting of it as a process that kills itself.

``python forgetting_process.py FOLDER STEP``: a step is a statement or commit of the database, or a file opened, renamed or removed; with
STEP 0 it lives and prints how many there were.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import prediction_log
import pyarrow.parquet  # noqa: F401, its own files are no steps
from prediction_log import START
from sqlalchemy import event

from cellwork import ids
from cellwork.serving import compaction, forgetting
from cellwork.serving.log import PredictionLog
from cellwork.serving.segments import LookedUp, Turn, Writer
from cellwork.wire.endpoints import Forget, Prediction
from cellwork.wire.evaluations import VersionRef

WHO, SPOOR = "user-bob-4711", "spoor-of-bob-0815"
"""The subject, and what stands in the features of its rows."""
ERASURE = ids.of_key("ers", "test")
OBSERVATIONS = [f"{SPOOR}-o{number}" for number in range(20)]
WISH = Forget(erasure=ERASURE, value=WHO, names=["user"], observations={"shop/churn": OBSERVATIONS, "shop/worth": OBSERVATIONS})  # fmt: skip
FILES = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.chmod"})


@dataclass
class World:
    log: PredictionLog
    writer: Writer
    dice: random.Random
    own: set[str] = field(default_factory=set)
    """Predictions of the subject."""
    known: list[Prediction] = field(default_factory=list)
    """What the log held before."""

    def named(self, one: Prediction) -> Prediction:
        """Return a prediction as one of the subject's, which it tells in one of the ways there are."""
        change: dict[str, Any] = {
            "features": {**one.features, "plan": SPOOR}, "feature_batches": {"v": SPOOR}, "reason": f"user={SPOOR}",
            "observation": f"{SPOOR}-x" if one.observation else "",
        }  # fmt: skip
        ways: list[dict[str, Any]] = [
            {"entities": {"user": WHO, "shop": 3}}, {"features": {**change["features"], "user": WHO}},
            {"features": {**change["features"], "of_user__user": WHO}}, {"unit": WHO},
        ]  # fmt: skip
        if one.batch_run:
            ways.append({"observation": self.dice.choice(OBSERVATIONS)})
        if one.request_id:
            change["request_id"] = f"{WHO} {one.request_id}"
        self.own.add(one.id)
        return msgspec.structs.replace(one, **change | self.dice.choice(ways))

    def turn(self, at: datetime, name: str, user: str) -> Turn:
        """Return a turn of the quick lane with one prediction."""
        place = round(at.timestamp() * 1e6)
        plan = SPOOR if user == WHO else "free"
        return Turn(
            "shop/churn", 1, VersionRef(name="shop/churn", version=1, digest="d"), "dep_0", "live", ["visits", "plan"], place,
            [ids.of_key("pred", name)], [(1.0, plan)], [0.5], ["ada"], [7], {} if name == "late" else {0: LookedUp({"user": user}, {}, {})},
        )  # fmt: skip


@contextmanager
def world(
    folder: Path, dice: random.Random, *, count: int, share: float, until: datetime, url: str = ""
) -> Iterator[World]:
    """Fill a log under `folder` with `count` predictions, `share` of them the subject's; those before `until` are Parquet.

    Some stand in the table, which has seen rows come and go, some in a segment that is still written to.
    """
    log = prediction_log.opened(folder, url)
    made = World(log, Writer(folder / "segments"), dice)
    for number in range(count - 8):
        one = prediction_log.prediction(dice, START + timedelta(hours=number * 144 / count), number)
        log.write([made.named(one) if dice.random() < share else one])
    compaction.GROUP_ROWS, compaction.DELETED_ROWS = prediction_log.GROUP_ROWS, prediction_log.DELETED_ROWS
    compaction.compact(log.engine, folder / "days", until, most=prediction_log.MOST_ROWS)
    for number in range(8):
        user = WHO if dice.random() < share else "user-1"
        turn = made.turn(START + timedelta(days=8), f"turn {number}", user)
        made.own |= {turn.ids[0]} if user == WHO else set()
        made.writer.append(turn)
        if number == 4:
            log.take_over()
    made.known = log.after(0, limit=count) if url else _read_aside(folder, count)
    yield made
    made.writer.close()
    log.engine.dispose()


def _read_aside(folder: Path, count: int) -> list[Prediction]:
    """Return what the log holds without taking its segment over: read in a copy."""
    with tempfile.TemporaryDirectory() as name:
        copy = prediction_log.opened(Path(shutil.copytree(folder, Path(name) / "copy")))
        found = copy.after(0, limit=count)
        copy.engine.dispose()
    return found


def main(folder: Path, last: int) -> None:
    log = prediction_log.opened(folder)
    count, steps = itertools.count(1), [0]

    def step(*_: Any) -> None:
        steps.append(next(count))
        if steps[-1] == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(name: str, words: tuple[Any, ...]) -> None:
        if name in FILES and str(words[0]).startswith(str(folder)) and ".sqlite" not in str(words[0]):
            step()

    event.listen(log.engine, "before_cursor_execute", step)
    event.listen(log.engine, "commit", step)
    sys.addaudithook(audit)
    forgetting.forget(log, "shop", WISH)
    print(steps[-1])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
