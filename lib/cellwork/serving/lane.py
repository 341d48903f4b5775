"""The quick lane of an endpoint: usual requests to a compiled live version, all that one turn of the event loop brought together.

    offered -> (decoded, checked) -> queue -> one turn: looked up, scored, logged -> answered
            -> False: the general way                    -> None: the general way

A canary that is compiled and takes the same columns answers here too, chosen as `choose` says, and compiled shadows score when the answers
are out. It never refuses and never falls back: whatever is unusual (a wrong value, an id, a score that is not finite, a version that is
not compiled or is taken out) is handed back, and `endpoint.Endpoint` gives the answer. Only a log that can't be written
fails here, for then nothing may be answered. Nothing waits: a turn takes what is there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from msgspec import UNSET
from msgspec.structs import replace

from cellwork import ids
from cellwork.errors import BadInput, CellworkError, Unavailable
from cellwork.ids import Sequence
from cellwork.serving import choose, inputs, replies
from cellwork.serving.choose import Routes, Served
from cellwork.serving.inline import MOST_ROWS, Inline
from cellwork.serving.plan import Lookup, Plan, Usable, usable
from cellwork.serving.segments import LookedUp, Turn, Writer
from cellwork.serving.shape import Door, Rows, Shape
from cellwork.wire.endpoints import RouteKind

log = logging.getLogger("cellwork.serving")

if TYPE_CHECKING:
    from cellwork.models.compiled import Machine
    from cellwork.serving.endpoint import Endpoint

MOST_BYTES = 1 << 20
"""A longer body goes the general way."""
MOST_TAILS = 256
Reply = tuple[bytes, str]
"""The answer's body, and the id of its first prediction without its kind."""
Answer = Callable[[Reply | CellworkError | None], None]
"""Told the end of a request, once, from the event loop; None: the general way."""


class Asked(msgspec.Struct):
    rows: Rows
    door: Door
    caller: str
    began: float
    answer: Answer
    served: Served
    route: RouteKind = "live"
    reason: str = ""
    ids: list[str] = []
    """Drawn when it came, where its first one draws its lot."""


