"""What the gate goes by in a project: its rules by revision, and the overrides of single lines.

Rules are the project's `[gate]`, kept here because a caller's own file could say anything; setting them takes `models:promote`. In `team`
trust two people stand behind what passes: rules that a version's author set after registering it do not let it pass, and an override is
the word of somebody who neither made the version nor promotes it. An override holds for one content and for what the line said then.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from cellwork import clock, ids
from cellwork.client import Client
from cellwork.errors import BadInput, Conflict, Refused, near_miss
from cellwork.evaluation import metrics
from cellwork.models import versions
from cellwork.wire.evaluations import VersionRef
from cellwork.wire.gate import Gate, KeptRules, Override, OverrideRequest, Rules, RulesRequest
from cellwork_hub import records
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call

NEVER = frozenset({"content", "code", "sanity"})
"""Lines that nobody overrides: what is promoted has to be what was registered, and to answer."""


def kept(state: State, project: str) -> KeptRules:
    """Return the rules that hold in `project`."""
    query = "SELECT record FROM gate_rules WHERE project = :p ORDER BY revision DESC LIMIT 1"
    with state.engine.connect() as db:
        record = db.execute(text(query), {"p": ids.name(project, "project")}).scalar()
    return (
        msgspec.json.decode(record, type=KeptRules) if record else KeptRules(project=project, revision=0, rules=Rules())
    )


def keep(state: State, call: Call, request: RulesRequest) -> KeptRules:
    """Make these the rules of their project; what the same person set before changes nothing.

    Raises
    ------
    BadInput
        They name a metric that there is not.
    Conflict
        Somebody else set them at the same moment.
    """
    _check(request.rules)
    before = kept(state, request.project)
    wanted = KeptRules(
        project=before.project, revision=before.revision + 1, rules=request.rules, owner=request.owner, contact=request.contact,
        by=call.principal.name, at=clock.now(),
    )  # fmt: skip
    if msgspec.structs.replace(wanted, revision=before.revision, at=before.at) == before:
        return before
    values = {"p": wanted.project, "r": wanted.revision, "record": msgspec.json.encode(wanted).decode()}
    try:
        with state.engine.begin() as db:
            db.execute(text("INSERT INTO gate_rules VALUES (:p, :r, :record)"), values)
            records.audit(db, call, "gate.rules", wanted.project, before=before, after=wanted)
    except IntegrityError:
        way_out = "look at them, and ask again"
        raise Conflict("rules of project", wanted.project, "were just set by somebody else", way_out) from None
    return wanted


def _check(rules: Rules) -> None:
    known = [name for names in metrics.NAMES.values() for name in names]
    for name in [*rules.least, *rules.most, *([rules.metric] if rules.metric else [])]:
        if name not in known:
            raise BadInput("metric of the gate", name, "is not known", near_miss(name, known))


def overrides(state: State, ref: VersionRef) -> list[Override]:
    """Return what was said about this version with this content, oldest first."""
    query = "SELECT record FROM gate_overrides WHERE name = :n AND version = :v AND digest = :d ORDER BY id"
    with state.engine.connect() as db:
        rows = db.execute(text(query), {"n": ref.name, "v": ref.version, "d": ref.digest})
        return [msgspec.json.decode(row.record, type=Override) for row in rows]


def override(state: State, client: Client, call: Call, request: OverrideRequest, found: Gate) -> Override:
    """Keep the caller's word that one line of `found`, which blocks, may be passed.

    Raises
    ------
    BadInput
        There is no such line, it does not block, or no reason is given.
    Refused
        The line is one that nobody overrides, or in `team` trust the version is the caller's own.
    """
    line = next((check for check in found.checks if check.name == request.check), None)
    subject = versions.subject(request.name, request.version)
    if line is None or line.passed:
        blocking = [check.name for check in found.checks if not check.passed]
        raise BadInput(
            f"line of the gate for {subject}", request.check, "does not block", near_miss(request.check, blocking)
        )
    if not request.reason.strip():
        raise BadInput("reason of an override", request.reason, "is empty", "say why it may pass all the same")
    if line.name in NEVER:
        raise Refused(
            f"line of the gate for {subject}",
            line.name,
            "is one that nobody overrides",
            line.way_out or "register it again",
        )
    if call.bounded and versions.get(client, request.name, request.version).tags.get("user") == call.principal.name:
        raise Refused(
            "version",
            subject,
            f"was made by {call.principal.name!r}, who can't let it pass",
            "ask somebody else for an override",
        )
    made = Override(
        id=ids.new("ovr"), version=found.version, check=line.name, found=line.text, reason=request.reason.strip(),
        by=call.principal.name, at=clock.now(),
    )  # fmt: skip
    with state.engine.begin() as db:
        values = {"id": made.id, "n": found.version.name, "v": found.version.version, "d": found.version.digest}
        record = msgspec.json.encode(made).decode()
        db.execute(text("INSERT INTO gate_overrides VALUES (:id, :n, :v, :d, :record)"), {**values, "record": record})
        records.audit(
            db, call, "gate.override", subject, after={"check": made.check, "found": made.found}, reason=made.reason
        )
    return made
