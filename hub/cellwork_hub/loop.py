"""A thread that does a service's background work step by step, and outlives whatever a step meets."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("cellwork.loop")
AFTER_ERROR_SECONDS = 10.0


class Loop:
    """Calls `step` at once again while it returns True, after `idle` seconds otherwise, and later after an error.

    `start` and `stop` may be called twice; `stop` returns when the step in hand is done.
    """

    def __init__(
        self, name: str, step: Callable[[], bool], *, idle: float, after_error: float = AFTER_ERROR_SECONDS
    ) -> None:
        self.name, self.step, self.idle, self.after_error = name, step, idle, after_error
        self.stopping = threading.Event()
        """Set by `stop`; a long step may look at it."""
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            self.stopping.clear()
            self.prepare()
            self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
            self._thread.start()

    def stop(self, timeout: float = 30.0) -> None:
        if self._thread is not None:
            self.stopping.set()
            self._thread.join(timeout)
            self._thread = None

    def prepare(self) -> None:
        """Done by `start` before the thread begins; its errors are the caller's."""

    def warm(self) -> None:
        """Done once in the thread before the first step."""

    def _work(self) -> None:
        try:
            self.warm()
        except Exception:  # what it would have spared the steps, they can do without
            log.exception("%s could not be warmed", self.name)
        while not self.stopping.is_set():
            wait = self.idle
            try:
                if self.step():
                    continue
            except Exception:  # the thread must outlive whatever a step meets; what is still due is tried again
                log.exception("%s could not go on", self.name)
                wait = max(self.idle, self.after_error)
            self.stopping.wait(wait)
