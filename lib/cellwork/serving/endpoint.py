"""A live endpoint: requests of one event-loop turn become one micro-batch; the log is written, then the answers go out.

Nothing waits for a batch to fill: what queued up while the predictor was busy is the next batch. Who answers is chosen when a
request comes (`choose`), and each choice has a line of its own, so that a slow canary delays nobody else. Shadows are asked after the
answer has gone out, a few turns at once; what comes while they are busy passes them by and is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from datetime import datetime

from cellwork import clock, ids
from cellwork.errors import BadInput, CellworkError, Conflict, NotFound, TooBusy, TooLarge
from cellwork.serving import ask, choose, inputs
from cellwork.serving import plan as plans
from cellwork.serving.ask import Scored
from cellwork.serving.breaker import Breaker
from cellwork.serving.choose import Routes, Served
from cellwork.serving.inline import Inline
from cellwork.serving.lane import Lane
from cellwork.serving.line import MOST_ROWS, Line, Pending
from cellwork.serving.log import PredictionLog
from cellwork.serving.plan import Lookup
from cellwork.serving.segments import Writer
from cellwork.serving.shape import MOST_TEXT
from cellwork.wire.endpoints import Answer, Explanation, Output, Prediction, Request, RouteKind, Row

DEADLINE_SECONDS = 2.0
QUEUE_ROWS = 50_000
"""Rows that may wait; more is answered with TooBusy."""
SHADOW_TURNS = 2
EXPLAINED_ROWS = 100
LEAST_DEADLINE_MS = 1


class Endpoint:
    """Answers requests by its `routes`; who changes those replaces the whole table at once."""

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
        """`broken` is told when a version is taken out: the endpoint's name, the version, and why."""
        self.name, self.log, self.lookup, self.writer, self.deadline = name, log, lookup, writer, deadline
        self.routes: Routes | None = None
        self.requests = self.errors = self.unshadowed = 0
        self._broken, self._breakers = broken, dict[str, Breaker]()
        self.latencies: deque[float] = deque(maxlen=1000)
        self.lane = Lane(self, segments, looks_up=getattr(lookup, "quick", False)) if segments else None
        """The quick lane; without segments there is none."""
        self._lines: dict[tuple[tuple[str, ...], float], Line] = {}
        self.waiting_rows = 0
        self._shadows: set[asyncio.Task[None]] = set()

    async def predict(self, request: Request, caller: str) -> Answer:
        """Return the answer to `request`; it is in the log by then.

        Raises
        ------
        BadInput
            An unknown feature or entity, a wrong type, no rows.
        NotFound
            It names a version that is not at hand, or nothing but an observation that no batch has scored.
        Refused, Conflict
            It names a shadow, or a number that versions of several models have here.
        Unavailable
            No version answered in time.
        TooBusy, TooLarge
            Over the limits of this module.
        """
        self.admit(request)
        if all(row.observation and not row.features and not row.entities for row in request.rows):
            return await self._precomputed(request)
        names = [self._id(request, row, number) for number, row in enumerate(request.rows)]
        choice = choose.choose(self.current(), request, names[0])
        plans.check(choice.chain[0].plan, request.rows, also=choice.routes.live.plan)
        if choice.routes.input is not None:
            request, choice = inputs.ruled(choice.routes.input, request, choice)
        _check_explainable(request, choice.chain[0])
        pending = Pending(request, caller, names, choice, asyncio.get_running_loop().create_future())
        self._line(pending).add(pending)
        self.waiting_rows += len(request.rows)
        self.requests += 1
        try:
            return await pending.future
        finally:
            self.waiting_rows -= len(request.rows)
            self.errors += pending.future.cancelled() or pending.future.exception() is not None
            self.latencies.append(time.perf_counter() - pending.began)

    async def _precomputed(self, request: Request) -> Answer:
        """Return what a batch has scored of observations that come with nothing but their ids; those are in the log already."""
        began, wanted = time.perf_counter(), [row.observation for row in request.rows]
        found = await asyncio.to_thread(self.log.scored, self.name, wanted)
        missing = [name for name in wanted if name not in found]
        if missing:
            way_out = "send its features or entities, or score a batch that holds it"
            raise NotFound("observation", missing[0], f"was scored by no batch at {self.name}", way_out)
        last = found[wanted[-1]]
        self.requests += 1
        seconds = time.perf_counter() - began
        self.latencies.append(seconds)
        return Answer(
            outputs=[_output(found[name], None, repeated=True) for name in wanted], model=last.version, revision=last.revision,
            route="precomputed", reason=f"scored by {last.batch_run} at {last.logged_at:%Y-%m-%d %H:%M:%S} UTC",
            latency_ms=round(seconds * 1e3, 3),
        )  # fmt: skip

    def admit(self, request: Request) -> None:
        """Raise what says that `request` can't be answered, whatever its values."""
        size, waiting = len(request.rows), self.waiting_rows
        if not size:
            raise BadInput("rows", "", "are none", "send at least one row")
        if size > MOST_ROWS:
            raise TooLarge("rows", size, f"are over the limit of {MOST_ROWS} a request", "send them in parts")
        if waiting + size > QUEUE_ROWS:
            raise TooBusy("endpoint", self.name, f"has {waiting} rows waiting", "ask again in a second")
        _check_texts(request)
        _check_times(request)
        if request.deadline_ms is not None and request.deadline_ms < LEAST_DEADLINE_MS:
            raise BadInput("deadline_ms", request.deadline_ms, "leaves no time", "send at least 1, or leave it out")

    def _line(self, pending: Pending) -> Line:
        """Return the line of those who wait for the same versions with the same deadline; empty ones are forgotten."""
        asked = pending.request.deadline_ms
        seconds = self.deadline if asked is None else min(self.deadline, asked / 1000)
        key = tuple(served.deployment for served in pending.choice.chain), seconds
        if key not in self._lines:
            self._lines = {k: line for k, line in self._lines.items() if not line.idle}
            self._lines[key] = Line(self.name, seconds, self._turn)
        return self._lines[key]

    def current(self) -> Routes:
        if self.routes is None:
            way_out = f"deploy one: cellwork endpoint deploy {self.name} VERSION"
            raise NotFound("endpoint", self.name, "has no version", way_out)
        return self.routes

    def breaker(self, served: Served) -> Breaker:
        """Return the breaker of a deployment; those of deployments that are not at hand any more are forgotten."""
        if served.deployment not in self._breakers:
            there = {each.deployment for each in self.routes.served} if self.routes else set()
            self._breakers = {name: each for name, each in self._breakers.items() if name in there}
            self._breakers[served.deployment] = Breaker(lambda reason: self._broken(self.name, served, reason))
        return self._breakers[served.deployment]

    def _id(self, request: Request, row: Row, number: int) -> str:
        if row.key:
            return ids.of_key("pred", self.name, "row", row.key)
        return ids.of_key("pred", self.name, "request", request.id, str(number)) if request.id else ids.new("pred")

    async def _turn(self, taken: list[Pending], seconds: float) -> None:
        now = clock.now()
        await self._find_repeated(taken)
        scored = await self._score([pending for pending in taken if pending.fresh()], now, seconds)
        await self._write(scored, now)
        for pending, result in scored:
            await _explain(pending, result)
        for pending in taken:
            _refuse_erased(pending)
            if not pending.future.done():
                pending.future.set_result(_answer(pending))
        self._shadow([pending for pending, _ in scored], now)

    async def _find_repeated(self, taken: list[Pending]) -> None:
        keyed = [name for pending in taken if pending.keyed for name in pending.ids]
        found = await asyncio.to_thread(self.log.find, self.name, keyed) if keyed else {}
        for pending in taken:
            pending.repeated = {name: found[name] for name in pending.ids if name in found}
            pending.logged = dict(pending.repeated)

    async def _score(self, asked: list[Pending], now: datetime, seconds: float) -> list[tuple[Pending, Scored]]:
        """Return those that got scores; the others have failed and know it."""
        if not asked:
            return []
        waited = time.perf_counter() - min(pending.began for pending in asked)
        rows = [[row for _, row in pending.fresh()] for pending in asked]
        results = await ask.score(
            asked[0].choice.chain, rows, self.lookup, now, seconds=seconds - waited, fallback=self.deadline, breaker=self.breaker,
        )  # fmt: skip
        for pending, result in zip(asked, results, strict=True):
            if not isinstance(result, Scored):
                pending.fail(result)
        return [(pending, result) for pending, result in zip(asked, results, strict=True) if isinstance(result, Scored)]

    async def _write(self, scored: list[tuple[Pending, Scored]], now: datetime) -> None:
        """Log what was scored. What another request of the same key logged first is what counts."""
        entries: list[Prediction] = []
        for pending, result in scored:
            mine = self._predictions(pending, result, now)
            pending.logged.update((entry.id, entry) for entry in mine)
            entries += mine
        if not entries:
            return
        keyed = [name for pending, _ in scored if pending.keyed for name in pending.ids]
        held = await asyncio.get_running_loop().run_in_executor(self.writer, self.log.write, entries, keyed)
        for pending, _ in scored:
            pending.logged.update((name, held[name]) for name in pending.ids if name in held)

    def _predictions(self, pending: Pending, result: Scored, now: datetime) -> list[Prediction]:
        choice = pending.choice
        fallen = bool(result.reason)
        route: RouteKind = "fallback" if fallen else choice.route
        return [
            self._prediction(
                pending, result, k, now, name=name, route=route, reason=result.reason or choice.reason,
                tried=choice.chain[0].deployment if fallen else "",
            )
            for k, (name, _) in enumerate(pending.fresh())
        ]  # fmt: skip

    def _prediction(
        self, pending: Pending, result: Scored, k: int, now: datetime, *, name: str, route: RouteKind, reason: str, tried: str = "",
    ) -> Prediction:  # fmt: skip
        served, filled, request, row = result.served, result.rows[k], pending.request, pending.fresh()[k][1]
        return Prediction(
            id=name, seq=0, at=row.at or now, logged_at=now, endpoint=self.name, revision=pending.choice.routes.revision,
            version=served.ref, deployment=served.deployment, route=route, reason=reason,
            entities=row.entities, features=dict(zip(served.plan.names, filled.values, strict=True)), feature_events=filled.events,
            feature_batches=filled.batches, defaults=filled.defaults, score=result.scores[k],
            latency_us=round((time.perf_counter() - pending.began) * 1e6), caller=pending.caller, observation=row.observation,
            batch_run=request.batch_run, request_id=request.id, unit=request.unit, tried=tried,
        )  # fmt: skip

    def _shadow(self, answered: Sequence[Pending], now: datetime) -> None:
        """Let the shadows of the route table score what was answered; who asked has gone on."""
        shadows = self.routes.shadows if self.routes and answered else ()
        for served in shadows:
            if len(self._shadows) >= SHADOW_TURNS * len(shadows):
                self.unshadowed += len(answered)
                continue
            task = asyncio.create_task(self._follow(served, list(answered), now))
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)

    async def _follow(self, served: Served, answered: list[Pending], now: datetime) -> None:
        rows = [[row for _, row in pending.fresh()] for pending in answered]
        try:
            results = await ask.by(served, rows, self.lookup, now, self.deadline)
        except CellworkError:  # the store was away; who asked has been answered
            results = []
        self.unshadowed += len(answered) - sum(isinstance(result, Scored) for result in results)
        entries = [
            self._prediction(
                pending, result, k, now, route="shadow", reason=f"beside {name}",
                name=ids.of_key("pred", self.name, "shadow", served.deployment, name),
            )
            for pending, result in zip(answered, results, strict=False)
            if isinstance(result, Scored)
            for k, (name, _) in enumerate(pending.fresh())
        ]  # fmt: skip
        if entries:
            await asyncio.get_running_loop().run_in_executor(self.writer, self.log.write, entries)


