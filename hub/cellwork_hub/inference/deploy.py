"""How routes change: the version is made ready, then one compare-and-swap of the table, then this process takes the table over.

Until the swap the old table serves; after it the old live version stays at hand as `previous`. Nothing here moves an alias.
Order of writes: copy of the files, predictor ready here, the table's transaction (routes, deployment, audit, event, lineage), the
routes of this process; other processes see the new revision and make their own predictors ready before they follow. A process that
ends in between comes back with what the table says.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from anyio import to_thread
from sqlalchemy import Engine

from cellwork import clock, ids
from cellwork.errors import CellworkError, Conflict, NotFound, Refused
from cellwork.home import Home
from cellwork.serving.choose import Beside, Routes, Served
from cellwork.serving.endpoint import DEADLINE_SECONDS, Endpoint
from cellwork.serving.lane import Lane
from cellwork.serving.log import PredictionLog
from cellwork.serving.plan import Lookup
from cellwork.serving.predictor import MEGABYTES
from cellwork.serving.segments import Writer
from cellwork.wire.endpoints import Deploy, Deployment
from cellwork.wire.evaluations import VersionRef
from cellwork_hub import records
from cellwork_hub.inference import table as tables
from cellwork_hub.inference.loading import AnyPredictor, Loader, Prepared, full, refuse_unless_passed
from cellwork_hub.inference.registry import Registry
from cellwork_hub.inference.table import Deployed, Entry, Table
from cellwork_hub.route import Call

log = logging.getLogger("cellwork")

FOLLOW_SECONDS = 0.25
ADOPT_SECONDS = 60.0
"""How long a version that another process deployed may take to become ready here; after that the fallback answers."""
Change = Callable[[Entry | None], Entry]


class Endpoints:
    """The live endpoints of this process, and the only hand that changes their routes."""

    def __init__(
        self,
        engine: Engine,
        home: Home,
        registry: Registry,
        lookup: Lookup,
        *,
        deadline: float = DEADLINE_SECONDS,
        megabytes: int = MEGABYTES,
    ) -> None:
        self.table, self.log = Table(engine), PredictionLog(engine, home.segments(), home.archived_predictions())
        self.segments, self.loader = Writer(home.segments()), Loader(home, registry, megabytes)
        self.engine, self.lookup, self.deadline = engine, lookup, deadline
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="prediction-log")
        self._live: dict[str, Endpoint] = {}
        self._swaps: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._leaving: set[asyncio.Task[None]] = set()
        self.taken_out: Callable[[str, Served, str], None] = lambda endpoint, served, reason: None
        """Told when a breaker opens: the endpoint's name, the version, and why."""

    def get(self, name: str) -> Endpoint:
        if name not in self._live:
            raise NotFound("endpoint", name, "does not exist", f"deploy one: cellwork endpoint deploy {name} VERSION")
        return self._live[name]

    def revision(self, name: str) -> int:
        """Return the revision that this process serves the endpoint by; 0: it does not serve it yet."""
        endpoint = self._live.get(name)
        return endpoint.routes.revision if endpoint and endpoint.routes else 0

    def lane(self, name: str) -> Lane | None:
        """Return the quick lane of the endpoint `name`, if there is one."""
        endpoint = self._live.get(name)
        return endpoint.lane if endpoint else None

    @property
    def waiting_rows(self) -> int:
        return sum(endpoint.waiting_rows for endpoint in self._live.values())

    async def restore(self) -> None:
        """Serve again what the table says, from the copies of this machine; neither registry nor hub is needed."""
        for entry in await to_thread.run_sync(self.table.all):
            self._endpoint(entry.name).routes = self._routes(entry, {})

    async def follow(self) -> None:
        """Take over what other processes of this service change: the table says it, the new version is made ready first."""
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            try:
                for name, revision in (await to_thread.run_sync(self.table.revisions)).items():
                    endpoint = self._live.get(name)
                    if endpoint is None or endpoint.routes is None or endpoint.routes.revision < revision:
                        await self.adopt(name)
            except Exception:  # what is served now goes on; the next look may see more
                log.exception("changes of other processes could not be followed")

    async def adopt(self, name: str) -> None:
        """Take over what the table says of an endpoint, if it says something newer."""
        async with self._swaps[name]:
            entry, endpoint = await to_thread.run_sync(self.table.get, name), self._endpoint(name)
            old = endpoint.routes
            if entry is None or (old and old.revision >= entry.revision):
                return
            routes = self._routes(entry, _held(old))
            end = asyncio.get_running_loop().time() + ADOPT_SECONDS
            while not _ready(routes) and asyncio.get_running_loop().time() < end:
                await asyncio.sleep(0.02)
            self._replace(endpoint, routes)

    def _routes(self, entry: Entry, held: Mapping[str, AnyPredictor]) -> Routes:
        """Return the entry with its versions loaded; one predictor a digest."""
        there = dict(held)

        def served(deployed: Deployed) -> Served:
            found = self.loader.returned(deployed, there)
            there[found.ref.digest] = found.predictor
            return found

        live = served(entry.live)
        previous = served(entry.previous) if entry.previous else None
        arms = tuple(Beside(served(entry.deployed[arm.deployment]), arm) for arm in entry.beside.arms)
        return Routes(entry.name, entry.revision, live, previous, arms, entry.beside.salt, entry.beside.input)

    def _replace(self, endpoint: Endpoint, routes: Routes) -> None:
        """Serve by `routes`; versions that are not at hand any more leave when those who may still ask them have been answered."""
        old, endpoint.routes = endpoint.routes, routes
        kept = {id(served.predictor) for served in routes.served}
        for predictor in {id(served.predictor): served.predictor for served in (old.served if old else ())}.values():
            if id(predictor) not in kept:
                self._leave(predictor, 2 * self.deadline)

    async def settle(self, seconds: float) -> None:
        """Wait until every live predictor answers, at most `seconds`."""
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end and not all(
            endpoint.routes is None or endpoint.routes.live.predictor.ready for endpoint in self._live.values()
        ):
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        for endpoint in self._live.values():
            for predictor in _held(endpoint.routes).values():
                await predictor.close()
        for task in list(self._leaving):
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        self._writer.shutdown()
        self.segments.close()

    async def deploy(self, call: Call, endpoint: str, wish: Deploy) -> Entry:
        """Give `endpoint` the version of `wish`; deploying the live version again changes nothing, and one that is at hand loads nothing.

        Raises
        ------
        Refused
            The gate or the sanity test says no; the audit keeps why.
        Conflict
            The endpoint is not, or no longer, at the revision that was seen.
        """
        name = of_project(wish.model or endpoint, endpoint)
        before = await to_thread.run_sync(self.table.get, endpoint)
        tables.check_seen(endpoint, wish.revision, before)
        seen = before.revision if before else 0
        if before and (before.live.record.version.name, before.live.record.version.version) == (name, wish.version):
            return before
        ready = await self.ready(call, endpoint, name, wish.version)
        new = made(call, endpoint, seen + 1, ready)
        try:
            return await self.change(
                call, endpoint, seen, lambda entry: entry.with_live(new) if entry else tables.first(new), ready,
                action="endpoint.deploy", reason=wish.reason,
            )  # fmt: skip
        except Conflict:
            now = await to_thread.run_sync(self.table.get, endpoint)
            if now and now.live.record.version == ready.ref:  # the same wish, sent again while this one was prepared
                return now
            raise

    async def rollback(self, call: Call, endpoint: str, reason: str, *, seen: int | None = None) -> Entry:
        """Serve again what was served before, if the revision is still the one that was seen; the predictor is at hand."""
        before = await to_thread.run_sync(self.table.require, endpoint)
        tables.check_seen(endpoint, seen, before)
        if before.previous is None:
            raise Conflict("endpoint", endpoint, "has no previous version to go back to", "deploy another version")
        back, live = before.previous, before.live.record.version
        record = Deployment(
            id=ids.new("dep"), endpoint=endpoint, revision=before.revision + 1, version=back.record.version,
            checks=[f"rolled back from {full(live)} to {full(back.record.version)}"],
            by=call.principal.name, at=clock.now(), origin=call.origin,
        )  # fmt: skip
        new = Deployed(record, back.plan)
        return await self.change(
            call, endpoint, before.revision, lambda entry: there(entry).with_live(new), None,
            action="endpoint.rollback", reason=reason,
        )  # fmt: skip

    async def ready(self, call: Call, endpoint: str, name: str, version: int, *, gated: bool = True) -> Prepared:
        """Return the version ready for traffic: what is at hand as it is, else loaded, checked and warmed. The audit keeps a refusal.

        What is `gated` will get traffic, so the caller's own overrides don't count for it.
        """
        try:
            gate = await self.loader.gate(name, version, call.principal.name if gated else "")
            if gated:
                refuse_unless_passed(gate)
            lines = [f"gate {check.name}: {check.text}" for check in gate.checks]
            held = self._at_hand(endpoint, gate.version)
            ready = held or await self.loader.prepare(gate)
            return Prepared(ready.ref, ready.plan, ready.predictor, [*lines, *ready.checks])
        except CellworkError as error:
            await to_thread.run_sync(self._record_refusal, call, endpoint, f"{name}@{version}", str(error))
            raise

    def _at_hand(self, endpoint: str, ref: VersionRef) -> Prepared | None:
        routes = self._live[endpoint].routes if endpoint in self._live else None
        for served in routes.served if routes else ():
            if served.ref == ref and served.predictor.ready:
                return Prepared(ref, served.plan, served.predictor, [f"at hand: {served.predictor.how}, warm"])
        return None

    async def change(
        self, call: Call, name: str, seen: int, make: Change, ready: Prepared | None, *, action: str, reason: str
    ) -> Entry:
        """Swap the table and take it over here; what was made ready for a swap that fails is closed."""
        endpoint = self._endpoint(name)
        try:
            async with self._swaps[name]:
                entry = await to_thread.run_sync(
                    lambda: self.table.swap(call, name, seen, make, action=action, reason=reason)
                )
                held = _held(endpoint.routes)
                if ready is not None and not (ready.ref.digest in held and held[ready.ref.digest].ready):
                    held[ready.ref.digest] = ready.predictor
                self._replace(endpoint, self._routes(entry, held))
        except BaseException:
            if ready is not None:
                self._leave_unless_held(endpoint, ready)
            raise
        if ready is not None:
            self._leave_unless_held(endpoint, ready)
        return entry

    def _leave_unless_held(self, endpoint: Endpoint, ready: Prepared) -> None:
        if all(predictor is not ready.predictor for predictor in _held(endpoint.routes).values()):
            self._leave(ready.predictor, 0)

    def _leave(self, predictor: AnyPredictor, seconds: float) -> None:
        """Close `predictor` when those who still may ask it have been answered."""

        async def leave() -> None:
            try:
                await asyncio.sleep(seconds)
            finally:
                await predictor.close()

        task = asyncio.create_task(leave())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _endpoint(self, name: str) -> Endpoint:
        if name not in self._live:
            self._live[name] = Endpoint(
                name, self.log, self.lookup, self._writer, deadline=self.deadline, segments=self.segments,
                broken=self._broken,
            )  # fmt: skip
        return self._live[name]

    def _broken(self, endpoint: str, served: Served, reason: str) -> None:
        """Say in an event and in the log that a version was taken out; from the event loop, so written on the side."""
        log.warning("endpoint %s: %s is taken out, it %s", endpoint, full(served.ref), reason)

        def write() -> None:
            with self.engine.begin() as db:
                records.event(
                    db, "endpoint.breaker_opened", ids.split_name(endpoint)[0], endpoint,
                    version=full(served.ref), deployment=served.deployment, reason=reason,
                )  # fmt: skip

        self._writer.submit(write)
        self.taken_out(endpoint, served, reason)

    def _record_refusal(self, call: Call, endpoint: str, version: str, why: str) -> None:
        with self.engine.begin() as db:
            records.audit(db, call, "endpoint.refused", endpoint, after=version, reason=why)


def of_project(model: str, endpoint: str) -> str:
    """Return `model` if it is of the endpoint's project."""
    if ids.split_name(model)[0] != ids.split_name(endpoint)[0]:
        raise Refused("model", model, f"is of another project than endpoint {endpoint!r}", "deploy it in its own")
    return model


def made(call: Call, endpoint: str, revision: int, ready: Prepared) -> Deployed:
    record = Deployment(
        id=ids.new("dep"), endpoint=endpoint, revision=revision, version=ready.ref, checks=ready.checks,
        by=call.principal.name, at=clock.now(), origin=call.origin,
    )  # fmt: skip
    return Deployed(record, ready.plan)


def there(entry: Entry | None) -> Entry:
    """Return the table of an endpoint that exists: none is ever removed."""
    assert entry is not None, "the table was there when its revision was read"
    return entry


def _held(routes: Routes | None) -> dict[str, AnyPredictor]:
    """Return digest -> predictor of every version at hand."""
    return {served.ref.digest: served.predictor for served in routes.served} if routes else {}


def _ready(routes: Routes) -> bool:
    return routes.live.predictor.ready and all(beside.served.predictor.ready for beside in routes.arms)
