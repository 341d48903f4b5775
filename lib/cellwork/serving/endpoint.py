"""A live endpoint: requests of one event-loop turn become one micro-batch; the log is written, then the answers go out.

Nothing waits for a batch to fill: what queued up while the predictor was busy is the next batch.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime

from cellwork import clock, ids
from cellwork.errors import BadInput, NotFound, TooBusy, TooLarge, Unavailable
from cellwork.serving import choose
from cellwork.serving import plan as plans
from cellwork.serving.breaker import Breaker
from cellwork.serving.choose import Routes, Scored, Served
from cellwork.serving.lane import Lane
from cellwork.serving.log import PredictionLog
from cellwork.serving.plan import Lookup
from cellwork.serving.segments import Writer
from cellwork.wire.endpoints import Answer, Output, Prediction, Request, Row

DEADLINE_SECONDS = 2.0
MOST_ROWS = 10_000
"""Rows of one request, and of one micro-batch."""
QUEUE_ROWS = 50_000
"""Rows that may wait; more is answered with TooBusy."""
TURNS = 2
"""Micro-batches under way at once: while one computes, the other reads or writes."""


@dataclass
class Pending:
    """A request on its way."""

    request: Request
    caller: str
    ids: list[str]
    future: asyncio.Future[Answer]
    began: float = field(default_factory=time.perf_counter)
    repeated: dict[str, Prediction] = field(default_factory=dict)
    """What the log held of it before."""
    logged: dict[str, Prediction] = field(default_factory=dict)

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


class Endpoint:
    """Answers requests by its `routes`; who changes those replaces the whole tuple at once."""

    def __init__(
        self,
        name: str,
        log: PredictionLog,
        lookup: Lookup,
        writer: Executor,
        *,
        deadline: float = DEADLINE_SECONDS,
        segments: Writer | None = None,
        broken: Callable[[str, Served, str], None] = lambda endpoint, served, reason: None,
    ) -> None:
        """`broken` is told when a live version is taken out: the endpoint's name, the version, and why."""
        self.name, self.log, self.lookup, self.writer, self.deadline = name, log, lookup, writer, deadline
        self.routes: Routes | None = None
        self.requests = self.errors = 0
        self._broken, self._breakers = broken, dict[str, Breaker]()
        self.latencies: deque[float] = deque(maxlen=1000)
        self.lane = Lane(self, segments, looks_up=getattr(lookup, "quick", False)) if segments else None
        """The quick lane; without segments there is none."""
        self._queue: deque[Pending] = deque()
        self._waiting_rows = 0
        self._turns: set[asyncio.Task[None]] = set()

    async def predict(self, request: Request, caller: str) -> Answer:
        """Return the answer to `request`; it is in the log by then.

        Raises
        ------
        BadInput
            An unknown feature or entity, a wrong type, no rows.
        Unavailable
            No version answered in time.
        TooBusy, TooLarge
            Over the limits of this module.
        """
        self._admit(request)
        names = [self._id(request, row, number) for number, row in enumerate(request.rows)]
        pending = Pending(request, caller, names, asyncio.get_running_loop().create_future())
        self._queue.append(pending)
        self._waiting_rows += len(request.rows)
        asyncio.get_running_loop().call_soon(self._take_turn)
        self.requests += 1
        try:
            return await pending.future
        finally:
            self.errors += pending.future.cancelled() or pending.future.exception() is not None
            self.latencies.append(time.perf_counter() - pending.began)

    def _admit(self, request: Request) -> None:
        size, waiting = len(request.rows), self._waiting_rows
        if not size:
            raise BadInput("rows", "", "are none", "send at least one row")
        if size > MOST_ROWS:
            raise TooLarge("rows", size, f"are over the limit of {MOST_ROWS} a request", "send them in parts")
        if waiting + size > QUEUE_ROWS:
            raise TooBusy("endpoint", self.name, f"has {waiting} rows waiting", "ask again in a second")
        plans.check(self.current().live.plan, request.rows)

    def current(self) -> Routes:
        if self.routes is None:
            way_out = f"deploy one: cellwork endpoint deploy {self.name} VERSION"
            raise NotFound("endpoint", self.name, "has no version", way_out)
        return self.routes

    def breaker(self, live: Served) -> Breaker:
        """Return the breaker of the live deployment; those of earlier ones are forgotten."""
        if live.deployment not in self._breakers:
            self._breakers = {live.deployment: Breaker(lambda reason: self._broken(self.name, live, reason))}
        return self._breakers[live.deployment]

    def _id(self, request: Request, row: Row, number: int) -> str:
        if row.key:
            return ids.of_key("pred", self.name, "row", row.key)
        return ids.of_key("pred", self.name, "request", request.id, str(number)) if request.id else ids.new("pred")

    def _take_turn(self) -> None:
        if not self._queue or len(self._turns) >= TURNS:
            return
        taken, rows = [self._queue.popleft()], 0
        rows += len(taken[0].request.rows)
        while self._queue and rows + len(self._queue[0].request.rows) <= MOST_ROWS:
            taken.append(self._queue.popleft())
            rows += len(taken[-1].request.rows)
        self._waiting_rows -= rows
        turn = asyncio.create_task(self._turn(taken))
        self._turns.add(turn)
        turn.add_done_callback(lambda done: self._end_turn(done, taken))

    def _end_turn(self, turn: asyncio.Task[None], taken: list[Pending]) -> None:
        """Whatever ended the turn reaches everyone who still waits for it."""
        self._turns.discard(turn)
        error = None if turn.cancelled() else turn.exception()
        for pending in taken:
            pending.fail(error or Unavailable("endpoint", self.name, "is stopping", "ask again in some seconds"))
        self._take_turn()

    async def _turn(self, taken: list[Pending]) -> None:
        routes, now = self.current(), clock.now()
        await self._find_repeated(taken)
        asked = [pending for pending in taken if pending.fresh()]
        scored = await self._score(routes, asked, now)
        await self._write(routes, scored, now)
        for pending in taken:
            if not pending.future.done():
                pending.future.set_result(_answer(pending))

    async def _find_repeated(self, taken: list[Pending]) -> None:
        keyed = [name for pending in taken if pending.keyed for name in pending.ids]
        found = await asyncio.to_thread(self.log.find, self.name, keyed) if keyed else {}
        for pending in taken:
            pending.repeated = {name: found[name] for name in pending.ids if name in found}
            pending.logged = dict(pending.repeated)

    async def _score(self, routes: Routes, asked: list[Pending], now: datetime) -> list[tuple[Pending, Scored]]:
        """Return those that got scores; the others have failed and know it."""
        if not asked:
            return []
        waited = time.perf_counter() - min(pending.began for pending in asked)
        rows = [[row for _, row in pending.fresh()] for pending in asked]
        results = await choose.score(
            routes, rows, self.lookup, now, seconds=self.deadline - waited, fallback=self.deadline,
            breaker=self.breaker(routes.live),
        )  # fmt: skip
        for pending, result in zip(asked, results, strict=True):
            if not isinstance(result, Scored):
                pending.fail(result)
        return [(pending, result) for pending, result in zip(asked, results, strict=True) if isinstance(result, Scored)]

    async def _write(self, routes: Routes, scored: list[tuple[Pending, Scored]], now: datetime) -> None:
        """Log what was scored. What another request of the same key logged first is what counts."""
        entries: list[Prediction] = []
        for pending, result in scored:
            mine = [
                self._prediction(routes, pending, result, k, name, row, now)
                for k, (name, row) in enumerate(pending.fresh())
            ]
            pending.logged.update((entry.id, entry) for entry in mine)
            entries += mine
        if not entries:
            return
        keyed = [name for pending, _ in scored if pending.keyed for name in pending.ids]
        held = await asyncio.get_running_loop().run_in_executor(self.writer, self.log.write, entries, keyed)
        for pending, _ in scored:
            pending.logged.update((name, held[name]) for name in pending.ids if name in held)

    def _prediction(
        self, routes: Routes, pending: Pending, result: Scored, k: int, name: str, row: Row, now: datetime
    ) -> Prediction:
        served, filled = result.served, result.rows[k]
        columns = [column.name for column in served.plan.columns]
        return Prediction(
            id=name, seq=0, at=row.at or now, logged_at=now, endpoint=self.name, revision=routes.revision,
            version=served.ref, deployment=served.deployment, route=result.route, reason=result.reason,
            entities=row.entities, features=dict(zip(columns, filled.values, strict=True)), feature_events=filled.events,
            feature_batches=filled.batches, defaults=filled.defaults, score=result.scores[k],
            latency_us=round((time.perf_counter() - pending.began) * 1e6), caller=pending.caller,
            observation=row.observation, batch_run=pending.request.batch_run, request_id=pending.request.id,
        )  # fmt: skip


def _answer(pending: Pending) -> Answer:
    last = pending.logged[pending.ids[-1]]
    return Answer(
        outputs=[_output(pending.logged[name], repeated=name in pending.repeated) for name in pending.ids],
        model=last.version, revision=last.revision, route=last.route, reason=last.reason,
        latency_ms=round((time.perf_counter() - pending.began) * 1e3, 3),
    )  # fmt: skip


def _output(logged: Prediction, *, repeated: bool) -> Output:
    ages = [(logged.at - event).total_seconds() for event in logged.feature_events.values() if event is not None]
    age = max(ages) if ages else None
    return Output(id=logged.id, score=logged.score, defaults=logged.defaults, feature_age_s=age, repeated=repeated)
