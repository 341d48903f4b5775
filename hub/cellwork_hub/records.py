"""Events, audit and lineage: three tables that every service keeps, written in the transaction of what they are about."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, TextClause, text

from cellwork import clock, ids
from cellwork.errors import Refused
from cellwork.wire.records import AuditRow, Edge, Event
from cellwork_hub.edge import Call, Route
from cellwork_hub.route import visible

MIGRATION = (
    "CREATE TABLE events (seq {serial}, id TEXT UNIQUE NOT NULL, name TEXT NOT NULL, project TEXT NOT NULL, subject TEXT NOT NULL, at BIGINT NOT NULL, data {json} NOT NULL)",
    "CREATE INDEX events_name ON events (name, seq)",
    "CREATE TABLE edges (source TEXT NOT NULL, relation TEXT NOT NULL, target TEXT NOT NULL, at BIGINT NOT NULL, PRIMARY KEY (source, relation, target))",
    "CREATE INDEX edges_target ON edges (target)",
    "CREATE TABLE audit (seq {serial}, at BIGINT NOT NULL, principal TEXT NOT NULL, action TEXT NOT NULL, subject TEXT NOT NULL, before TEXT NOT NULL, after TEXT NOT NULL, "
    "reason TEXT NOT NULL, request_id TEXT NOT NULL, chain TEXT NOT NULL)",
)
"""The first migration of every service's database."""


@functools.lru_cache(maxsize=1024)
def parsed(statement: str) -> TextClause:
    """Return `statement` as SQLAlchemy executes it. Reading one costs as much as SQLite's work, and the same come again and again."""
    return text(statement)


micros, moment = clock.micros, clock.moment


def event(db: Connection, name: str, project: str, subject: str, **data: Any) -> None:
    db.execute(
        parsed(
            "INSERT INTO events (id, name, project, subject, at, data) VALUES (:id, :name, :project, :subject, :at, :data)"
        ),
        {
            "id": ids.new("evt"),
            "name": name,
            "project": project,
            "subject": subject,
            "at": micros(clock.now()),
            "data": msgspec.json.encode(data).decode(),
        },
    )


def edge(db: Connection, source: str, relation: str, target: str) -> None:
    """Say that `source` stands to `target` in `relation`; saying it twice changes nothing."""
    db.execute(
        parsed("INSERT INTO edges VALUES (:s, :r, :t, :at) ON CONFLICT DO NOTHING"),
        {"s": source, "r": relation, "t": target, "at": micros(clock.now())},
    )


def audit(
    db: Connection, call: Call, action: str, subject: str, *, before: Any = "", after: Any = "", reason: str = ""
) -> None:
    """Append a row to the audit, chained to the one before by SHA-256."""
    said = {"before": as_text(before), "after": as_text(after), "reason": reason}
    audit_of(db, f"{call.principal.kind}:{call.principal.name}", call.request_id, action, subject, **said)


def audit_of(
    db: Connection, principal: str, request: str, action: str, subject: str, *, before: str, after: str, reason: str
) -> None:
    """Append the row of a call that is over: of a `principal` such as ``user:ada``, under the id of its request."""
    row = {
        "at": micros(clock.now()), "principal": principal, "action": action, "subject": subject,
        "before": before, "after": after, "reason": reason, "request_id": request,
    }  # fmt: skip
    previous = db.execute(parsed("SELECT chain FROM audit ORDER BY seq DESC LIMIT 1")).scalar() or ""
    row["chain"] = chain(previous, row)
    columns = ", ".join(row)
    db.execute(parsed(f"INSERT INTO audit ({columns}) VALUES ({', '.join(':' + c for c in row)})"), row)


def chain(previous: str, row: dict[str, Any]) -> str:
    fields = [row[key] for key in ("at", "principal", "action", "subject", "before", "after", "reason", "request_id")]
    return hashlib.sha256(previous.encode() + msgspec.json.encode(fields)).hexdigest()


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def events(engine: Engine, after: int, name: str = "", limit: int = 1000) -> list[Event]:
    with engine.connect() as db:
        rows = db.execute(
            text("SELECT * FROM events WHERE seq > :after AND (:name = '' OR name = :name) ORDER BY seq LIMIT :limit"),
            {"after": after, "name": name, "limit": min(limit, 10_000)},
        ).mappings()
        return [Event(**{**row, "at": moment(row["at"]), "data": msgspec.json.decode(row["data"])}) for row in rows]


def routes(engine: Engine, more_edges: Callable[[str], list[Edge]] | None = None) -> list[Route]:
    """Return the routes that read these tables; every service has them. `more_edges` are a subject's that stand elsewhere."""

    def read_events(call: Call) -> list[Event]:
        name = call.query.get("name", "")
        call.may_enter("")
        return visible(
            lambda after, limit: events(engine, after, name, limit),
            lambda event: call.may_enter(event.project), call.number("after", 0), call.limit(1000),
        )  # fmt: skip

    def read_audit(call: Call) -> list[AuditRow]:
        if call.bounded and "admin" not in call.principal.scopes:
            raise Refused(
                f"user {call.principal.name!r}", "audit", "is an admin's to read in team trust", "ask an admin"
            )
        with engine.connect() as db:
            rows = db.execute(
                text("SELECT * FROM audit WHERE seq > :after ORDER BY seq LIMIT :limit"),
                {"after": call.number("after", 0), "limit": call.limit(1000)},
            ).mappings()
            return [AuditRow(**{**row, "at": moment(row["at"])}) for row in rows]

    def read_edges(call: Call) -> list[Edge]:
        with engine.connect() as db:
            rows = db.execute(
                text("SELECT * FROM edges WHERE source = :s OR target = :s ORDER BY at LIMIT 1000"),
                {"s": call.required("subject")},
            ).mappings()
            found = [
                Edge(from_=row["source"], relation=row["relation"], to=row["target"], at=moment(row["at"]))
                for row in rows
            ]
        held = {(edge.from_, edge.relation, edge.to) for edge in found}
        elsewhere = more_edges(call.required("subject")) if more_edges else []
        return found + [edge for edge in elsewhere if (edge.from_, edge.relation, edge.to) not in held]

    return [
        Route(
            "GET",
            "/api/v1/events",
            read_events,
            scope="data:read",
            answer=list[Event],
            doc="Events after a sequence number, in order.",
        ),
        Route(
            "GET",
            "/api/v1/audit",
            read_audit,
            scope="data:read",
            answer=list[AuditRow],
            doc="The append-only audit; in team trust an admin's.",
            within="platform",
        ),
        Route(
            "GET",
            "/api/v1/lineage",
            read_edges,
            scope="data:read",
            answer=list[Edge],
            doc="Edges from or to a subject; ids only, so that they cross projects.",
            within="platform",
        ),
    ]
