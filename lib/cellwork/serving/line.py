"""Requests that wait for the same versions with the same deadline: each turn takes what is there, and a slow line holds up no other.

add -> queue -> a turn of the loop takes all of it (at most MOST_ROWS) -> `work` -> every one of them has its answer or its error
                at most TURNS are under way at once: while one computes, the other reads or writes
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from cellwork.errors import Unavailable
from cellwork.serving.choose import Choice
from cellwork.wire.endpoints import Answer, Explanation, Prediction, Request, Row

MOST_ROWS = 10_000
"""Rows of one request, and of one micro-batch."""
TURNS = 2


@dataclass
class Pending:
    """A request on its way."""

    request: Request
    caller: str
    ids: list[str]
    choice: Choice
    future: asyncio.Future[Answer]
    began: float = field(default_factory=time.perf_counter)
    repeated: dict[str, Prediction] = field(default_factory=dict)
    """What the log held of it before."""
    logged: dict[str, Prediction] = field(default_factory=dict)
    explained: dict[str, Explanation] = field(default_factory=dict)

    @property
    def keyed(self) -> bool:
        return bool(self.request.id) or any(row.key for row in self.request.rows)

    def fresh(self) -> list[tuple[str, Row]]:
        """Return id and row of what was not in the log before."""
        pairs = zip(self.ids, self.request.rows, strict=True)
        return [(name, row) for name, row in pairs if name not in self.repeated]

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Line:
    def __init__(
        self, name: str, seconds: float, work: Callable[[list[Pending], float], Coroutine[Any, Any, None]]
    ) -> None:
        """`work` is given what one turn takes, and the deadline in seconds; `name` stands in errors."""
        self.name, self.seconds, self.work = name, seconds, work
        self._queue: deque[Pending] = deque()
        self._turns: set[asyncio.Task[None]] = set()

    @property
    def idle(self) -> bool:
        return not self._queue and not self._turns

    def add(self, pending: Pending) -> None:
        self._queue.append(pending)
        asyncio.get_running_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        if not self._queue or len(self._turns) >= TURNS:
            return
        taken = [self._queue.popleft()]
        rows = len(taken[0].request.rows)
        while self._queue and rows + len(self._queue[0].request.rows) <= MOST_ROWS:
            taken.append(self._queue.popleft())
            rows += len(taken[-1].request.rows)
        turn = asyncio.create_task(self._work(taken))
        self._turns.add(turn)
        turn.add_done_callback(lambda done: self._end_turn(done, taken))

    async def _work(self, taken: list[Pending]) -> None:
        """Work on all at once; a fault that one of them may have brought along is given to that one alone."""
        try:
            return await self.work(taken, self.seconds)
        except Unavailable:  # whoever asks
            raise
        except Exception:
            if len(taken) == 1:
                raise
        for pending in taken:
            if not pending.future.done():
                try:
                    await self.work([pending], self.seconds)
                except Exception as error:
                    pending.fail(error)
        return None

    def _end_turn(self, turn: asyncio.Task[None], taken: list[Pending]) -> None:
        """Whatever ended the turn reaches everyone who still waits for it."""
        self._turns.discard(turn)
        error = None if turn.cancelled() else turn.exception()
        for pending in taken:
            pending.fail(error or Unavailable("endpoint", self.name, "is stopping", "ask again in some seconds"))
        self._take_turn()
