"""What dashboards show, computed once for everybody who looks, and kept with the time at which it was true.

A part is none, good, or good with a later error beside it. Who finds it older than `REFRESH_SECONDS` has it computed anew, in a thread of
this module; all who look meanwhile wait for the same computation, at most `PATIENCE_SECONDS`, and then get what was last good. So no page
waits for what hangs, fails or is asked by many, and nothing is computed while nobody looks. Good parts lie in the database: what was last
good is there after a restart too. A computation asks the services as this one, over HTTP, and ends after `MOST_SECONDS`.
"""

from __future__ import annotations

import threading
import time
import traceback
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec
from sqlalchemy import text

from cellwork import clock, ids, scopes
from cellwork.client import Client
from cellwork.errors import BadInput, CellworkError, near_miss
from cellwork.models import versions
from cellwork.wire.snapshots import Snapshot
from cellwork_hub.guard import require
from cellwork_hub.platform.state import State
from cellwork_hub.records import micros, moment
from cellwork_hub.route import Call, Route

MIGRATION = (
    "CREATE TABLE snapshots (project TEXT NOT NULL, part TEXT NOT NULL, of_what TEXT NOT NULL, at BIGINT NOT NULL, value {json} NOT NULL, "
    "PRIMARY KEY (project, part, of_what))",
)
REFRESH_SECONDS = 5.0
PATIENCE_SECONDS = 3.0
FIRST_SECONDS = 20.0
"""So long whoever looks first waits for what nobody has seen yet."""
MOST_SECONDS = 300.0
AT_ONCE = 4
MOST_KEPT = 256
NEWEST = 50

_all: weakref.WeakSet[Snapshots] = weakref.WeakSet()

Key = tuple[str, str, str]
"""Project, part, of what."""


@dataclass(frozen=True)
class Part:
    scope: str
    """What a caller needs to see it."""
    ask: Callable[[Client, str, str], Any]
    """Of the project and the short name."""
    named: bool = True
    """It is about one thing in the project, not about all of it."""


def _card(client: Client, project: str, name: str) -> Any:
    live = client.endpoints.get(f"{project}/{name}").routes.live
    return client.evaluations.card(live.name, live.version)


def _endpoints(client: Client, project: str, _: str) -> Any:
    return [each for each in client.endpoints.list() if each.routes.endpoint.startswith(f"{project}/")]


PARTS = {
    "endpoint": Part("endpoints:read", lambda c, p, n: c.endpoints.get(f"{p}/{n}")),
    "endpoints": Part("endpoints:read", _endpoints, named=False),
    "predictions": Part("endpoints:read", lambda c, p, n: c.endpoints.predictions(f"{p}/{n}", after=-20)),
    "quality": Part("monitors:read", lambda c, p, n: c.outcomes.quality(f"{p}/{n}")),
    "drift": Part("monitors:read", lambda c, p, n: c.monitors.drift_by_day(f"{p}/{n}")),
    "window": Part("monitors:read", lambda c, p, n: c.monitors.drift(f"{p}/{n}")),
    "metrics": Part("monitors:read", lambda c, p, n: c.outcomes.metrics(f"{p}/{n}")),
    "feedback": Part("monitors:read", lambda c, p, n: c.outcomes.feedback(f"{p}/{n}", limit=NEWEST)),
    "service": Part("monitors:read", lambda c, p, n: c.monitors.service(f"{p}/{n}", days=31)),
    "card": Part("models:read", _card),
    "versions": Part("models:read", lambda c, p, _: versions.of_project(c, p), named=False),
    "monitors": Part("monitors:read", lambda c, p, _: c.monitors.list(p), named=False),
    "alerts": Part("monitors:read", lambda c, p, _: c.monitors.alerts_in_view(p, NEWEST), named=False),
    "jobs": Part("jobs:read", lambda c, p, _: list(c.jobs.list(p)), named=False),
    "runs": Part("jobs:read", lambda c, p, _: list(islice(c.jobs.runs(project=p), 4 * NEWEST)), named=False),
    "definitions": Part("features:read", lambda c, p, _: c.features.definitions(p), named=False),
    "view": Part("features:read", lambda c, p, n: c.features.describe(p, n)),
    "pipelines": Part("features:read", lambda c, p, n: list(deque(c.features.runs(p, view=n), NEWEST))),
}


@dataclass
class _Held:
    at: int | None
    value: bytes
    tried: float
    """By the monotonic clock."""
    error: str = ""
    traceback: str = ""


