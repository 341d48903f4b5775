"""The quick lane of an endpoint: usual requests to a compiled live version, all that one turn of the event loop brought together.

    offered -> (decoded, checked) -> queue -> one turn: looked up, scored, logged -> answered
            -> None: the general way                     -> None: the general way

It never refuses and never falls back: whatever is unusual (a wrong value, an id, a score that is not finite, a version that is not
compiled, a route that has to choose) is handed back, and `endpoint.Endpoint` gives the answer. Only a log that can't be written
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

from cellwork.errors import BadInput, CellworkError, Unavailable
from cellwork.ids import Sequence
from cellwork.serving.choose import Routes, Served
from cellwork.serving.inline import MOST_ROWS, Inline
from cellwork.serving.plan import Lookup, Plan, Usable, usable
from cellwork.serving.segments import LookedUp, Turn, Writer
from cellwork.serving.shape import Door, Rows, Shape

log = logging.getLogger("cellwork.serving")

if TYPE_CHECKING:
    from cellwork.serving.endpoint import Endpoint

MOST_BYTES = 1 << 20
"""A longer body goes the general way."""
Reply = tuple[bytes, str]
"""The answer's body, and the id of its first prediction without its kind."""


class Asked(msgspec.Struct):
    rows: Rows
    door: Door
    caller: str
    began: float
    future: asyncio.Future[Reply | None]


class Lane:
    def __init__(self, endpoint: Endpoint, writer: Writer, *, looks_up: bool) -> None:
        self.endpoint, self.writer, self.looks_up = endpoint, writer, looks_up
        self._routes: Routes | None = None
        self._shape: Shape | None = None
        self._queue: list[Asked] = []
        self._ids = Sequence()
        self._tails: dict[Door, bytes] = {}

    def offer(self, door: Door, body: bytes, caller: str) -> asyncio.Future[Reply | None] | None:
        """Return the future of the answer, or None if the request must go the general way; so may the future's result."""
        if self.endpoint.routes is not self._routes:
            self._look()
        if self._shape is None or len(body) > MOST_BYTES:
            return None
        rows = self._shape.rows(door, body)
        if rows is None or not 0 < len(rows.values) <= MOST_ROWS or (rows.entities and not self.looks_up):
            return None
        loop = asyncio.get_running_loop()
        asked = Asked(rows, door, caller, time.perf_counter(), loop.create_future())
        if not self._queue:
            loop.call_soon(self._turn)
        self._queue.append(asked)
        return asked.future

    def _look(self) -> None:
        """Take over new routes. What waits for the old ones goes the general way."""
        queue, self._queue = self._queue, []
        self._give_back(queue)
        self._routes = routes = self.endpoint.routes
        live = routes.live if routes is not None else None
        plain = routes is not None and not routes.canaries and not routes.shadows
        quick = plain and live is not None and isinstance(live.predictor, Inline)
        self._shape = Shape(live.plan) if quick and live is not None else None
        if self._shape is not None and routes is not None:
            self._tails = _tails(routes)

    def _turn(self) -> None:
        queue = self._taken()
        routes, shape = self._routes, self._shape
        if not queue or routes is None or shape is None or self.endpoint.routes is not routes:
            return self._give_back(queue)
        try:
            turn = self._scored(routes.live, queue, shape)
            if turn is None:
                return self._give_back(queue)
            self.writer.append(turn)
        except CellworkError as error:
            for asked in queue:
                if not asked.future.done():
                    asked.future.set_exception(error)
            return None
        except Exception:  # a fault of the lane must not leave its callers waiting: the general way answers them
            log.exception("the quick lane of %s failed", self.endpoint.name)
            return self._give_back(queue)
        return self._reply(queue, turn)

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

    @staticmethod
    def _give_back(queue: list[Asked]) -> None:
        for asked in queue:
            if not asked.future.done():
                asked.future.set_result(None)

    def _scored(self, live: Served, queue: list[Asked], shape: Shape) -> Turn | None:
        """Return the turn, or None if one of its rows is unusual after all."""
        routes, plan = self._routes, live.plan
        assert routes is not None
        assert isinstance(live.predictor, Inline)
        assert live.predictor.machine is not None
        at = time.time_ns() // 1000
        values: list[tuple[Any, ...]] = []
        for asked in queue:
            values += asked.rows.values
        turn = Turn(
            self.endpoint.name, routes.revision, live.ref, live.deployment, "live", plan.names, at, [], values, [], [], []
        )  # fmt: skip
        try:
            _fill(plan, turn, queue, self.endpoint.lookup)
            scores = live.predictor.machine.scores(turn.values)
        except (BadInput, Unavailable, ValueError, TypeError, OverflowError):
            return None
        if not np.isfinite(scores).all():
            return None
        turn.scores = scores.tolist()
        turn.ids = [f"pred_{body}" for body in self._ids.bodies(len(values))]
        done = time.perf_counter()
        for asked in queue:
            count = len(asked.rows.values)
            turn.callers += [asked.caller] * count
            turn.latencies += [round((done - asked.began) * 1e6)] * count
        return turn

    def _reply(self, queue: list[Asked], turn: Turn) -> None:
        endpoint, start, done = self.endpoint, 0, time.perf_counter()
        for asked in queue:
            end = start + len(asked.rows.values)
            body = _BODIES[asked.door](turn, start, end, self._tails[asked.door], done - asked.began)
            if not asked.future.done():  # its caller may have gone
                asked.future.set_result((body, turn.ids[start][5:]))
            endpoint.latencies.append(done - asked.began)
            start = end
        endpoint.requests += len(queue)


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


def _tails(routes: Routes) -> dict[Door, bytes]:
    """Return what every answer of these routes ends with, ready to be filled in."""
    model = msgspec.json.encode(routes.live.ref)
    return {
        "predict": b'],"model":' + model + b',"revision":%d,"route":"live","reason":"","latency_ms":' % routes.revision,
        "invocations": b'],"model":' + model + b',"route":"live"}',
    }


def _own(turn: Turn, start: int, end: int, tail: bytes, seconds: float) -> bytes:
    outputs = [
        f'{{"id":"{turn.ids[k]}","score":{turn.scores[k]!r},"defaults":{_defaults(turn, k)},"feature_age_s":{_age(turn, k)},"repeated":false}}'
        for k in range(start, end)
    ]
    return b'{"outputs":[' + ",".join(outputs).encode() + tail + b"%.3f}" % (seconds * 1e3)


def _mlflow(turn: Turn, start: int, end: int, tail: bytes, seconds: float) -> bytes:
    scores = ",".join(map(repr, turn.scores[start:end]))
    names = '","'.join(turn.ids[start:end])
    return f'{{"predictions":[{scores}],"ids":["{names}"'.encode() + tail


def _defaults(turn: Turn, k: int) -> str:
    return msgspec.json.encode(turn.defaults[k]).decode() if k in turn.defaults else "[]"


def _age(turn: Turn, k: int) -> str:
    found = turn.looked_up.get(k)
    return str((turn.at - min(found.events.values())) / 1e6) if found and found.events else "null"


_BODIES: dict[Door, Callable[[Turn, int, int, bytes, float], bytes]] = {"predict": _own, "invocations": _mlflow}
