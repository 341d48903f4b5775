"""The tables of jobs and runs, and how their rows become records. Only this service opens them.

A run belongs to the attempt whose fence it carries; every state change and its event are one transaction.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

import msgspec
from sqlalchemy import Connection, Engine

from cellwork import clock, files, ids, scopes
from cellwork.errors import BadInput, NotFound, Refused
from cellwork.home import Home
from cellwork.jobs import schedule
from cellwork.wire.jobs import Attempt, Job, JobRequest, Kept, Policy, Run, Schedule
from cellwork.wire.records import Event, Principal
from cellwork.wire.secrets import Mask
from cellwork_hub import records
from cellwork_hub.records import micros, moment

MIGRATION = (
    "CREATE TABLE jobs (id TEXT PRIMARY KEY, project TEXT NOT NULL, name TEXT NOT NULL, revision INTEGER NOT NULL, notebook TEXT NOT NULL, notebook_sha256 TEXT NOT NULL, "
    "files {json} NOT NULL, parameters {json} NOT NULL, schedule {json} NOT NULL, timeout_seconds INTEGER NOT NULL, retries INTEGER NOT NULL, concurrency INTEGER NOT NULL, "
    "paused INTEGER NOT NULL, owner TEXT NOT NULL, scopes {json} NOT NULL, since BIGINT NOT NULL, next_due BIGINT, UNIQUE (project, name))",
    "CREATE TABLE runs (seq {serial}, id TEXT UNIQUE NOT NULL, job_id TEXT NOT NULL, job TEXT NOT NULL, project TEXT NOT NULL, notebook TEXT NOT NULL, notebook_sha256 TEXT NOT NULL, "
    "files {json} NOT NULL, parameters {json} NOT NULL, principal TEXT NOT NULL, scopes {json} NOT NULL, state TEXT NOT NULL, created BIGINT NOT NULL, due BIGINT, cause TEXT NOT NULL, "
    "timeout_seconds INTEGER NOT NULL, retries_left INTEGER NOT NULL, lost INTEGER NOT NULL, not_before BIGINT NOT NULL, fence INTEGER NOT NULL, lease_until BIGINT, token_id TEXT NOT NULL)",
    "CREATE INDEX runs_state ON runs (state, seq)",
    "CREATE INDEX runs_job ON runs (job_id, state)",
    "CREATE TABLE attempts (run TEXT NOT NULL, n INTEGER NOT NULL, fence INTEGER NOT NULL, runner TEXT NOT NULL, state TEXT NOT NULL, started BIGINT NOT NULL, ended BIGINT, "
    "cell INTEGER NOT NULL, cells INTEGER NOT NULL, error TEXT NOT NULL, PRIMARY KEY (run, n))",
    "CREATE TABLE fires (job_id TEXT NOT NULL, fire TEXT NOT NULL, run TEXT NOT NULL, PRIMARY KEY (job_id, fire))",
    "CREATE TABLE cursors (name TEXT PRIMARY KEY, seq BIGINT NOT NULL)",
)
KEPT = (
    "ALTER TABLE runs ADD COLUMN first_cell INTEGER NOT NULL DEFAULT 1",
    "ALTER TABLE runs ADD COLUMN held INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE attempts ADD COLUMN first_cell INTEGER NOT NULL DEFAULT 1",
    "CREATE TABLE kept (run TEXT PRIMARY KEY, attempt INTEGER NOT NULL, fence INTEGER NOT NULL, runner TEXT NOT NULL, cell INTEGER NOT NULL, until BIGINT NOT NULL, "
    "heard BIGINT NOT NULL, bytes BIGINT NOT NULL, most_bytes BIGINT NOT NULL)",
    "CREATE INDEX runs_token ON runs (token_id) WHERE token_id <> ''",
)
"""Kernels of failed runs; a run is `held` while it waits to go on in its own."""
FOLLOWED = ("CREATE INDEX events_subject ON events (subject, seq)",)
POLICIES = (
    "ALTER TABLE jobs ADD COLUMN policy {json} NOT NULL DEFAULT '{}'",
    "ALTER TABLE runs ADD COLUMN policy {json} NOT NULL DEFAULT '{}'",
    "ALTER TABLE runs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE runs ADD COLUMN deadline BIGINT",
    "ALTER TABLE runs ADD COLUMN ended BIGINT",
    "CREATE INDEX runs_queue ON runs (state, priority, seq)",
    "CREATE INDEX runs_deadline ON runs (deadline) WHERE deadline IS NOT NULL",
    "CREATE TABLE notices (seq {serial}, run TEXT NOT NULL, state TEXT NOT NULL, told {json} NOT NULL, tries INTEGER NOT NULL, next_try BIGINT NOT NULL, sent BIGINT, error TEXT NOT NULL)",
    "CREATE INDEX notices_waiting ON notices (next_try) WHERE sent IS NULL",
)
LANES = (
    "ALTER TABLE runs ADD COLUMN lane TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE runs ADD COLUMN lane_most INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX runs_lane ON runs (lane) WHERE lane <> ''",
    "CREATE INDEX runs_due ON runs (job_id, due, seq)",
)
IMAGES = (
    "ALTER TABLE jobs ADD COLUMN image_digest TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE runs ADD COLUMN image_digest TEXT NOT NULL DEFAULT ''",
)
"""The container image that a job or a run was made in, and in which it executes."""

LABELS = (
    "ALTER TABLE jobs ADD COLUMN labels {json} NOT NULL DEFAULT '{}'",
    "ALTER TABLE runs ADD COLUMN labels {json} NOT NULL DEFAULT '{}'",
    "ALTER TABLE runs ADD COLUMN once TEXT NOT NULL DEFAULT ''",
    "CREATE UNIQUE INDEX runs_once ON runs (principal, once) WHERE once <> ''",
)
"""What other tools keep with jobs and runs, and the word by which a request for a run is known again."""

NO_HISTORY = (
    "DROP INDEX runs_queue",
    "DROP INDEX runs_lane",
    "DROP INDEX runs_deadline",
    "CREATE INDEX runs_waiting ON runs (state, held, priority DESC, seq, not_before, lane, job_id) WHERE state = 'queued'",
    "CREATE INDEX runs_late ON runs (state, held, deadline) WHERE state = 'queued' AND deadline IS NOT NULL",
    "CREATE INDEX runs_leased ON runs (lease_until, lane, lane_most, job_id) WHERE lease_until IS NOT NULL",
    "CREATE INDEX runs_open ON runs (job_id, lane) WHERE ended IS NULL",
    "CREATE INDEX runs_succeeded ON runs (job, (coalesce(due, created))) WHERE state = 'succeeded'",
)
"""Whoever holds the write lock reads what waits and what runs, however many runs have ended."""

SUCCESSES = (
    "CREATE TABLE successes (job_id TEXT NOT NULL, job TEXT NOT NULL, at BIGINT NOT NULL, PRIMARY KEY (job_id, at))",
    "CREATE INDEX successes_job ON successes (job, at)",
    "INSERT INTO successes SELECT job_id, min(job), coalesce(due, created) FROM runs WHERE state = 'succeeded' AND job_id <> '' "
    "GROUP BY job_id, coalesce(due, created)",
    "DROP INDEX runs_succeeded",
)
"""For which times a job's runs succeeded; known when the runs are forgotten."""