class Snapshots:
    """The parts that somebody looked at, at most `MOST_KEPT` in memory, and the threads that compute them."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._pool = ThreadPoolExecutor(AT_ONCE, "snapshots")
        self._held: OrderedDict[Key, _Held] = OrderedDict()
        self._running: dict[Key, Future[None]] = {}
        self._lock = threading.Lock()
        self._dropped = 0
        _all.add(self)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def drop(self, project: str) -> None:
        """Forget what is held of a project; what is being computed now is not kept."""
        with self._lock:
            self._dropped += 1
            for key in [key for key in self._held if key[0] == project]:
                del self._held[key]

    def get(self, keys: list[Key]) -> list[_Held]:
        """Return the parts as they are, computed anew where they are old; see the module's rules."""
        held = [self._known(key) for key in keys]
        old = [key for key, each in zip(keys, held, strict=True) if time.monotonic() - each.tried > REFRESH_SECONDS]
        running = [self._refresh(key) for key in old]
        first = any(each.at is None and not each.error for each in held)
        wait(running, timeout=FIRST_SECONDS if first else PATIENCE_SECONDS)
        return [self._known(key) for key in keys]

    def _known(self, key: Key) -> _Held:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        project, part, of = key
        query = text("SELECT at, value FROM snapshots WHERE project = :p AND part = :part AND of_what = :of")
        with self.state.engine.connect() as db:
            row = db.execute(query, {"p": project, "part": part, "of": of}).first()
        found = _Held(row.at, row.value.encode(), float("-inf")) if row else _Held(None, b"null", float("-inf"))
        return self._keep(key, found, only_new=True)

    def _keep(self, key: Key, held: _Held, *, only_new: bool = False) -> _Held:
        with self._lock:
            if only_new and key in self._held:
                return self._held[key]
            self._held[key] = held
            self._held.move_to_end(key)
            while len(self._held) > MOST_KEPT:
                self._held.popitem(last=False)
        return held

    def _refresh(self, key: Key) -> Future[None]:
        with self._lock:
            if key not in self._running:
                self._running[key] = self._pool.submit(self._once, key)
            return self._running[key]

    def _once(self, key: Key) -> None:
        try:
            self._compute(key)
        finally:
            with self._lock:
                del self._running[key]

    def _compute(self, key: Key) -> None:
        before, (project, part, of), dropped = self._known(key), key, self._dropped
        try:
            with Client(
                self.state.context.public_url, self.state.context.token("cellwork"), timeout=MOST_SECONDS
            ) as client:
                client.connection.attempts = 1
                value = msgspec.json.encode(PARTS[part].ask(client, project, of))
            held = _Held(micros(clock.now()), value, time.monotonic())
            if not self._write(key, held, dropped):
                return
        except CellworkError as error:
            held = _Held(before.at, before.value, time.monotonic(), str(error), traceback.format_exc())
        except Exception as error:  # whatever it is, what was last good is shown, and those who can mend it see why
            words = f"part {part!r} could not be computed ({type(error).__name__})"
            held = _Held(before.at, before.value, time.monotonic(), words, traceback.format_exc())
        if dropped == self._dropped:
            self._keep(key, held)

    def _write(self, key: Key, held: _Held, dropped: int) -> bool:
        """Keep a part unless some were dropped since it was begun; returns whether it did."""
        values = dict(zip(("p", "part", "of"), key, strict=True)) | {"at": held.at, "value": held.value.decode()}
        insert = (
            "INSERT INTO snapshots VALUES (:p, :part, :of, :at, :value) "
            "ON CONFLICT (project, part, of_what) DO UPDATE SET at = excluded.at, value = excluded.value"
        )
        with self.state.engine.begin() as db:
            db.execute(text(insert), values)
        if dropped == self._dropped:
            return True
        with self.state.engine.begin() as db:
            db.execute(text("DELETE FROM snapshots WHERE project = :p AND part = :part AND of_what = :of"), values)
        return False


def drop(state: State, project: str) -> None:
    """Forget what this service holds of a project, in memory and in its database."""
    for each in list(_all):
        if each.state.engine is state.engine:
            each.drop(project)
    with state.engine.begin() as db:
        db.execute(text("DELETE FROM snapshots WHERE project = :p"), {"p": project})


def routes(state: State) -> list[Route]:
    snapshots = Snapshots(state)

    def read(call: Call) -> list[Snapshot]:
        project, of = ids.name(call.path["project"], "project"), call.query.get("of", "")
        names = [name for name in call.required("parts").split(",") if name][: len(PARTS)]
        for name in names:
            if name not in PARTS:
                raise BadInput("part", name, "is not known", near_miss(name, PARTS))
            require(call.principal, PARTS[name].scope)
        if of:
            ids.name(of, "name")
        keys: list[Key] = [(project, name, of if PARTS[name].named else "") for name in names]
        owner = not call.bounded or f"{scopes.ROLE_GROUP}admin" in call.principal.groups
        return [_told(key, held, of, owner=owner) for key, held in zip(keys, snapshots.get(keys), strict=True)]

    return [
        Route("GET", "/api/v1/snapshots/{project}", read, "monitors:read", None, list[Snapshot], "Parts of dashboards (?parts=quality,drift&of=name), computed once for all who look."),
    ]  # fmt: skip


def _told(key: Key, held: _Held, of: str, *, owner: bool) -> Snapshot:
    if held.at is None and not held.error:
        return Snapshot(
            part=key[1], of=of, error="This is being computed for the first time; reload in a moment.", owner=owner
        )
    return Snapshot(
        part=key[1], of=of, as_of=None if held.at is None else moment(held.at), value=msgspec.Raw(held.value), error=held.error,
        traceback=held.traceback if owner else "", owner=owner,
    )  # fmt: skip