class Lane:
    def __init__(self, endpoint: Endpoint, writer: Writer, *, looks_up: bool) -> None:
        self.endpoint, self.writer, self.looks_up = endpoint, writer, looks_up
        self._routes: Routes | None = None
        self._shape: Shape | None = None
        self._queue: list[Asked] = []
        self._ids = Sequence()
        self._tails: dict[tuple[str, str], dict[Door, bytes]] = {}
        """By deployment and reason."""

    async def ask(self, door: Door, body: bytes, caller: str) -> Reply | None:
        """Return the answer, or None if the request must go the general way; raises what the lane says instead of an answer."""
        future: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()

        def answer(reply: Reply | CellworkError | None) -> None:
            if future.done():  # its caller has gone
                return
            if isinstance(reply, CellworkError):
                future.set_exception(reply)
            else:
                future.set_result(reply)

        return await future if self.offer(door, body, caller, answer) else None

    def offer(self, door: Door, body: bytes, caller: str, answer: Answer) -> bool:
        """Take a request whose end `answer` will be told, or return False if it must go the general way."""
        if self.endpoint.routes is not self._routes:
            self._look()
        routes = self._routes
        if self._shape is None or routes is None or len(body) > MOST_BYTES:
            return False
        rows = self._shape.rows(door, body)
        if rows is None or not 0 < len(rows.values) <= MOST_ROWS or (rows.entities and not self.looks_up):
            return False
        if routes.input is not None and not inputs.is_usual(routes.input, self._shape.names, rows.values):
            return False
        asked = Asked(rows, door, caller, time.perf_counter(), answer, routes.live)
        if routes.canaries and not self._choose(asked, routes):
            return False
        if not self._queue:
            asyncio.get_running_loop().call_soon(self._turn)
        self._queue.append(asked)
        return True

    def _choose(self, asked: Asked, routes: Routes) -> bool:
        """Say by whom the request is answered, as `choose.choose` would; whether that one answers here."""
        asked.ids = self._new_ids(len(asked.rows.values))
        rows, names = asked.rows, self._shape.names if self._shape else []
        entities = rows.entities[0] if rows.entities else {}
        unit = rows.unit or choose.unit_of(entities) or asked.ids[0]
        values = {name: value for name, value in zip(names, rows.values[0], strict=True) if value is not UNSET}
        place = choose.position(routes.endpoint, routes.salt, unit)
        found = choose.arm([beside.arm for beside in routes.canaries], unit, {**values, **entities}, place)
        if found is not None:
            asked.served, asked.route, asked.reason = routes.canaries[found[0]].served, "canary", found[1]
        return _is_quick(asked.served, routes.live.plan)

    def _new_ids(self, count: int) -> list[str]:
        return [f"pred_{body}" for body in self._ids.bodies(count)]

    def _look(self) -> None:
        """Take over new routes. What waits for the old ones goes the general way."""
        queue, self._queue = self._queue, []
        self._tell(queue, None)
        self._routes = routes = self.endpoint.routes
        self._shape, self._tails = None, {}
        if routes is not None and all(_is_quick(each, routes.live.plan) for each in (routes.live, *routes.shadows)):
            self._shape = Shape(routes.live.plan)

    def _turn(self) -> None:
        queue, routes = self._taken(), self._routes
        if not queue or routes is None or self.endpoint.routes is not routes:
            return self._tell(queue, None)
        if not routes.canaries:
            return self._answer(routes, queue)
        groups: dict[tuple[str, str], list[Asked]] = {}
        for asked in queue:
            groups.setdefault((asked.served.deployment, asked.reason), []).append(asked)
        for group in groups.values():
            self._answer(routes, group)
        return None

    def _answer(self, routes: Routes, queue: list[Asked]) -> None:
        """Answer requests of one version; each gets an answer, an error, or goes the general way."""
        try:
            turn = self._scored(routes, queue)
            if turn is None:
                return self._tell(queue, None)
            self.writer.append(turn)
        except CellworkError as error:
            return self._tell(queue, error)
        except Exception:  # a fault of the lane must not leave its callers waiting: the general way answers them
            log.exception("the quick lane of %s failed", self.endpoint.name)
            return self._tell(queue, None)
        self._reply(queue, turn)
        for shadow in routes.shadows:
            asyncio.get_running_loop().call_soon(self._shadow, shadow, turn)
        return None

    def _taken(self) -> list[Asked]:
        """Return what one turn takes, and see to the rest."""
        rows = 0
        for count, asked in enumerate(self._queue):
            rows += len(asked.rows.values)
            if rows > MOST_ROWS:
                queue, self._queue = self._queue[:count], self._queue[count:]
                asyncio.get_running_loop().call_soon(self._turn)
                return queue
        queue, self._queue = self._queue, []
        return queue

    def _tell(self, queue: list[Asked], end: CellworkError | None) -> None:
        for asked in queue:
            self._say(asked, end)

    def _say(self, asked: Asked, end: Reply | CellworkError | None) -> None:
        try:
            asked.answer(end)
        except Exception:  # a fault of one caller's connection must not leave the others waiting
            log.exception("an answer of %s could not be given", self.endpoint.name)

    def _scored(self, routes: Routes, queue: list[Asked]) -> Turn | None:
        """Return the turn, or None if one of its rows is unusual after all, or its version is taken out."""
        served, plan = queue[0].served, queue[0].served.plan
        if self.endpoint.breaker(served).reason:
            return None
        values: list[tuple[Any, ...]] = []
        for asked in queue:
            values += asked.rows.values
        turn = Turn(
            self.endpoint.name, routes.revision, served.ref, served.deployment, queue[0].route, plan.names,
            time.time_ns() // 1000, [], values, [], [], [], reason=queue[0].reason,
        )  # fmt: skip
        try:
            _fill(plan, turn, queue, self.endpoint.lookup)
            scores = _machine(served).scores(turn.values)
        except (BadInput, Unavailable, ValueError, TypeError, OverflowError):
            return None
        if not np.isfinite(scores).all():
            return None
        turn.scores = scores.tolist()
        turn.ids = [name for asked in queue for name in asked.ids] or self._new_ids(len(values))
        done = time.perf_counter()
        for asked in queue:
            count = len(asked.rows.values)
            turn.callers += [asked.caller] * count
            turn.latencies += [round((done - asked.began) * 1e6)] * count
        if any(asked.rows.unit for asked in queue):
            turn.units = [asked.rows.unit for asked in queue for _ in asked.rows.values]
        return turn

    def _reply(self, queue: list[Asked], turn: Turn) -> None:
        endpoint, start, done = self.endpoint, 0, time.perf_counter()
        tails = self._tails_of(turn)
        for asked in queue:
            end = start + len(asked.rows.values)
            body = replies.BODIES[asked.door](turn, start, end, tails[asked.door], done - asked.began)
            self._say(asked, (body, turn.ids[start][5:]))
            endpoint.latencies.append(done - asked.began)
            start = end
        endpoint.requests += len(queue)

    def _tails_of(self, turn: Turn) -> dict[Door, bytes]:
        key = turn.deployment, turn.reason
        if key not in self._tails:
            if len(self._tails) >= MOST_TAILS:  # reasons name values that callers choose
                self._tails.clear()
            self._tails[key] = replies.tails(turn.version, turn.revision, turn.route, turn.reason)
        return self._tails[key]

    def _shadow(self, shadow: Served, answered: Turn) -> None:
        """Let a shadow score what was answered, after the answers have gone out."""
        routes = self.endpoint.routes
        if routes is None or shadow not in routes.shadows:
            return
        try:
            scores = _machine(shadow).scores(answered.values)
            if not np.isfinite(scores).all():
                raise BadInput("score", "", "is not finite", "look at the shadow")
            turn = replace(
                answered, version=shadow.ref, deployment=shadow.deployment, route="shadow", scores=scores.tolist(),
                ids=[ids.of_key("pred", self.endpoint.name, "shadow", shadow.deployment, name) for name in answered.ids],
                reasons=[f"beside {name}" for name in answered.ids],
            )  # fmt: skip
            self.writer.append(turn)
        except (CellworkError, ValueError, TypeError, OverflowError):  # who asked has been answered
            self.endpoint.unshadowed += len(answered.ids)