NOT_FOR_RUNS = frozenset({"events:write", "runs:execute", "admin"})
MOST_TIMEOUT = 7 * 86_400
PATH = re.compile(r"(?!.*\.\.)[\w][\w .+-]*(/[\w][\w .+-]*){0,8}")


class Tokens(Protocol):
    """Gives a run its own credential, and takes it back."""

    def mint(self, owner: str, granted: frozenset[str], seconds: int, note: str) -> tuple[str, str]:
        """Return id and secret of a token that acts as `owner`; only the id may be kept."""
        ...

    def revoke(self, owner: str, token_id: str) -> None: ...


class Bell:
    """Wakes the claims that wait when a run is queued; rung from any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event = asyncio.Event()

    def listen(self) -> asyncio.Event:
        """Return what the next ring sets; take it before looking whether there is work, so that no ring is missed."""
        self._loop = asyncio.get_running_loop()
        return self._event

    def ring(self) -> None:
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._strike)

    def _strike(self) -> None:
        self._event.set()
        self._event = asyncio.Event()


class Watch:
    """Notices that the clock was set, or that the host slept: the time of day moved, the monotonic clock did not move with it."""

    LEAST = timedelta(seconds=5)

    def __init__(self) -> None:
        self._ahead = self._look()

    def _look(self) -> timedelta:
        return clock.now() - clock.EPOCH - timedelta(seconds=time.monotonic())

    def jumped(self) -> timedelta:
        """Return by how much the time of day has jumped, until that is `settled`; zero for what is no more than its correction."""
        by = self._look() - self._ahead
        if abs(by) > self.LEAST:
            return by
        self._ahead += by
        return timedelta()

    def settled(self, by: timedelta) -> None:
        self._ahead += by


@dataclass(frozen=True)
class State:
    """What the routers share. `user` is whom the platform's own services start runs for; empty in `team` trust."""

    engine: Engine
    home: Home
    tokens: Tokens
    user: str
    lease: timedelta = timedelta(seconds=15)
    first_lease: timedelta = timedelta(seconds=10)
    backoff: timedelta = timedelta(seconds=5)
    """Before the first retry of a failed run; doubled for each further one."""
    keep: timedelta = timedelta()
    """How long the kernel of a failed run is kept; zero keeps none."""
    keep_bytes: int = 4 << 30
    keep_most: int = 4
    """Kernels kept at once; one more ends the one that would end first."""
    masks: Callable[[str, str], list[Mask]] = lambda project, principal: []
    """Returns what the runs of a principal in a project must hide."""
    public_url: str = ""
    mail_server: str = ""
    mail_from: str = "cellwork@localhost"
    bell: Bell = field(default_factory=Bell)
    watch: Watch = field(default_factory=Watch)


