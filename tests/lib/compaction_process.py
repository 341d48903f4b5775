"""Compacts a prediction log as a process that kills itself: ``python compaction_process.py FOLDER UNTIL STEP``.

A step is a statement or commit of the database, or a file opened, renamed or removed; with STEP 0 it lives and prints how many there were.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import prediction_log
import pyarrow.parquet  # noqa: F401, its own files are no steps
from sqlalchemy import event

from cellwork.serving import compaction

FILES = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.chmod"})


def main(folder: Path, until: datetime, last: int) -> None:
    log = prediction_log.opened(folder)
    assert log.archive is not None
    days, count = log.archive.folder, itertools.count(1)
    steps = [0]

    def step(*_: Any) -> None:
        steps.append(next(count))
        if steps[-1] == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(name: str, words: tuple[Any, ...]) -> None:
        if name in FILES and str(words[0]).startswith(str(days)):
            step()

    event.listen(log.engine, "before_cursor_execute", step)
    event.listen(log.engine, "commit", step)
    sys.addaudithook(audit)
    compaction.GROUP_ROWS, compaction.DELETED_ROWS = prediction_log.GROUP_ROWS, prediction_log.DELETED_ROWS
    compaction.compact(log.engine, days, until, most=prediction_log.MOST_ROWS)
    print(steps[-1])


if __name__ == "__main__":
    main(Path(sys.argv[1]), datetime.fromisoformat(sys.argv[2]), int(sys.argv[3]))