def _check_texts(request: Request) -> None:
    """Raise BadInput for a text that the log could not keep."""
    texts = [("id", request.id), ("unit", request.unit), ("batch_run", request.batch_run)]
    texts += [(f"observation of row {k}", row.observation) for k, row in enumerate(request.rows) if row.observation]
    for name, text in texts:
        if len(text) > MOST_TEXT:
            raise BadInput(name, f"{text[:40]}…", f"has {len(text)} characters", f"send at most {MOST_TEXT}")
        if "\0" in text:
            raise BadInput(name, repr(text), "holds a NUL", "send it without")


def _check_times(request: Request) -> None:
    """Raise BadInput for a time without a zone, or one that who reads the log could not say."""
    for row in request.rows:
        for at in (row.at, *row.feature_events.values()):
            if at is not None:
                clock.kept(at)


def _refuse_erased(pending: Pending) -> None:
    """Fail a repeat of what an erasure has emptied: its answer is gone, and another one under its key would bring it back."""
    gone = next((name for name in pending.ids if (held := pending.logged.get(name)) and held.erased), None)
    if gone:
        verdict = f"was answered before and erased since ({pending.logged[gone].erased})"
        pending.fail(Conflict("prediction", gone, verdict, "ask under another key; rows of an erased subject of a dataset: build it anew"))  # fmt: skip


