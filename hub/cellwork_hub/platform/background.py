"""Work that somebody waits for: asked for, done in the background, told about while it goes on, cancelled.

A task belongs to who asked for it; of other people's nobody learns. It lives in memory and is forgotten an hour after it was asked
for, or when the service ends; what it is to leave behind it writes itself, as its last deed. States: running -> done |
failed | cancelled, each final but that a cancel of what is done forgets its result. A cancel takes effect at the next step, before
anything is written. Of one line one task runs at a time, the others wait in the order they came. An owner's share is bounded, so that
nobody keeps others out: of who asks for more the oldest result goes, and where results take too much memory, the oldest one of who
holds most.
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
MOST = 5
"""Tasks of one owner in a line that run, wait, or hold a result nobody has let go."""
MOST_BYTES = 2**31
"""Of all results of a line but the newest."""
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
        """Queue `task`; its owner's oldest result makes room. Raises TooBusy while all of the owner's still run or wait."""
        with self._lock:
            for key in [key for key, old in self._tasks.items() if time.monotonic() - old.asked > KEPT_SECONDS]:
                del self._tasks[key]
            own = [each for each in self._tasks.values() if each.owner == task.owner]
            done = [each for each in own if each.result]
            kept = len(done) + sum(1 for each in own if not each.result and each.status.state == "running")
            if kept >= MOST and not done:
                raise TooBusy(f"{self.kind}s", MOST, "of yours run or wait already", "wait, or cancel one")
            if kept >= MOST:
                self._tasks.pop(done[0].status.id)
            self._tasks[task.status.id] = task
        self._worker.submit(self._do, task)

    def _keep(self, task: Task[Status], result: bytes) -> None:
        """Keep the result of `task`, and while all are too much let the oldest of who holds most go, but not this one."""
        with self._lock:
            if result and task.cancelled.is_set():
                raise Cancelled
            task.result = result
            held: dict[str, list[Task[Status]]] = {}
            for each in self._tasks.values():
                if each.result:
                    held.setdefault(each.owner, []).append(each)
            sizes = {owner: sum(len(each.result) for each in own) for owner, own in held.items()}
            while sum(sizes.values()) > MOST_BYTES:
                owner = max(sizes, key=sizes.__getitem__)
                if held[owner][0] is task:
                    return
                gone = self._tasks.pop(held[owner].pop(0).status.id)
                sizes[owner] -= len(gone.result)

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
        with self._lock:
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
            self._keep(task, make(tell))
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
