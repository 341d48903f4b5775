"""The gate's verdict, and the moves of `champion` and `previous`, which the platform's token alone makes.

A move is three steps: it is noted as begun, with its audit, in one transaction; the aliases are set in MLflow; it is noted as done, with
its event and lineage, in another. A process that ends between them leaves a begun move, of which a model has at most one; whoever asks for
that model next sets its aliases again, which changes nothing where they were set, and ends it. So `champion` and the record of who moved it
agree as soon as anybody looks, and no move is announced twice. A move names the one before it: of two at a time, one is told to ask again.

`champion` goes forward to a version that passes the gate, and back along the versions that were champion before: what was rolled back is not
gone back to. The way back asks the gate nothing but whether the content is what it was, so that rules never stand between a fault and its mend.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict

import msgspec
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from cellwork import clock, ids
from cellwork.client import Client
from cellwork.errors import Conflict, NotFound, Refused
from cellwork.models import versions
from cellwork.models.versions import Version
from cellwork.wire.evaluations import VersionRef
from cellwork.wire.gate import Check, Gate, Override, Promoted, Promotion, Rollback
from cellwork_hub import records
from cellwork_hub.platform import gate_checks, gate_rules, scoring
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call

_moving: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
"""By model: what one project's gate computes holds nobody else up, nor a rollback of the same model."""


def gate(state: State, name: str, number: int, promoter: str = "") -> Gate:
    """Return what the gate says about a version, where `promoter` brings it to traffic, if named; raises NotFound if there is none."""
    with state.context.client("cellwork") as client:
        _settle(state, client, name)
        return _gate(state, client, versions.get(client, name, number), promoter)


def _gate(state: State, client: Client, version: Version, promoter: str = "") -> Gate:
    kept = gate_rules.kept(state, ids.split_name(version.name)[0])
    team, author = state.context.settings.trust == "team", version.tags.get("user", "")
    words = [word for word in gate_rules.overrides(state, version.ref) if not (team and word.by == author)]
    checks = [
        _passed_by(check, words, promoter if team else "")
        for check in gate_checks.lines(gate_checks.Asked(state, client, version, kept))
    ]
    return Gate(version=version.ref, passed=all(check.passed for check in checks), checks=checks, rules=kept.revision)


def _passed_by(check: Check, words: list[Override], promoter: str) -> Check:
    """Let a line pass that somebody else than `promoter` gave their word for, as long as it says what it said then."""
    said = [word for word in words if (word.check, word.found) == (check.name, check.text)]
    if check.passed or check.name in gate_rules.NEVER or not said:
        return check
    others = [word for word in said if word.by != promoter]
    if not others:
        return msgspec.structs.replace(
            check, way_out=f"{promoter} let it pass: have somebody else promote or deploy it"
        )
    word = others[-1]
    return msgspec.structs.replace(check, passed=True, override=f"{word.by} let it pass: {word.reason}")


def promote(state: State, call: Call, request: Promotion) -> Promoted:
    """Move `champion` to a version that passes the gate; the old champion becomes `previous`. Saying it twice changes nothing.

    Raises
    ------
    NotFound
        There is no such version.
    Refused
        The gate does not pass; each failed check is named, and the refusal is in the audit.
    Conflict
        The champion was moved by somebody else in the meantime.
    """
    with state.context.client("cellwork") as client:
        _settle(state, client, request.name)
        version = versions.get(client, request.name, request.version)
        last, stack = history(state, version.name)
        found = _gate(state, client, version, call.principal.name)
        if not found.passed:
            raise _refused(state, call, version, found, request.reason)
        left = stack[-1] if stack else None
        move = Promoted(
            version=version.ref, previous=left, gate=found, at=clock.now(), by=call.principal.name, reason=request.reason, left=left
        )  # fmt: skip
        with _moving[version.name]:
            _, stack = history(state, version.name)
            if stack and stack[-1].version == version.version:
                return moves(state, version.name, 1)[0]
            return _move(state, client, call, move, last)


def rollback(state: State, call: Call, request: Rollback) -> Promoted:
    """Make the champion before the champion again.

    Raises
    ------
    Conflict
        There is none before it, or another version is champion than the one that is to go.
    Refused
        The content of the one before is not what it was.
    """
    with _moving[request.name], state.context.client("cellwork") as client:
        _settle(state, client, request.name)
        last, stack = history(state, request.name)
        if request.version and (not stack or stack[-1].version != request.version):
            done = moves(state, request.name, 1)
            if done and done[0].kind == "rolled_back" and done[0].left and done[0].left.version == request.version:
                return done[0]
            now = f"version {stack[-1].version}" if stack else "none"
            raise Conflict(
                f"champion of {request.name}", now, f"is not version {request.version}", "look at: cellwork model moves"
            )
        if len(stack) < 2:
            raise Conflict(
                "model", request.name, "has no champion before this one to go back to", "promote another version"
            )
        left, back = stack[-1], stack[-2]
        scoring.unchanged(client, versions.get(client, back.name, back.version))
        move = Promoted(
            version=back, previous=stack[-3] if len(stack) > 2 else None, gate=None, at=clock.now(), kind="rolled_back",
            by=call.principal.name, reason=request.reason, left=left,
        )  # fmt: skip
        return _move(state, client, call, move, last)


