"""Takes the quick lane's log over into its table, and lets its old days become Parquet, in a process of its own:
`python -m cellwork_hub.inference.keeper`.

In the service's process it would hold Python's lock just when answers are due. It runs when nobody else wants the processor, and what it
does not come to stands in the segments, where every reader takes it over himself (`cellwork.serving.log`). It reads its `Task` from
standard input and ends when that ends, which is when the service has gone, however it went; it may end anywhere.

What compacts (`cellwork.serving.compaction`) is a process that the keeper starts when there is something to do, about once a day: it
needs a hundred megabytes for a minute. It ends with the keeper, in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
from sqlalchemy import Engine

from cellwork import clock, db
from cellwork.errors import CellworkError
from cellwork.home import Home
from cellwork.serving import compaction, segments
from cellwork.serving.log import PredictionLog

log = logging.getLogger("cellwork")

ROWS = 500
IDLE_SECONDS = 1.0
REST, REST_OF_OTHERS = 0.25, 4.0
"""How long it rests after a part, beside the time the part took: where it had a processor for itself, and where others wanted it."""
ALONE = 0.6
"""The share of that time for which it had one."""
AGAIN_SECONDS = 5.0
"""The rest before a keeper that ended is started again."""
LOOK_SECONDS = 60.0
"""How often it is looked whether days can be compacted."""
MODULE = "cellwork_hub.inference.keeper"
COMPACT = "compact"
"""The word on the command line of the process that does."""


class Task(msgspec.Struct):
    url: str
    """Of the service's database; it may hold a password, and so comes by no command line."""
    home: str
    days: int
    """How many whole days before today stay in the table."""


async def keep(url: str, home: Home, days: int) -> None:
    """Run a keeper for ever; it ends with this."""
    command = [sys.executable, "-m", MODULE]
    while True:
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE)
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(Task(url, str(home.root), days)) + b"\n")
            code = await process.wait()
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await asyncio.shield(process.wait())
        log.warning("the keeper of the prediction log ended with %s; started again", code)
        await asyncio.sleep(AGAIN_SECONDS)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    compacts = sys.argv[1:] == [COMPACT]
    os.nice(0 if compacts else 10)  # which it has from the keeper
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    threading.Thread(target=_end_with_input, daemon=True).start()
    engine, home = db.attach(task.url), Home(Path(task.home))
    if compacts:
        return _compact(task, engine, home)
    segments.tidy(home.segments())
    predictions, compacting = PredictionLog(engine, home.segments()), Compacting(task, engine)
    while True:
        began, used = time.monotonic(), time.thread_time()
        try:
            count = predictions.take_some(ROWS)
        except Exception:  # whatever it is, predictions go on and the segments keep what was answered
            log.exception("predictions were not taken over into the log's table; tried again soon")
            count = 0
        compacting.look()
        taken, used = time.monotonic() - began, time.thread_time() - used
        time.sleep(taken * (REST if used > ALONE * taken else REST_OF_OTHERS) if count else IDLE_SECONDS)


class Compacting:
    """Starts a process that compacts when there is something to do, and never a second one beside it."""

    def __init__(self, task: Task, engine: Engine) -> None:
        self.task, self.engine = task, engine
        self.process: subprocess.Popen[bytes] | None = None
        self.next = 0.0

    def look(self) -> None:
        if time.monotonic() < self.next or (self.process is not None and self.process.poll() is None):
            return
        self.next = time.monotonic() + LOOK_SECONDS
        try:
            if compaction.is_due(self.engine, compaction.before(clock.now(), self.task.days)):
                self._start()
        except Exception:  # the database may be away for a moment, or memory short
            log.exception("the prediction log was not compacted; tried again soon")

    def _start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", MODULE, COMPACT], stdin=subprocess.PIPE)
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(self.task) + b"\n")
        self.process.stdin.flush()


def _compact(task: Task, engine: Engine, home: Home) -> None:
    until, folder = compaction.before(clock.now(), task.days), home.archived_predictions()
    try:
        count = compaction.compact(engine, folder, until)
    except CellworkError as error:
        log.warning("the prediction log was not compacted: %s; tried again soon", error)
    else:
        log.info("%d predictions from before %s are Parquet now", count, f"{until:%Y-%m-%d}")


def _end_with_input() -> None:
    while os.read(
        0, 1024
    ):  # not through `sys.stdin`, whose lock would be held when the compacting process ends by itself
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
