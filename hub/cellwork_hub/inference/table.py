"""The route table: which deployment is live, which stand beside it and which is at hand, changed by compare-and-swap in one transaction.

A version gets here as a deployment, which is never overwritten, so that a prediction's deployment tells what was true; every table
that ever held is in the audit. What a change makes of a table is a pure function (`Entry.with_live`, `with_arm`, `without_arm`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, Engine, text

from cellwork.errors import Conflict, NotFound
from cellwork.ids import split_name
from cellwork.serving.plan import Plan
from cellwork.wire import Struct
from cellwork.wire.endpoints import Arm, Deployment, InputRule, Rollout, RouteTable
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
ROUTES_MIGRATION = ("ALTER TABLE endpoints ADD COLUMN beside {json} NOT NULL DEFAULT '{}'",)


@dataclass(frozen=True)
class Deployed:
    """A deployment with the plan its version is served by."""

    record: Deployment
    plan: Plan


class Beside(Struct):
    """What a route table holds beside its live and previous version, as it is kept."""

    arms: list[Arm] = []
    salt: str = ""
    rollout: Rollout | None = None
    by: str = ""
    """Who changed the table last."""
    input: InputRule | None = None


@dataclass(frozen=True)
class Entry:
    """What the table says of one endpoint; `deployed` has the deployment of every version that is at hand, by its id."""

    name: str
    revision: int
    live: Deployed
    previous: Deployed | None
    beside: Beside
    deployed: dict[str, Deployed]

    def arm(self, name: str, version: int) -> Arm | None:
        return next(
            (arm for arm in self.beside.arms if (arm.version.name, arm.version.version) == (name, version)), None
        )

    def with_live(self, new: Deployed) -> Entry:
        """Return the table in which `new` is live and what was live is at hand; the arm of that version ends, and so does a rollout."""
        entry = self.stopped(f"version {new.record.version.version} was made live")
        arms = [arm for arm in entry.beside.arms if arm.version != new.record.version]
        beside = msgspec.structs.replace(entry.beside, arms=arms)
        return self._next(live=new, previous=self.live, beside=beside, deployed=self.deployed | {new.record.id: new})

    def with_arm(self, new: Deployed, arm: Arm, salt: str | None = None) -> Entry:
        """Return the table with `arm` in the place of the one of the same version, or behind the others."""
        old, arms = self.arm(arm.version.name, arm.version.version), list(self.beside.arms)
        if old is not None:
            arms[arms.index(old)] = arm
        else:
            arms.append(arm)
        beside = msgspec.structs.replace(self.beside, arms=arms, salt=self.beside.salt if salt is None else salt)
        return self._next(beside=beside, deployed=self.deployed | {new.record.id: new})

    def without_arm(self, arm: Arm) -> Entry:
        entry = self.stopped("it was taken out") if self.is_rolling(arm) else self
        arms = [each for each in entry.beside.arms if each != arm]
        return self._next(beside=msgspec.structs.replace(entry.beside, arms=arms))

    @property
    def rolling(self) -> Rollout | None:
        """The rollout that runs."""
        rollout = self.beside.rollout
        return rollout if rollout is not None and rollout.state == "running" else None

    def is_rolling(self, arm: Arm) -> bool:
        return self.rolling is not None and self.rolling.version == arm.version

    def with_rollout(self, rollout: Rollout) -> Entry:
        """Return the table, of the same revision, with `rollout` as it stands now."""
        return replace(self, beside=msgspec.structs.replace(self.beside, rollout=rollout))

    def stopped(self, why: str, state: Literal["promoted", "back", "stopped"] = "stopped") -> Entry:
        """Return the table, of the same revision, in which a running rollout has ended and its version stands beside no more."""
        rollout = self.rolling
        if rollout is None:
            return self
        ended = msgspec.structs.replace(rollout, state=state, said=why)
        arms = [arm for arm in self.beside.arms if arm.version != rollout.version]
        return replace(self, beside=msgspec.structs.replace(self.beside, arms=arms, rollout=ended))

    def _next(self, **changed: Any) -> Entry:
        return replace(self, revision=self.revision + 1, **changed)

    def wire(self) -> RouteTable:
        live = self.live.record
        return RouteTable(
            endpoint=self.name, revision=self.revision, live=live.version, deployment=live.id, at=live.at, by=live.by,
            previous=self.previous.record.version if self.previous else None, service=self.live.plan.references(),
            canary=[arm for arm in self.beside.arms if not arm.shadow], shadow=[arm for arm in self.beside.arms if arm.shadow],
            salt=self.beside.salt, rollout=self.beside.rollout, input=self.beside.input,
        )  # fmt: skip


def first(new: Deployed) -> Entry:
    """Return the table of an endpoint's first deployment."""
    return Entry(new.record.endpoint, 1, new, None, Beside(), {new.record.id: new})


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

    def swap(
        self, call: Call, endpoint: str, seen: int, make: Callable[[Entry | None], Entry], *, action: str, reason: str
    ) -> Entry:
        """Replace the table by what `make` makes of it, if its revision is still `seen` (0: there is none).

        Raises
        ------
        Conflict
            Someone changed the endpoint meanwhile.
        """
        with self.engine.begin() as db:
            before = _entry(db, endpoint)
            check_seen(endpoint, seen, before)
            after = make(before)
            after = replace(after, beside=msgspec.structs.replace(after.beside, by=call.principal.name))
            known = before.deployed if before else {}
            new = [deployed for name, deployed in after.deployed.items() if name not in known]
            for deployed in new:
                _insert(db, deployed)
            _keep(db, after)
            _record(db, call, before, after, new, action, reason)
        return _pruned(after)