def history(state: State, name: str) -> tuple[int, list[VersionRef]]:
    """Return the number of the last move of `champion`, 0 for none, and the champions one can go back along, the present one last."""
    query = "SELECT seq, record FROM promotions WHERE name = :n AND state = 'done' ORDER BY seq"
    last, stack = 0, list[VersionRef]()
    with state.engine.connect() as db:
        for row in db.execute(text(query), {"n": name}):
            move = msgspec.json.decode(row.record, type=Promoted)
            last, stack = row.seq, [*stack, move.version] if move.kind == "promoted" else stack[:-1]
    return last, stack


def moves(state: State, name: str, limit: int) -> list[Promoted]:
    """Return the moves of the model's champion, newest first."""
    query = "SELECT record FROM promotions WHERE name = :n AND state = 'done' ORDER BY seq DESC LIMIT :limit"
    with state.engine.connect() as db:
        return [
            msgspec.json.decode(row.record, type=Promoted)
            for row in db.execute(text(query), {"n": name, "limit": limit})
        ]


def _move(state: State, client: Client, call: Call, move: Promoted, last: int) -> Promoted:
    name = move.version.name
    try:
        with state.engine.begin() as db:
            _begin(db, call, move, last)
    except IntegrityError:
        raise Conflict("champion of", name, "is being moved by somebody else", "ask again") from None
    _settle(state, client, name)
    return move


def _begin(db: Connection, call: Call, move: Promoted, last: int) -> None:
    name = move.version.name
    seen = db.execute(text("SELECT coalesce(max(seq), 0) FROM promotions WHERE name = :n"), {"n": name}).scalar_one()
    if seen != last:
        raise Conflict("champion of", name, "was moved by somebody else in the meantime", "look at it, and ask again")
    insert = "INSERT INTO promotions (name, version, record, state) VALUES (:n, :v, :r, 'begun')"
    db.execute(text(insert), {"n": name, "v": move.version.version, "r": msgspec.json.encode(move).decode()})
    words = [f"{check.name}: {check.override}" for check in move.gate.checks if check.override] if move.gate else []
    after = {
        "champion": _subject(move.version),
        "digest": move.version.digest,
        **({"overrides": words} if words else {}),
    }
    action = "model.promote" if move.kind == "promoted" else "model.rollback"
    records.audit(db, call, action, _subject(move.version), before=_subject(move.left), after=after, reason=move.reason)


def _settle(state: State, client: Client, name: str) -> None:
    """End the move that was begun for `name`, if there is one."""
    with state.engine.connect() as db:
        row = db.execute(
            text("SELECT seq, record FROM promotions WHERE name = :n AND state = 'begun'"), {"n": name}
        ).first()
    if row is None:
        return
    move = msgspec.json.decode(row.record, type=Promoted)
    versions.set_alias(client, name, "champion", move.version.version)
    if move.previous is not None:
        versions.set_alias(client, name, "previous", move.previous.version)
    else:
        with contextlib.suppress(NotFound):
            versions.delete_alias(client, name, "previous")
    with state.engine.begin() as db:
        if db.execute(
            text("UPDATE promotions SET state = 'done' WHERE seq = :s AND state = 'begun'"), {"s": row.seq}
        ).rowcount:
            _announce(db, move)


def _announce(db: Connection, move: Promoted) -> None:
    name, subject = move.version.name, _subject(move.version)
    if move.left and move.kind == "promoted":
        records.edge(db, subject, "supersedes", _subject(move.left))
    data = {"model": name, "version": move.version.version, "digest": move.version.digest, "reason": move.reason}
    project = ids.split_name(name)[0]
    records.event(db, f"model.{move.kind}", project, subject, **data, previous=_subject(move.left))


def _refused(state: State, call: Call, version: Version, found: Gate, reason: str) -> Refused:
    failed = [check for check in found.checks if not check.passed]
    said = "; ".join(f"{check.name}: {check.text}" for check in failed)
    with state.engine.begin() as db:
        records.audit(db, call, "model.promote.refused", version.subject, after=said, reason=reason)
    way_out = failed[0].way_out or f"look at: cellwork model gate {version.subject}"
    return Refused("version", version.subject, f"does not pass the gate ({said})", way_out)


def _subject(ref: VersionRef | None) -> str:
    return versions.subject(ref.name, ref.version) if ref else ""
