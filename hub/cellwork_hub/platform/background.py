"""Work that somebody waits for: asked for, done in the background, told about while it goes on, cancelled.

A task belongs to who asked for it; of other people's nobody learns. It lives in memory and is forgotten an hour after it was asked
for, or when the service ends; what it is to leave behind it writes itself, as its last deed. States: running -> done |
failed | cancelled, each final but that a cancel of what is done forgets its result. A cancel takes effect at the next step, before
anything is written. Of one line one task runs at a time, the others wait in the order they came.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cellwork import errors
from cellwork.errors import NotFound, TooBusy
from cellwork.features.history import Progress
from cellwork.wire.datasets import BuildStatus
from cellwork.wire.features import HistoryStatus
from cellwork_hub.route import Call

log = logging.getLogger("cellwork.background")
KEPT_SECONDS = 3600
MOST = 20
"""Tasks of a line that run, wait, or hold a result nobody has let go."""
Tell = Callable[[Progress], None]
Status = TypeVar("Status", HistoryStatus, BuildStatus)


class Cancelled(Exception):
    """Raised in the step after a cancel."""


@dataclass
class Task(Generic[Status]):
    owner: str
    status: Status
    make: Callable[[Tell], bytes] | None
    """Does the work, calls what it gets before each step, puts what it found into `status`; returns a result to be fetched."""
    asked: float = field(default_factory=time.monotonic)
    cancelled: threading.Event = field(default_factory=threading.Event)
    result: bytes = b""


class Line(Generic[Status]):
    """Tasks of one kind.

    Parameters
    ----------
    kind : what people call one of them.
    """

    def __init__(self, kind: str) -> None:
        self.kind, self._lock = kind, threading.Lock()
        self._tasks: dict[str, Task[Status]] = {}
        self._worker = ThreadPoolExecutor(1, f"background-{kind}")

    def add(self, task: Task[Status]) -> None:
        """Queue `task`. Raises TooBusy while too many are kept."""
        with self._lock:
            for key in [key for key, old in self._tasks.items() if time.monotonic() - old.asked > KEPT_SECONDS]:
                del self._tasks[key]
            if sum(1 for each in self._tasks.values() if each.status.state == "running" or each.result) >= MOST:
                raise TooBusy(f"{self.kind}s", MOST, "are kept already", "wait, or cancel one")
            self._tasks[task.status.id] = task
        self._worker.submit(self._do, task)

    def get(self, call: Call, id: str) -> Task[Status]:
        """Return the caller's task of that id."""
        with self._lock:
            task = self._tasks.get(id)
        if task is None or task.owner != call.principal.name:
            raise NotFound(self.kind, id, "is not there (any more)", "ask for it again")
        return task

    def cancel(self, call: Call, id: str) -> Status:
        """Stop a task at its next step and forget its result; twice is fine."""
        task = self.get(call, id)
        task.cancelled.set()
        task.result = b""
        return task.status

    def _do(self, task: Task[Status]) -> None:
        started, status, make = time.monotonic(), task.status, task.make

        def tell(step: Progress) -> None:
            if task.cancelled.is_set():
                raise Cancelled
            status.done, status.steps, status.view = step.done, step.steps, step.view

        assert make is not None
        try:
            tell(Progress(0, status.steps, ""))
            task.result = make(tell)
            status.seconds = time.monotonic() - started
            status.state = "done"
        except Cancelled:
            status.state = "cancelled"
        except errors.CellworkError as error:
            status.error, status.state = str(error), "failed"
        except (
            Exception
        ) as error:  # the thread must go on to the next task; what it was stands in the log and the status
            log.exception("%s %s failed", self.kind, status.id)
            status.error, status.state = f"{type(error).__name__}: {error}", "failed"
        task.make = None
