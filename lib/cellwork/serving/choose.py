"""Who answers a request: pure functions of a route table and what the request says, the same in every process.

    a version it names                      -> pinned; nobody answers in its place, and a shadow answers nobody
    its unit stands in an arm's list        -> canary
    its values meet an arm's conditions     -> canary
    hash(endpoint, salt, unit) < the weight -> canary
    else                                    -> live

A unit stays where it is while the table stands, whichever process it asks; raising an arm's weight takes no unit from that arm.
Whoever fails is answered for by the next: a canary by the live version, that one by the previous.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cellwork.errors import Conflict, NotFound, Refused
from cellwork.serving.inline import Inline
from cellwork.serving.plan import Plan
from cellwork.serving.predictor import Predictor
from cellwork.wire.endpoints import Arm, InputRule, Request, RouteKind, Row
from cellwork.wire.evaluations import VersionRef


@dataclass(frozen=True)
class Served:
    """A version that is loaded, and the deployment that brought it here."""

    ref: VersionRef
    deployment: str
    plan: Plan
    predictor: Predictor | Inline


@dataclass(frozen=True)
class Beside:
    """A version beside the live one."""

    served: Served
    arm: Arm


@dataclass(frozen=True)
class Routes:
    """A route table with its versions loaded; never changed, only replaced."""

    endpoint: str
    revision: int
    live: Served
    previous: Served | None = None
    arms: tuple[Beside, ...] = ()
    salt: str = ""
    input: InputRule | None = None

    @cached_property
    def canaries(self) -> tuple[Beside, ...]:
        """Those that answer requests which do not name them."""
        return tuple(b for b in self.arms if not b.arm.shadow and (b.arm.weight > 0 or b.arm.units or b.arm.when))

    @cached_property
    def shadows(self) -> tuple[Served, ...]:
        return tuple(b.served for b in self.arms if b.arm.shadow)

    @cached_property
    def answering(self) -> dict[str, Served]:
        """Full name -> version, of those that may be named; one that stands in two places is the first's."""
        beside, found = (b.served for b in self.arms if not b.arm.shadow), dict[str, Served]()
        for each in (self.live, *beside, *((self.previous,) if self.previous else ())):
            found.setdefault(f"{each.ref.name}@{each.ref.version}", each)
        return found

    @property
    def served(self) -> tuple[Served, ...]:
        """Every version at hand."""
        return (self.live, *(b.served for b in self.arms), *((self.previous,) if self.previous else ()))


@dataclass(frozen=True)
class Choice:
    """Who is asked, in order; `route` and `reason` are said if the first one answers."""

    routes: Routes
    chain: tuple[Served, ...]
    route: RouteKind
    reason: str = ""


def choose(routes: Routes, request: Request, otherwise: str) -> Choice:
    """Return who answers `request`; `otherwise` is its unit if it has neither unit nor entities.

    Raises
    ------
    NotFound, Refused, Conflict
        It names a version that is not at hand, that is a shadow, or a number that versions of several models have.
    """
    if request.version is not None:
        return Choice(routes, (named(routes, request.version),), "pinned", f"version {request.version} was asked for")
    standing = (routes.live, *((routes.previous,) if routes.previous else ()))
    if not routes.canaries:
        return Choice(routes, standing, "live")
    first = request.rows[0] if request.rows else Row()
    unit, values = request.unit or unit_of(first.entities) or otherwise, {**first.features, **first.entities}
    found = arm([beside.arm for beside in routes.canaries], unit, values, position(routes.endpoint, routes.salt, unit))
    if found is None:
        return Choice(routes, standing, "live")
    number, reason = found
    return Choice(routes, (routes.canaries[number].served, *standing), "canary", reason)


def named(routes: Routes, version: int) -> Served:
    """Return the version of this number that answers who names it.

    Raises
    ------
    NotFound, Refused
        None is at hand; it is a shadow, which has not passed the gate.
    Conflict
        Several models have one of this number here: nobody is taken for another.
    """
    found = {name: served for name, served in routes.answering.items() if served.ref.version == version}
    if len(found) > 1:
        raise Conflict(
            "version", version, f"is said of several at {routes.endpoint}: {', '.join(sorted(found))}",
            "leave the version out to ask the live one, or take the other out: cellwork endpoint remove",
        )  # fmt: skip
    if not found:
        raise _unnamed(routes, version)
    return next(iter(found.values()))


def _unnamed(routes: Routes, version: int) -> NotFound | Refused:
    """Return what who names `version` is told if none that answers has that number."""
    shadow = next((served for served in routes.shadows if served.ref.version == version), None)
    model = f" --model {shadow.ref.name}" if shadow and shadow.ref.name != routes.endpoint else ""
    pin = f"pin it there: cellwork endpoint pin {routes.endpoint} {version}{model}"
    if shadow:
        return Refused("version", version, f"is a shadow at {routes.endpoint}, which answers nobody", pin)
    several = len({served.ref.name for served in routes.answering.values()}) > 1
    has = ", ".join(name if several else str(served.ref.version) for name, served in routes.answering.items())
    return NotFound("version", version, f"is not at hand at {routes.endpoint} (has: {has})", pin)


def arm(arms: Sequence[Arm], unit: str, values: Mapping[str, Any], place: float) -> tuple[int, str] | None:
    """Return which of `arms` answers the unit at `place`, and why; None: none of them."""
    for number, each in enumerate(arms):
        if unit in each.units:
            return number, "its unit is in the list"
    for number, each in enumerate(arms):
        if each.when and all(text(values.get(name)) in wanted for name, wanted in each.when.items()):
            return number, ", ".join(f"{name}={text(values.get(name))}" for name in each.when)
    below = 0.0
    for number, each in enumerate(arms):
        below += each.weight
        if place < below:
            return number, f"{each.weight:.3%} of units".replace(".000%", "%")
    return None


def position(endpoint: str, salt: str, unit: str) -> float:
    """Return where `unit` lies between 0 and 1: evenly spread, and the same for ever. The parts' boundaries count."""
    parts = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in (endpoint, salt, unit))
    return int.from_bytes(hashlib.blake2b(parts, digest_size=8).digest()[:7], "big") / 2**56


def unit_of(entities: Mapping[str, Any]) -> str:
    """Return the unit that entities make: the same for the same ids, in whatever order and type they come."""
    return "&".join(f"{name}={text(entities[name])}" for name in sorted(entities))


def text(value: Any) -> str:
    """Return a value as conditions are written: ``true``, ``3`` for 3.0, nothing for none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