def check_seen(endpoint: str, seen: int | None, entry: Entry | None) -> None:
    """Raise Conflict unless the endpoint is at the revision that was seen; None has seen nothing and takes what is there."""
    now = entry.revision if entry else 0
    if seen is not None and seen != now:
        by = f", by {entry.beside.by or entry.live.record.by}" if entry else ""
        raise Conflict(
            f"endpoint {endpoint!r}", f"revision {seen}", f"was changed meanwhile (it is {now} now{by})",
            f"look at it and decide again: cellwork endpoint show {endpoint}",
        )  # fmt: skip


def _pruned(entry: Entry) -> Entry:
    """Return the entry with the deployments that its table names, and no others."""
    there = {entry.live.record.id, *(arm.deployment for arm in entry.beside.arms)}
    there |= {entry.previous.record.id} if entry.previous else set()
    return replace(entry, deployed={name: each for name, each in entry.deployed.items() if name in there})


def _keep(db: Connection, entry: Entry) -> None:
    db.execute(
        text(
            "INSERT INTO endpoints (name, revision, live, previous, beside) VALUES (:name, :revision, :live, :previous, :beside) "
            "ON CONFLICT (name) DO UPDATE SET revision = excluded.revision, live = excluded.live, previous = excluded.previous, "
            "beside = excluded.beside"
        ),
        {
            "name": entry.name, "revision": entry.revision, "live": entry.live.record.id,
            "previous": entry.previous.record.id if entry.previous else None,
            "beside": msgspec.json.encode(entry.beside).decode(),
        },
    )  # fmt: skip


def _record(
    db: Connection, call: Call, before: Entry | None, after: Entry, new: list[Deployed], action: str, reason: str
) -> None:
    live = after.live.record
    records.audit(
        db, call, action, after.name, before=before.wire() if before else "", after=after.wire(), reason=reason
    )
    arms = [f"{arm.version.name}@{arm.version.version}" for arm in after.beside.arms]
    records.event(
        db, "endpoint.changed", split_name(after.name)[0], after.name, revision=after.revision, reason=reason,
        version=f"{live.version.name}@{live.version.version}", deployment=live.id, action=action, arms=arms,
    )  # fmt: skip
    ended = after.beside.rollout
    if before and before.rolling and ended and ended.state != "running":
        records.event(
            db, "endpoint.rollout_ended", split_name(after.name)[0], after.name, revision=after.revision,
            version=f"{ended.version.name}@{ended.version.version}", state=ended.state, reason=ended.said,
        )  # fmt: skip
    for deployed in new:
        record = deployed.record
        records.edge(db, f"{record.version.name}@{record.version.version}", "deployed_as", record.id)
        records.edge(db, after.name, "served_by", record.id)
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
    beside = msgspec.json.decode(row["beside"], type=Beside)
    names = [row["live"], row["previous"], *(arm.deployment for arm in beside.arms)]
    deployed = {name: _required(db, endpoint, name) for name in names if name}
    return Entry(endpoint, row["revision"], deployed[row["live"]], deployed.get(row["previous"]), beside, deployed)


def _required(db: Connection, endpoint: str, deployment: str) -> Deployed:
    found = _deployed(db, deployment)
    if found is None:
        raise Conflict("endpoint", endpoint, "names a deployment that is not there", "restore the database's backup")
    return found


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