def _is_quick(served: Served, plan: Plan) -> bool:
    """Whether a version can answer what was read by `plan` at once, in the event loop."""
    return isinstance(served.predictor, Inline) and served.predictor.ready and served.plan == plan


def _machine(served: Served) -> Machine:
    assert isinstance(served.predictor, Inline)
    assert served.predictor.machine is not None
    return served.predictor.machine


def _fill(plan: Plan, turn: Turn, queue: list[Asked], lookup: Lookup) -> None:
    """Put looked-up values and defaults in their places, and note both in `turn`."""
    entities = [entity for asked in queue for entity in (asked.rows.entities or [{}] * len(asked.rows.values))]
    values = turn.values
    if plan.sources:
        now = datetime.fromtimestamp(turn.at / 1_000_000, UTC)
        found = usable(plan, entities, lookup, now)
        for k, row in enumerate(values):
            if UNSET in row or entities[k]:
                values[k] = _looked_up(plan, turn, k, row, entities[k], found[k])
    for k, row in enumerate(values):
        if None in row:
            turn.defaults[k] = [column.name for column, value in zip(plan.columns, row, strict=True) if value is None]
            values[k] = tuple(
                column.default if value is None else value for column, value in zip(plan.columns, row, strict=True)
            )


def _looked_up(
    plan: Plan, turn: Turn, k: int, row: tuple[Any, ...], entities: dict[str, Any], found: Usable
) -> tuple[Any, ...]:
    filled, used = list(row), set()
    for place, column in enumerate(plan.columns):
        if row[place] is UNSET:
            value = found.get(column.view)
            filled[place] = value.values.get(column.feature) if value else None
            if value:
                used.add(column.view)
            if isinstance(filled[place], float) and filled[place] != filled[place]:
                filled[place] = None
    events = {view: round(event.timestamp() * 1e6) for view in used if (event := found[view].event) is not None}
    turn.looked_up[k] = LookedUp(entities, events, {view: found[view].batch for view in used if found[view].batch})
    return tuple(filled)
