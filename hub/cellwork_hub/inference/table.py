"""The route table: which deployment is live and which is at hand, changed by compare-and-swap in one transaction.

Every change is a deployment of its own and is never overwritten, so that a prediction's deployment tells what was true.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, Engine, text

from cellwork.errors import Conflict, NotFound
from cellwork.ids import split_name
from cellwork.serving.plan import Plan
from cellwork.wire.endpoints import Deployment, RouteTable
from cellwork.wire.evaluations import VersionRef
from cellwork.wire.origin import Origin
from cellwork_hub import records
from cellwork_hub.route import Call

MIGRATION = (
    "CREATE TABLE deployments (id TEXT PRIMARY KEY, endpoint TEXT NOT NULL, revision INTEGER NOT NULL, name TEXT NOT NULL, "
    "version INTEGER NOT NULL, digest TEXT NOT NULL, plan {json} NOT NULL, checks {json} NOT NULL, by TEXT NOT NULL, at BIGINT NOT NULL, "
    "origin {json} NOT NULL)",
    "CREATE TABLE endpoints (name TEXT PRIMARY KEY, revision INTEGER NOT NULL, live TEXT NOT NULL REFERENCES deployments (id), "
    "previous TEXT REFERENCES deployments (id))",
)


@dataclass(frozen=True)
class Deployed:
    """A deployment with the plan its version is served by."""

    record: Deployment
    plan: Plan


@dataclass(frozen=True)
class Entry:
    """What the table says of one endpoint."""

    name: str
    revision: int
    live: Deployed
    previous: Deployed | None

    def wire(self) -> RouteTable:
        live = self.live.record
        return RouteTable(
            endpoint=self.name, revision=self.revision, live=live.version, deployment=live.id, at=live.at, by=live.by,
            previous=self.previous.record.version if self.previous else None, service=self.live.plan.references(),
        )  # fmt: skip


class Table:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def get(self, endpoint: str) -> Entry | None:
        with self.engine.connect() as db:
            return _entry(db, endpoint)

    def require(self, endpoint: str) -> Entry:
        entry = self.get(endpoint)
        if entry is None:
            raise NotFound("endpoint", endpoint, "does not exist", "look at: cellwork endpoint list")
        return entry

    def all(self) -> list[Entry]:
        with self.engine.connect() as db:
            names = db.execute(text("SELECT name FROM endpoints ORDER BY name")).scalars().all()
            return [entry for name in names if (entry := _entry(db, name)) is not None]

    def revisions(self) -> dict[str, int]:
        """Return endpoint -> revision."""
        with self.engine.connect() as db:
            return {row.name: row.revision for row in db.execute(text("SELECT name, revision FROM endpoints"))}

    def deployment(self, deployment: str) -> Deployed:
        with self.engine.connect() as db:
            found = _deployed(db, deployment)
        if found is None:
            raise NotFound("deployment", deployment, "is not known", "look at: cellwork endpoint show NAME")
        return found

    def swap(self, call: Call, seen: int, new: Deployed, *, action: str, reason: str) -> Entry:
        """Make `new` live and what was live `previous`, if the revision is still `seen`.

        Raises
        ------
        Conflict
            Someone changed the endpoint meanwhile.
        """
        record = new.record
        with self.engine.begin() as db:
            before = _entry(db, record.endpoint)
            now = before.revision if before else 0
            if now != seen:
                raise Conflict(
                    f"endpoint {record.endpoint!r}", f"revision {seen}",
                    f"was changed meanwhile (it is {now} now{f', by {before.live.record.by}' if before else ''})",
                    "look at it and decide again: cellwork endpoint show " + record.endpoint,
                )  # fmt: skip
            _insert(db, new)
            db.execute(
                text(
                    "INSERT INTO endpoints VALUES (:name, :revision, :live, :previous) ON CONFLICT (name) DO UPDATE SET "
                    "revision = excluded.revision, live = excluded.live, previous = excluded.previous"
                ),
                {
                    "name": record.endpoint,
                    "revision": record.revision,
                    "live": record.id,
                    "previous": before.live.record.id if before else None,
                },
            )
            _record(db, call, before, new, action, reason)
        return Entry(record.endpoint, record.revision, new, before.live if before else None)


def _record(db: Connection, call: Call, before: Entry | None, new: Deployed, action: str, reason: str) -> None:
    record = new.record
    version = f"{record.version.name}@{record.version.version}"
    old = before.live.record.version if before else None
    records.audit(db, call, action, record.endpoint, before=old or "", after=record.version, reason=reason)
    records.event(
        db, "endpoint.changed", split_name(record.endpoint)[0], record.endpoint,
        revision=record.revision, version=version, deployment=record.id, action=action,
    )  # fmt: skip
    records.edge(db, version, "deployed_as", record.id)
    records.edge(db, record.endpoint, "served_by", record.id)
    if record.origin.run:
        records.edge(db, record.id, "made_by", record.origin.run)


def _insert(db: Connection, new: Deployed) -> None:
    record = new.record
    db.execute(
        text(
            "INSERT INTO deployments VALUES (:id, :endpoint, :revision, :name, :version, :digest, :plan, :checks, :by, :at, :origin)"
        ),
        {
            "id": record.id, "endpoint": record.endpoint, "revision": record.revision, "name": record.version.name,
            "version": record.version.version, "digest": record.version.digest, "by": record.by, "at": records.micros(record.at),
            "plan": msgspec.json.encode(new.plan).decode(), "checks": msgspec.json.encode(record.checks).decode(),
            "origin": msgspec.json.encode(record.origin).decode(),
        },
    )  # fmt: skip


def _entry(db: Connection, endpoint: str) -> Entry | None:
    row = db.execute(text("SELECT * FROM endpoints WHERE name = :name"), {"name": endpoint}).mappings().first()
    if row is None:
        return None
    live = _deployed(db, row["live"])
    if live is None:
        raise Conflict("endpoint", endpoint, "names a deployment that is not there", "restore the database's backup")
    return Entry(endpoint, row["revision"], live, _deployed(db, row["previous"]) if row["previous"] else None)


def _deployed(db: Connection, deployment: str) -> Deployed | None:
    row = db.execute(text("SELECT * FROM deployments WHERE id = :id"), {"id": deployment}).mappings().first()
    if row is None:
        return None
    record = Deployment(
        id=row["id"], endpoint=row["endpoint"], revision=row["revision"], by=row["by"], at=records.moment(row["at"]),
        version=VersionRef(name=row["name"], version=row["version"], digest=row["digest"]),
        checks=msgspec.json.decode(row["checks"], type=list[str]), origin=msgspec.json.decode(row["origin"], type=Origin),
    )  # fmt: skip
    return Deployed(record, msgspec.json.decode(row["plan"], type=Plan))
