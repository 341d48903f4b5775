"""Staged rollouts: a version that goes from a small share of units to all of them, or back, by what both versions answer.

The state is in the route table, so that a process that ends takes nothing with it; one process looks at each running rollout
`LOOK_SECONDS` after the last look, reads the prediction log, which all processes write, and swaps the table as anybody else
does: if somebody was quicker it looks again. A breaker that opens on the version, in whichever process, takes it out at once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Literal

import msgspec
from anyio import to_thread

from cellwork import clock, ids
from cellwork.errors import BadInput, CellworkError, Conflict
from cellwork.serving import rollout as rules
from cellwork.serving.choose import Served
from cellwork.wire.endpoints import Arm, Rollout, RolloutWish
from cellwork.wire.origin import Origin
from cellwork.wire.records import Principal
from cellwork_hub.inference import table as tables
from cellwork_hub.inference.deploy import Endpoints, made, of_project, there
from cellwork_hub.inference.table import Deployed, Entry
from cellwork_hub.route import Call

log = logging.getLogger("cellwork")

LOOK_SECONDS = 0.5
MOST_HOLD_SECONDS = 30 * 86_400.0
FIELDS = ("stages", "hold_seconds", "least", "errors", "slower", "scores")


async def start(endpoints: Endpoints, call: Call, endpoint: str, wish: RolloutWish) -> Entry:
    """Begin with the first stage; a rollout of the same version that runs already stays as it is.

    Raises
    ------
    BadInput
        Stages that do not rise to 1, or a limit that makes no sense.
    Conflict
        Another version is on its way, or someone changed the endpoint meanwhile.
    Refused
        The gate or the sanity test says no.
    """
    name = of_project(wish.model or endpoint, endpoint)
    _check(wish)
    before = await to_thread.run_sync(endpoints.table.require, endpoint)
    tables.check_seen(endpoint, wish.revision, before)
    if (running := before.rolling) is not None:
        if (running.version.name, running.version.version) == (name, wish.version):
            return before
        way_out = f"wait for it, or stop it: cellwork endpoint stop {endpoint}"
        raise Conflict(f"endpoint {endpoint!r}", running.version.version, "is on its way already", way_out)
    live = before.live.record.version
    if (live.name, live.version) == (name, wish.version):
        raise BadInput(f"version {name}@{wish.version}", "", f"is live at {endpoint}", "roll out another one")
    if others := [
        arm.version.version for arm in before.beside.arms if arm.weight and arm.version.version != wish.version
    ]:
        raise BadInput("canary", others[0], "answers a share of units beside it", "remove it, or set its weight to 0")
    ready = await endpoints.ready(call, endpoint, name, wish.version)
    new, now = made(call, endpoint, before.revision + 1, ready), clock.now()
    rollout = Rollout(
        version=ready.ref, began=now, since=now, said="it begins", **{field: getattr(wish, field) for field in FIELDS}
    )
    return await endpoints.change(
        call, endpoint, before.revision, lambda entry: _staged(there(entry), rollout, new), ready,
        action="endpoint.rollout", reason=wish.reason,
    )  # fmt: skip


async def stop(endpoints: Endpoints, call: Call, endpoint: str, reason: str) -> Entry:
    """End a running rollout and take its version out; without one nothing changes."""
    before = await to_thread.run_sync(endpoints.table.require, endpoint)
    return await _end(endpoints, call, before, "stopped", reason or f"stopped by {call.principal.name}")


async def drive(endpoints: Endpoints) -> None:
    """Look at running rollouts for ever; and take out at once what a breaker of this process has taken out."""
    endpoints.taken_out = lambda name, served, why: _taken_out(endpoints, tasks, name, served, why)
    tasks: set[asyncio.Task[None]] = set()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            for entry in await to_thread.run_sync(endpoints.table.all):
                if entry.rolling is not None:
                    await look(endpoints, entry)
        except Exception:  # what is served goes on; the next look may see more
            log.exception("running rollouts could not be looked at")


async def look(endpoints: Endpoints, entry: Entry) -> None:
    """Judge a running rollout by the log, and do what follows."""
    rollout, arm = entry.rolling, _arm(entry)
    if rollout is None or arm is None:
        return
    seen = endpoints.log.seen
    canary = await to_thread.run_sync(seen, arm.deployment, "canary", rollout.began)
    stage = await to_thread.run_sync(seen, arm.deployment, "canary", rollout.since)
    live = await to_thread.run_sync(seen, entry.live.record.id, "live", rollout.began)
    verdict = rules.judge(rollout, canary, live, stage, clock.now())
    try:
        if verdict.action == "back":
            await _end(endpoints, _own_call(), entry, "back", verdict.text)
        elif verdict.action == "on":
            await _on(endpoints, entry, rollout, verdict.text)
    except Conflict:
        return


async def _on(endpoints: Endpoints, entry: Entry, rollout: Rollout, why: str) -> None:
    arm = _arm(entry)
    if arm is None:
        return
    if rollout.stage + 1 < len(rollout.stages):
        following = msgspec.structs.replace(rollout, stage=rollout.stage + 1, since=clock.now(), said=why)
        deployed = entry.deployed[arm.deployment]
        await endpoints.change(
            _own_call(), entry.name, entry.revision, lambda now: _staged(there(now), following, deployed), None,
            action="endpoint.rollout", reason=why,
        )  # fmt: skip
    else:
        await _end(endpoints, _own_call(), entry, "promoted", why)


async def _end(
    endpoints: Endpoints, call: Call, entry: Entry, state: Literal["promoted", "back", "stopped"], why: str
) -> Entry:
    """End the rollout, with its version live or out."""
    arm = _arm(entry)
    if arm is None:
        return entry
    deployed = entry.deployed[arm.deployment]

    def ended(now: Entry | None) -> Entry:
        before = there(now).stopped(why, state)
        return before.with_live(deployed) if state == "promoted" else before.without_arm(arm)

    return await endpoints.change(
        call, entry.name, entry.revision, ended, None, action=f"endpoint.rollout_{state}", reason=why
    )


def _taken_out(endpoints: Endpoints, tasks: set[asyncio.Task[None]], name: str, served: Served, why: str) -> None:
    async def back() -> None:
        entry = await to_thread.run_sync(endpoints.table.get, name)
        arm = _arm(entry) if entry else None
        if entry is None or arm is None or arm.deployment != served.deployment:
            return
        try:
            await _end(endpoints, _own_call(), entry, "back", f"it {why}")
        except CellworkError as error:  # the next look sees its failures in the log
            log.warning("rollout of %s: %s", name, error)

    task = asyncio.create_task(back())
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _staged(entry: Entry, rollout: Rollout, deployed: Deployed) -> Entry:
    """Return the table with the rollout's version at its stage's weight."""
    arm = Arm(version=rollout.version, deployment=deployed.record.id, weight=rollout.stages[rollout.stage])
    return entry.with_rollout(rollout).with_arm(deployed, arm)


def _arm(entry: Entry) -> Arm | None:
    return next((arm for arm in entry.beside.arms if entry.is_rolling(arm)), None)


def _check(wish: RolloutWish) -> None:
    stages = wish.stages
    rising = all(a < b for a, b in itertools.pairwise(stages))
    if not stages or not rising or stages[0] <= 0 or stages[-1] != 1:
        raise BadInput("stages", stages, "do not rise from above 0 to 1", "send shares such as 0.01, 0.1, 0.5, 1")
    limits = {"hold_seconds": (wish.hold_seconds, MOST_HOLD_SECONDS), "least": (wish.least, 1e9), "errors": (wish.errors, 1), "scores": (wish.scores, 1)}  # fmt: skip
    for field, (value, most) in limits.items():
        if not 0 <= value <= most:
            raise BadInput(field, value, f"is not from 0 to {most:g}", "look at: cellwork endpoint rollout --help")
    if wish.slower < 1:
        raise BadInput("slower", wish.slower, "asks it to be quicker", "send at least 1")


def _own_call() -> Call:
    """Return a call by which the service itself changes a table; the audit names it."""
    return Call(Principal(kind="service", name="rollout"), ids.new("req"), Origin(), {}, {}, None, {})