Events = Callable[[int], Sequence[Event]]
"""Returns the platform's events after a sequence number, in order."""


def keep(home: Home, content: str) -> str:
    """Store `content` under its SHA-256 and return that."""
    digest = hashlib.sha256(content.encode()).hexdigest()
    if not home.source(digest).exists():
        files.write(home.source(digest), content, mode=0o600)
    return digest


def check_paths(notebook: str, beside: Mapping[str, str]) -> None:
    """Raise BadInput unless every path stays inside the run's folder; the notebook's ends in .ipynb."""
    if not notebook.endswith(".ipynb"):
        raise BadInput("notebook", notebook, "is not named like a notebook", "end its name in .ipynb")
    for path in (notebook, *beside):
        if not PATH.fullmatch(path):
            raise BadInput(
                "file",
                path[:200],
                "is not a plain relative path",
                "use names of letters, digits, _, - and . below the project's folder",
            )
    if notebook in beside:
        raise BadInput("file", notebook, "is the notebook itself", "send it as content only")


def owner(state: State, principal: Principal) -> tuple[str, frozenset[str]]:
    """Return for whom a run of `principal` acts, and with which scopes: never more than the caller has.

    Raises
    ------
    Refused
        A service asks in `team` trust, where runs belong to people.
    """
    granted = principal.scopes - NOT_FOR_RUNS
    if principal.kind != "service":
        return principal.name, granted
    if not state.user:
        raise Refused(
            f"service {principal.name!r}",
            "",
            "owns no runs in team trust",
            "start it with a user's token (CELLWORK_TOKEN)",
        )
    return state.user, granted & scopes.ROLES["deployer"]


def due_after(plan: Schedule, after: datetime) -> int | None:
    """Return when `plan` is next due after `after`, in microseconds since 1970; None if it goes by no clock."""
    due = next(schedule.due(plan, after), None)
    return micros(due) if due else None


def job_row(db: Connection, project: str, name: str) -> dict[str, Any]:
    row = one(db, "SELECT * FROM jobs WHERE project = :project AND name = :name", project=project, name=name)
    if row is None:
        raise NotFound("job", f"{project}/{name}", "does not exist", "look at: cellwork job list")
    return row


def run_row(db: Connection, run: str) -> dict[str, Any]:
    row = one(db, "SELECT * FROM runs WHERE id = :id", id=ids.check(run, "run"))
    if row is None:
        raise NotFound("run", run, "does not exist", "look at: cellwork run list")
    return row


