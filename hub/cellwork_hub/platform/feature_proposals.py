"""Definitions of somebody who may not apply them wait as proposals; and Feast's own registry, as its clients keep it.

A proposal is open until somebody with `features:apply` accepts or rejects it, once. Accepting applies exactly what was proposed, checked
again against the data of then; unless other definitions were applied since, which that would take back. Everything is written in the
transaction of its audit.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any

import msgspec
from sqlalchemy import text

from cellwork import clock, files, ids
from cellwork.errors import Conflict, NotFound
from cellwork.wire.features import Applied, Definitions, Proposal
from cellwork_hub import records
from cellwork_hub.platform import feature_definitions
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

MIGRATION = (
    "CREATE TABLE feature_proposals (id TEXT PRIMARY KEY, project TEXT NOT NULL, body {json} NOT NULL, record {json} NOT NULL, "
    "state TEXT NOT NULL, at BIGINT NOT NULL)",
)
_deciding: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
"""By project, held while definitions are applied or a proposal is decided: what a decision looked at holds until it is kept."""


def apply_or_propose(state: State, call: Call, wanted: Definitions) -> Applied:
    """Apply `wanted` for somebody who may; for others check it and keep it as a proposal. What is the same changes nothing."""
    if "features:apply" in call.principal.scopes:
        with _deciding[wanted.project]:
            return feature_definitions.apply(state, call, wanted)
    feature_definitions.check(state, wanted)
    before, revision = _newest(state, wanted.project)
    changed, removed = feature_definitions.difference(before, wanted)
    if not changed and not removed:
        return Applied(project=wanted.project, revision=revision, changed=[])
    made = Proposal(
        id=ids.new("prop"), project=wanted.project, by=call.principal.name, at=clock.now(), state="open",
        changed=changed, removed=removed, base=revision,
    )  # fmt: skip
    with state.engine.begin() as db:
        values = {
            "id": made.id, "p": made.project, "b": msgspec.json.encode(wanted).decode(),
            "r": msgspec.json.encode(made).decode(), "at": records.micros(made.at),
        }  # fmt: skip
        db.execute(text("INSERT INTO feature_proposals VALUES (:id, :p, :b, :r, 'open', :at)"), values)
        records.audit(
            db,
            call,
            "features.propose",
            made.project,
            after={"proposal": made.id, "changed": changed, "removed": removed},
        )
    return Applied(project=wanted.project, revision=revision, changed=changed, removed=removed, proposal=made.id)


def decide(state: State, call: Call, project: str, proposal: str, *, accept: bool) -> Proposal:
    """Accept a proposal, which applies it, or reject it.

    Raises
    ------
    NotFound
        There is no such proposal in `project`.
    Conflict
        It was decided before; or it would be accepted, and other definitions were applied since it was made.
    """
    with _deciding[project]:
        found, body = _get(state, project, proposal)
        if found.state != "open":
            raise Conflict("proposal", proposal, f"was {found.state} by {found.decided_by} before", "propose it again")
        if accept:
            wanted = msgspec.json.decode(body, type=Definitions)
            _check_base(state, found, wanted)
            feature_definitions.apply(state, call, wanted)
        return _decided(state, call, found, accept=accept)


def _newest(state: State, project: str) -> tuple[Definitions, int]:
    try:
        return feature_definitions.definitions(state, project)
    except NotFound:
        return Definitions(project=project), 0


def _check_base(state: State, found: Proposal, wanted: Definitions) -> None:
    """Raise Conflict if `wanted` would take back what was applied since it was proposed."""
    newest, revision = _newest(state, found.project)
    if revision != found.base and any(feature_definitions.difference(newest, wanted)):
        verdict = f"was made against revision {found.base}, but revision {revision} was applied since; it would take that back"
        way_out = f"propose it again on top of that, and reject this one: cellwork feature accept {found.id} --reject"
        raise Conflict("proposal", found.id, verdict, way_out)


def _decided(state: State, call: Call, found: Proposal, *, accept: bool) -> Proposal:
    found = msgspec.structs.replace(found, state="accepted" if accept else "rejected", decided_by=call.principal.name)
    with state.engine.begin() as db:
        values = {"id": found.id, "s": found.state, "r": msgspec.json.encode(found).decode()}
        query = "UPDATE feature_proposals SET state = :s, record = :r WHERE id = :id AND state = 'open'"
        if not db.execute(text(query), values).rowcount:
            raise Conflict("proposal", found.id, "was decided meanwhile", "look at: cellwork feature proposals")
        action = "features.accept" if accept else "features.reject"
        records.audit(db, call, action, found.project, after={"proposal": found.id})
    return found


def _get(state: State, project: str, proposal: str) -> tuple[Proposal, Any]:
    with state.engine.connect() as db:
        row = db.execute(
            text("SELECT record, body FROM feature_proposals WHERE id = :id AND project = :p"),
            {"id": proposal, "p": project},
        ).first()
    if row is None:
        raise NotFound("proposal", proposal, "does not exist", "look at: cellwork feature proposals")
    return msgspec.json.decode(row.record, type=Proposal), row.body


def listing(state: State, project: str) -> list[Proposal]:
    """Return the proposals of a project, oldest first."""
    with state.engine.connect() as db:
        rows = db.execute(
            text("SELECT record FROM feature_proposals WHERE project = :p ORDER BY at, id"), {"p": project}
        )
        return [msgspec.json.decode(row.record, type=Proposal) for row in rows]


def routes(state: State) -> list[Route]:
    def get_proposals(call: Call) -> list[Proposal]:
        return listing(state, call.path["project"])

    def post_accept(call: Call) -> Proposal:
        return decide(state, call, call.path["project"], call.path["proposal"], accept=True)

    def post_reject(call: Call) -> Proposal:
        return decide(state, call, call.path["project"], call.path["proposal"], accept=False)

    def get_registry(call: Call) -> bytes:
        project = call.path["project"]
        feature_definitions.definitions(state, project)
        call.media_type = "application/x-protobuf"
        try:
            return state.home.feast_registry(project).read_bytes()
        except FileNotFoundError:
            raise NotFound("Feast registry of project", project, "was not applied", "apply the definitions") from None

    def put_registry(call: Call) -> None:
        project = call.path["project"]
        feature_definitions.definitions(state, project)
        files.write(state.home.feast_registry(project), call.body, mode=0o600)
        with state.engine.begin() as db:  # the registry carries code of on-demand views, hence the scope
            records.audit(db, call, "features.registry", project, after={"bytes": len(call.body)})

    one = "/api/v1/features/{project}/proposals/{proposal}"
    return [
        Route("GET", "/api/v1/features/{project}/proposals", get_proposals, scope="features:read", answer=list[Proposal], doc="Proposed definitions, oldest first."),
        Route("POST", f"{one}/accept", post_accept, scope="features:apply", answer=Proposal, doc="Apply proposed definitions."),
        Route("POST", f"{one}/reject", post_reject, scope="features:apply", answer=Proposal, doc="Refuse proposed definitions."),
        Route("GET", "/api/v1/features/{project}/registry", get_registry, scope="features:read", answer=bytes, doc="Feast's own registry, as its protobuf."),
        Route("PUT", "/api/v1/features/{project}/registry", put_registry, scope="features:apply", body=bytes, doc="Keep Feast's registry as its clients moved it; definitions do not change by it."),
    ]  # fmt: skip