def _check_explainable(request: Request, served: Served) -> None:
    if not request.explain:
        return
    if not isinstance(served.predictor, Inline):
        why = f"is computed by {served.predictor.how or 'a child process'}"
        raise BadInput(
            "explain", f"version {served.ref.version}", why, "only compiled versions are explained; ask without"
        )
    if len(request.rows) > EXPLAINED_ROWS:
        raise TooLarge("rows", len(request.rows), f"are more than {EXPLAINED_ROWS} to explain", "send them in parts")


async def _explain(pending: Pending, result: Scored) -> None:
    """Add what made the scores, if it was asked for; one that a child process gave in the place of another has none."""
    predictor = result.served.predictor
    if not pending.request.explain or not isinstance(predictor, Inline) or pending.future.done():
        return None
    try:
        said = await predictor.explain([row.values for row in result.rows])
    except BadInput as error:
        return pending.fail(error)
    pending.explained = dict(zip((name for name, _ in pending.fresh()), said, strict=True))
    return None


def _answer(pending: Pending) -> Answer:
    last = pending.logged[pending.ids[-1]]
    return Answer(
        outputs=[
            _output(pending.logged[name], pending.explained.get(name), repeated=name in pending.repeated) for name in pending.ids
        ],
        model=last.version, revision=last.revision, route=last.route, reason=last.reason,
        latency_ms=round((time.perf_counter() - pending.began) * 1e3, 3),
    )  # fmt: skip


def _output(logged: Prediction, explanation: Explanation | None, *, repeated: bool) -> Output:
    ages = [(logged.at - event).total_seconds() for event in logged.feature_events.values() if event is not None]
    age = max(ages) if ages else None
    assert logged.score is not None
    return Output(
        id=logged.id,
        score=logged.score,
        defaults=logged.defaults,
        feature_age_s=age,
        repeated=repeated,
        explanation=explanation,
    )
