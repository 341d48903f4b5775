"""Deploy, route, roll back and ask endpoints from a notebook, a script or the command line: the same calls over HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cellwork.client import Client, connect
from cellwork.errors import BadInput
from cellwork.wire.endpoints import Answer, ArmWish, Deploy, Request, RolloutWish, RouteTable, Row


def deploy(
    endpoint: str,
    version: int,
    *,
    model: str = "",
    promote: bool = False,
    revision: int | None = None,
    reason: str = "",
    client: Client | None = None,
) -> RouteTable:
    """Give `endpoint` a version that passes the gate and the sanity test; the one it had stays at hand.

    Parameters
    ----------
    endpoint : full name ``project/name``.
    model : full name of the model; default the endpoint's own.
    promote : move the model's alias `champion` to the version first.
    revision : the route table's revision that you saw; if it changed since, nothing happens.

    Raises
    ------
    Refused
        The gate or the sanity test says no.
    Conflict
        Someone else changed the endpoint meanwhile.
    """
    client = client or connect()
    if promote:
        client.gate.promote(model or endpoint, version, reason)
    return client.endpoints.deploy(endpoint, Deploy(version=version, model=model, revision=revision, reason=reason))


def rollback(endpoint: str, reason: str = "", *, client: Client | None = None) -> RouteTable:
    """Serve the previous version again, within a second; raises Conflict if there is none."""
    return (client or connect()).endpoints.rollback(endpoint, reason)


def beside(endpoint: str, version: int, wish: ArmWish, *, client: Client | None = None) -> RouteTable:
    """Put `version` beside the live one: as a canary, a shadow, or pinned. Called again it changes its place.

    With a weight, units or conditions it is a canary and answers that part of the requests; a unit that was its own stays its own while
    the weight grows. A shadow scores in the background what the endpoint answers, and needs no gate, for it answers nobody, not even
    who names it. With neither it is kept warm: requests that name it get it, and deploying it then takes no time (blue-green).

    Example: beside("flights/delay", 3, ArmWish(weight=0.1))

    Raises
    ------
    Refused
        The gate or the sanity test says no.
    Conflict
        Someone else changed the endpoint since the revision that was seen.
    """
    return (client or connect()).endpoints.put_arm(endpoint, version, wish)


def remove(
    endpoint: str,
    version: int,
    *,
    model: str = "",
    revision: int | None = None,
    reason: str = "",
    client: Client | None = None,
) -> RouteTable:
    """Take a canary, shadow or pinned version out; the live version answers in its place."""
    return (client or connect()).endpoints.remove_arm(endpoint, version, model=model, revision=revision, reason=reason)


def roll_out(endpoint: str, wish: RolloutWish, *, client: Client | None = None) -> RouteTable:
    """Bring a version to all requests in stages; it goes on, or back, by its errors, times and scores beside the live one's.

    Raises
    ------
    Refused
        The gate or the sanity test says no.
    Conflict
        Another version is on its way, or someone else changed the endpoint.
    """
    return (client or connect()).endpoints.roll_out(endpoint, wish)


def predict(
    endpoint: str,
    entities: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    features: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    *,
    id: str = "",
    unit: str = "",
    version: int | None = None,
    observations: Sequence[str] = (),
    explain: bool = False,
    client: Client | None = None,
) -> Answer:
    """Score one row, or one a list entry: `entities` are looked up online, `features` come with the request.

    `unit` is who is served, and stays with its arm; `version` asks one of those at hand and no other. `observations`, alone, ask for what
    a batch has scored of them; with `explain` the answer says what each column contributed.

    Example: predict("flights/delay", {"origin": "JFK"}, {"hour": 8})

    Raises
    ------
    BadInput
        Lists of different lengths, an unknown name, a wrong type.
    """
    ids, values = _listed(entities), _listed(features)
    if ids and values and len(ids) != len(values):
        raise BadInput("rows", f"{len(ids)} and {len(values)}", "differ in number", "give one of each a row")
    count = max(len(ids), len(values))
    rows = [Row(entities=dict(ids[k]) if ids else {}, features=dict(values[k]) if values else {}) for k in range(count)]
    if observations and not rows:
        rows = [Row(observation=observation) for observation in observations]
    asked = Request(rows=rows, id=id, unit=unit, version=version, explain=explain)
    return (client or connect()).endpoints.predict(endpoint, asked)


def _listed(values: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [values] if isinstance(values, Mapping) else list(values)