def as_job(row: Mapping[str, Any]) -> Job:
    plan = msgspec.json.decode(row["schedule"], type=Schedule)
    due = row["next_due"] if not row["paused"] else None
    return Job(
        id=row["id"], project=row["project"], name=row["name"], notebook=row["notebook"], notebook_sha256=row["notebook_sha256"],
        parameters=msgspec.json.decode(row["parameters"]), schedule=plan, timeout_seconds=row["timeout_seconds"], retries=row["retries"],
        concurrency=row["concurrency"], policy=msgspec.json.decode(row["policy"], type=Policy), paused=bool(row["paused"]), owner=row["owner"], revision=row["revision"], next_due=moment(due) if due else None,
        image_digest=row["image_digest"], labels=msgspec.json.decode(row["labels"]),
    )  # fmt: skip


def as_request(home: Home, row: Mapping[str, Any]) -> JobRequest:
    """Return what would make the job of `row` as it is."""
    job, files = as_job(row), msgspec.json.decode(row["files"], type=dict[str, str])
    return JobRequest(
        project=job.project, name=job.name, notebook=job.notebook, content=home.source(job.notebook_sha256).read_text(),
        files={path: home.source(digest).read_text() for path, digest in files.items()}, parameters=job.parameters, schedule=job.schedule,
        timeout_seconds=job.timeout_seconds, retries=job.retries, concurrency=job.concurrency, policy=job.policy, labels=job.labels,
    )  # fmt: skip


def as_run(db: Connection, row: Mapping[str, Any]) -> Run:
    rows = select(db, "SELECT * FROM attempts WHERE run = :run ORDER BY n", run=row["id"])
    attempts = [
        Attempt(
            n=a["n"], fence=a["fence"], runner=a["runner"], state=a["state"], started=moment(a["started"]),
            ended=moment(a["ended"]) if a["ended"] else None, cell=a["cell"], cells=a["cells"], error=a["error"], first_cell=a["first_cell"],
        )
        for a in rows
    ]  # fmt: skip
    held = one(db, "SELECT * FROM kept WHERE run = :run", run=row["id"])
    return Run(
        id=row["id"], project=row["project"], notebook=row["notebook"], notebook_sha256=row["notebook_sha256"], parameters=msgspec.json.decode(row["parameters"]),
        principal=row["principal"], state=row["state"], created=moment(row["created"]), job=row["job"], due=moment(row["due"]) if row["due"] else None,
        cause=row["cause"], attempts=attempts, kept=as_kept(held) if held else None, image_digest=row["image_digest"], labels=msgspec.json.decode(row["labels"]),
    )  # fmt: skip


def as_kept(row: Mapping[str, Any]) -> Kept:
    return Kept(
        attempt=row["attempt"], runner=row["runner"], cell=row["cell"], until=moment(row["until"]), bytes=row["bytes"], most_bytes=row["most_bytes"]
    )  # fmt: skip


def executed(home: Home, run: str, attempt: int) -> bytes:
    """Return the executed notebook of the newest attempt up to number `attempt` that has one; empty if none has."""
    for number in range(attempt, 0, -1):
        path = home.attempt(run, number) / "out.ipynb"
        if path.exists():
            return path.read_bytes()
    return b""


def select(db: Connection, statement: str, **values: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in db.execute(records.parsed(statement), values).mappings()]


def one(db: Connection, statement: str, **values: Any) -> dict[str, Any] | None:
    return next(iter(select(db, statement, **values)), None)


def write(db: Connection, statement: str, **values: Any) -> int:
    """Execute a change and return how many rows it touched."""
    return db.execute(records.parsed(statement), values).rowcount


def insert(db: Connection, table: str, row: Mapping[str, Any], *, once: bool = False) -> bool:
    """Insert `row`; with `once`, do nothing and return False if its key is there already."""
    columns = ", ".join(row)
    statement = f"INSERT INTO {table} ({columns}) VALUES ({', '.join(':' + c for c in row)})" + (
        " ON CONFLICT DO NOTHING" if once else ""
    )
    return db.execute(records.parsed(statement), dict(row)).rowcount == 1


def now() -> int:
    return micros(clock.now())


def json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
