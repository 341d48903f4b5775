"""Deploy, roll back and ask endpoints from a notebook, a script or the command line: the same calls over HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cellwork.client import Client, connect
from cellwork.errors import BadInput
from cellwork.wire.endpoints import Answer, Deploy, Request, RouteTable, Row


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
        client.evaluations.promote(model or endpoint, version, reason)
    return client.endpoints.deploy(endpoint, Deploy(version=version, model=model, revision=revision, reason=reason))


def rollback(endpoint: str, reason: str = "", *, client: Client | None = None) -> RouteTable:
    """Serve the previous version again, within a second; raises Conflict if there is none."""
    return (client or connect()).endpoints.rollback(endpoint, reason)


def predict(
    endpoint: str,
    entities: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    features: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    *,
    id: str = "",
    client: Client | None = None,
) -> Answer:
    """Score one row, or one a list entry: `entities` are looked up online, `features` come with the request.

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
    return (client or connect()).endpoints.predict(endpoint, Request(rows=rows, id=id))


def _listed(values: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [values] if isinstance(values, Mapping) else list(values)
