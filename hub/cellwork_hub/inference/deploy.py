"""How an endpoint gets its version: gate, copy by digest, predictor, sanity test, warm, then one compare-and-swap.

Until the swap the old version serves; after it the old one stays at hand as `previous`. Nothing here moves an alias.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from anyio import to_thread
from sqlalchemy import Engine

from cellwork import clock, ids
from cellwork.errors import CellworkError, Conflict, NotFound, Refused
from cellwork.home import Home
from cellwork.models.compiled import NotCompiled
from cellwork.serving import signature
from cellwork.serving.choose import Routes, Served
from cellwork.serving.endpoint import DEADLINE_SECONDS, Endpoint
from cellwork.serving.inline import Inline
from cellwork.serving.lane import Lane
from cellwork.serving.log import PredictionLog
from cellwork.serving.plan import Lookup, Plan
from cellwork.serving.predictor import Predictor
from cellwork.serving.segments import Writer
from cellwork.wire.endpoints import Deploy, Deployment
from cellwork.wire.evaluations import Gate, VersionRef
from cellwork_hub import records
from cellwork_hub.inference import registry as registries
from cellwork_hub.inference import sanity
from cellwork_hub.inference.registry import Registry
from cellwork_hub.inference.table import Deployed, Entry, Table
from cellwork_hub.route import Call

log = logging.getLogger("cellwork")

FOLLOW_SECONDS = 0.25
ADOPT_SECONDS = 60.0
"""How long a version that another process deployed may take to become ready here; after that the fallback answers."""


class Endpoints:
    """The live endpoints of this process, and the only hand that changes their routes."""

    def __init__(
        self, engine: Engine, home: Home, registry: Registry, lookup: Lookup, *, deadline: float = DEADLINE_SECONDS
    ) -> None:
        self.table, self.log = Table(engine), PredictionLog(engine, home.segments())
        self.segments = Writer(home.segments())
        self.engine, self.home, self.registry, self.lookup, self.deadline = engine, home, registry, lookup, deadline
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="prediction-log")
        self._live: dict[str, Endpoint] = {}
        self._swaps: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._leaving: set[asyncio.Task[None]] = set()

    def get(self, name: str) -> Endpoint:
        if name not in self._live:
            raise NotFound("endpoint", name, "does not exist", f"deploy one: cellwork endpoint deploy {name} VERSION")
        return self._live[name]

    def lane(self, name: str) -> Lane | None:
        """Return the quick lane of the endpoint `name`, if there is one."""
        endpoint = self._live.get(name)
        return endpoint.lane if endpoint else None

    @property
    def names(self) -> list[str]:
        return sorted(self._live)

    async def restore(self) -> None:
        """Serve again what the table says, from the copies of this machine; neither registry nor hub is needed."""
        for entry in await to_thread.run_sync(self.table.all):
            live = self._returned(entry.live)
            previous = self._returned(entry.previous) if entry.previous else None
            self._endpoint(entry.name).routes = Routes(entry.revision, live, previous)

    async def follow(self) -> None:
        """Take over what other processes of this service change: the table says it, the new version is made ready first."""
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            try:
                for name, revision in (await to_thread.run_sync(self.table.revisions)).items():
                    endpoint = self._live.get(name)
                    if endpoint is None or endpoint.routes is None or endpoint.routes.revision < revision:
                        await self._adopt(name)
            except Exception:  # what is served now goes on; the next look may see more
                log.exception("changes of other processes could not be followed")

    async def _adopt(self, name: str) -> None:
        async with self._swaps[name]:
            entry, endpoint = await to_thread.run_sync(self.table.get, name), self._endpoint(name)
            old = endpoint.routes
            if entry is None or (old and old.revision >= entry.revision):
                return
            held = {served.ref.digest: served.predictor for served in _served(old)}
            live = self._returned(entry.live, held)
            previous = self._returned(entry.previous, held) if entry.previous else None
            end = asyncio.get_running_loop().time() + ADOPT_SECONDS
            while not live.predictor.ready and asyncio.get_running_loop().time() < end:
                await asyncio.sleep(0.02)
            endpoint.routes = Routes(entry.revision, live, previous)
        kept = {id(served.predictor) for served in _served(endpoint.routes)}
        for predictor in held.values():
            if id(predictor) not in kept:
                self._leave(predictor, 2 * self.deadline)

    def _returned(self, deployed: Deployed, held: Mapping[str, Predictor | Inline] = {}) -> Served:
        ref = deployed.record.version
        if ref.digest in held:
            return Served(ref, deployed.record.id, deployed.plan, held[ref.digest])
        inline = self._inline(self._copy(ref.digest), ref)
        if inline.restore():
            return Served(ref, deployed.record.id, deployed.plan, inline)
        predictor = Predictor(self._copy(ref.digest), _text(ref))
        predictor.keep_trying()
        return Served(ref, deployed.record.id, deployed.plan, predictor)

    def _inline(self, folder: Path, ref: VersionRef) -> Inline:
        return Inline(folder, ref.digest, _text(ref), self.home.compiled())

    async def _loaded(self, folder: Path, ref: VersionRef) -> tuple[Predictor | Inline, list[float], list[str]]:
        """Return the version compiled, else the predictor of a child process, with the scores it must give and why."""
        inline = self._inline(folder, ref)
        try:
            await inline.start()
        except NotCompiled as error:
            return Predictor(folder, _text(ref)), error.expected, [f"compiled: no, {error}"]
        return inline, [], []

    async def settle(self, seconds: float) -> None:
        """Wait until every live predictor answers, at most `seconds`."""
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end and not all(
            endpoint.routes is None or endpoint.routes.live.predictor.ready for endpoint in self._live.values()
        ):
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        for endpoint in self._live.values():
            for served in _served(endpoint.routes):
                await served.predictor.close()
        for task in list(self._leaving):
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        self._writer.shutdown()
        self.segments.close()

    async def deploy(self, call: Call, endpoint: str, wish: Deploy) -> Entry:
        """Give `endpoint` the version of `wish`; deploying the live version again changes nothing.

        Raises
        ------
        Refused
            The gate or the sanity test says no; the audit keeps why.
        Conflict
            The endpoint is not, or no longer, at the revision that was seen.
        """
        name = wish.model or endpoint
        if ids.split_name(name)[0] != ids.split_name(endpoint)[0]:
            raise Refused("model", name, f"is of another project than endpoint {endpoint!r}", "deploy it in its own")
        before = await to_thread.run_sync(self.table.get, endpoint)
        seen = before.revision if before else 0
        if wish.revision is not None and wish.revision != seen:
            raise Conflict(
                f"endpoint {endpoint!r}", f"revision {wish.revision}", f"is not what it is now ({seen})",
                f"look at it and decide again: cellwork endpoint show {endpoint}",
            )  # fmt: skip
        if before and (before.live.record.version.name, before.live.record.version.version) == (name, wish.version):
            return before
        try:
            ref, plan, predictor, checks = await self._prepare(name, wish.version)
        except CellworkError as error:
            await to_thread.run_sync(self._record_refusal, call, endpoint, f"{name}@{wish.version}", str(error))
            raise
        record = Deployment(
            id=ids.new("dep"), endpoint=endpoint, revision=seen + 1, version=ref, checks=checks,
            by=call.principal.name, at=clock.now(), origin=call.origin,
        )  # fmt: skip
        try:
            return await self._swap(call, seen, Deployed(record, plan), predictor, "endpoint.deploy", wish.reason)
        except BaseException as error:
            self._leave(predictor, 0)
            now = await to_thread.run_sync(self.table.get, endpoint) if isinstance(error, Conflict) else None
            if now and now.live.record.version == ref:  # the same wish, sent again while this one was prepared
                return now
            raise

    async def rollback(self, call: Call, endpoint: str, reason: str) -> Entry:
        """Serve again what was served before; nothing is loaded, the predictor is at hand."""
        routes = self.get(endpoint).routes
        if routes is None or routes.previous is None:
            raise Conflict("endpoint", endpoint, "has no previous version to go back to", "deploy another version")
        back = routes.previous
        record = Deployment(
            id=ids.new("dep"), endpoint=endpoint, revision=routes.revision + 1, version=back.ref,
            checks=[f"rolled back from {_text(routes.live.ref)} to {_text(back.ref)}"],
            by=call.principal.name, at=clock.now(), origin=call.origin,
        )  # fmt: skip
        new = Deployed(record, back.plan)
        return await self._swap(call, routes.revision, new, back.predictor, "endpoint.rollback", reason)

    async def _prepare(self, name: str, version: int) -> tuple[VersionRef, Plan, Predictor | Inline, list[str]]:
        gate = await to_thread.run_sync(self.registry.gate, name, version)
        _refuse_unless_passed(gate)
        copy = await to_thread.run_sync(registries.copy, self.registry, gate.version, self.home.models())
        definitions = await to_thread.run_sync(self.registry.definitions, ids.split_name(name)[0])
        plan = signature.plan(ids.split_name(name)[0], copy.manifest.columns, definitions)
        predictor, expected, how = await self._loaded(copy.folder, gate.version)
        try:
            seen = await sanity.check(predictor, copy, f"version {_text(gate.version)}", expected)
        except BaseException:
            self._leave(predictor, 0)
            raise
        return (
            gate.version,
            plan,
            predictor,
            [*(f"gate {check.name}: {check.text}" for check in gate.checks), *how, *seen],
        )

    async def _swap(
        self, call: Call, seen: int, new: Deployed, predictor: Predictor | Inline, action: str, reason: str
    ) -> Entry:
        name = new.record.endpoint
        async with self._swaps[name]:
            entry = await to_thread.run_sync(lambda: self.table.swap(call, seen, new, action=action, reason=reason))
            endpoint = self._endpoint(name)
            old = endpoint.routes
            served = Served(new.record.version, new.record.id, new.plan, predictor)
            endpoint.routes = Routes(entry.revision, served, old.live if old else None)
        if old and old.previous and old.previous.predictor is not predictor:
            self._leave(old.previous.predictor, 2 * self.deadline)
        return entry

    def _leave(self, predictor: Predictor | Inline, seconds: float) -> None:
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
                name,
                self.log,
                self.lookup,
                self._writer,
                deadline=self.deadline,
                segments=self.segments,
                broken=self._broken,
            )
        return self._live[name]

    def _broken(self, endpoint: str, served: Served, reason: str) -> None:
        """Say in an event and in the log that a version was taken out; from the event loop, so written on the side."""
        log.warning("endpoint %s: %s is taken out, it %s", endpoint, _text(served.ref), reason)

        def write() -> None:
            with self.engine.begin() as db:
                records.event(
                    db, "endpoint.breaker_opened", ids.split_name(endpoint)[0], endpoint,
                    version=_text(served.ref), deployment=served.deployment, reason=reason,
                )  # fmt: skip

        self._writer.submit(write)

    def _copy(self, digest: str) -> Path:
        return self.home.models() / digest

    def _record_refusal(self, call: Call, endpoint: str, version: str, why: str) -> None:
        with self.engine.begin() as db:
            records.audit(db, call, "endpoint.refused", endpoint, after=version, reason=why)


def _refuse_unless_passed(gate: Gate) -> None:
    failed = [check for check in gate.checks if not check.passed]
    if gate.passed and not failed:
        return
    subject = f"version {_text(gate.version)}"
    lines = "; ".join(f"{check.name}: {check.text}" for check in failed)
    raise Refused(subject, "", f"does not pass the gate ({lines or 'it says no'})", "evaluate it, or deploy another")


def _text(ref: VersionRef) -> str:
    return f"{ref.name}@{ref.version}"


def _served(routes: Routes | None) -> list[Served]:
    return [served for served in (routes.live, routes.previous) if served] if routes else []
