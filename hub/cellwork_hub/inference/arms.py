"""Versions beside the live one: canaries, shadows and pinned versions, put there, changed and taken out. All may be asked for twice."""

from __future__ import annotations

from anyio import to_thread

from cellwork.errors import BadInput
from cellwork.wire.endpoints import Arm, ArmWish
from cellwork_hub.inference import table as tables
from cellwork_hub.inference.deploy import Endpoints, made, of_project, there
from cellwork_hub.inference.table import Entry
from cellwork_hub.route import Call

MOST_ARMS = 8


async def put(endpoints: Endpoints, call: Call, endpoint: str, version: int, wish: ArmWish) -> Entry:
    """Put a version beside the live one, or change its place.

    A shadow answers nobody, not even who names it, so that it needs to pass the sanity test only.

    Raises
    ------
    BadInput
        A weight that is not from 0 to 1, or more than all units together; it is the live version.
    Refused, Conflict
        As `Endpoints.deploy` does.
    """
    name = of_project(wish.model or endpoint, endpoint)
    before = await to_thread.run_sync(endpoints.table.require, endpoint)
    tables.check_seen(endpoint, wish.revision, before)
    _check(before, name, version, wish)
    old = before.arm(name, version)
    if old is not None and old.shadow == wish.shadow:
        ready, new = None, before.deployed[old.deployment]
    else:
        ready = await endpoints.ready(call, endpoint, name, version, gated=not wish.shadow)
        new = made(call, endpoint, before.revision + 1, ready)
    arm = Arm(
        version=new.record.version, deployment=new.record.id, weight=wish.weight, units=sorted(set(wish.units)),
        when=wish.when, shadow=wish.shadow,
    )  # fmt: skip
    if arm == old and wish.salt in (None, before.beside.salt):
        return before
    kind = "shadow" if wish.shadow else "canary" if wish.weight or wish.units or wish.when else "pin"
    return await endpoints.change(
        call, endpoint, before.revision, lambda entry: there(entry).with_arm(new, arm, wish.salt), ready,
        action=f"endpoint.{kind}", reason=wish.reason,
    )  # fmt: skip


async def remove(
    endpoints: Endpoints, call: Call, endpoint: str, version: int, *, model: str, revision: int | None, reason: str
) -> Entry:
    """Take a version from beside the live one; if it is not there nothing changes."""
    before = await to_thread.run_sync(endpoints.table.require, endpoint)
    tables.check_seen(endpoint, revision, before)
    arm = before.arm(model or endpoint, version)
    if arm is None:
        return before
    return await endpoints.change(
        call, endpoint, before.revision, lambda entry: there(entry).without_arm(arm), None,
        action="endpoint.remove", reason=reason,
    )  # fmt: skip


def _check(before: Entry, name: str, version: int, wish: ArmWish) -> None:
    subject, live = f"version {name}@{version}", before.live.record.version
    others = [arm for arm in before.beside.arms if (arm.version.name, arm.version.version) != (name, version)]
    if (live.name, live.version) == (name, version):
        raise BadInput(subject, "", f"is live at {before.name}", "deploy another version first")
    rolling = before.rolling
    if rolling is not None and ((rolling.version.name, rolling.version.version) == (name, version) or wish.weight):
        way_out = f"stop the rollout first: cellwork endpoint stop {before.name}"
        raise BadInput(subject, "", f"can't be changed while version {rolling.version.version} is rolled out", way_out)
    if not 0 <= wish.weight <= 1:
        raise BadInput("weight", wish.weight, "is not a share", "send a number from 0 to 1")
    total = wish.weight + sum(arm.weight for arm in others)
    if total > 1 + 1e-9:
        raise BadInput("weight", wish.weight, f"makes {total:.0%} of units together", "lower another canary first")
    if wish.shadow and (wish.weight or wish.units or wish.when):
        way_out = "ask for a shadow, or for weight, units or conditions"
        raise BadInput(subject, "", "is to be a shadow and to answer", way_out)
    if len(others) >= MOST_ARMS:
        raise BadInput(subject, "", f"would be one of more than {MOST_ARMS} beside the live one", "remove one first")
