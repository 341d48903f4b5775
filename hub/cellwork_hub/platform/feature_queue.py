"""The queue of pipeline runs: which batch is still to become feature rows of which view.

A run belongs to a view at a revision: the one of the definitions with which what its rows depend on last changed. A view that changes
starts anew under its new revision, from all current batches; what the old revision made stays as it is, its runs that have not begun are
dropped. There is one run for a batch in a revision. Runs are claimed in the order of their batches, one at a time. A project whose store or
files do not answer rests for a while (`Rests`), with its order kept, and the others go on.

A run whose view joins a source without a batch is `waiting`; the batch that arrives queues it again in its own transaction. A run whose
view has a schedule is `scheduled` until the first time of the schedule after the batch came; then `queue_due` queues it. A view's first
filling is not scheduled, and nobody who reads the view waits for scheduled runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import BindParameter, Connection, bindparam, text

from cellwork import clock, ids
from cellwork.features.pipeline import Step
from cellwork.wire.batches import Batch
from cellwork.wire.features import Definitions, PipelineRun
from cellwork_hub.platform import batches
from cellwork_hub.platform.state import State
from cellwork_hub.records import micros, moment

MIGRATION = (
    "CREATE TABLE definitions (project TEXT NOT NULL, revision INTEGER NOT NULL, body {json} NOT NULL, at BIGINT NOT NULL, "
    "PRIMARY KEY (project, revision))",
    "CREATE TABLE view_revisions (project TEXT NOT NULL, view TEXT NOT NULL, revision INTEGER NOT NULL, sha256 TEXT NOT NULL, "
    "dataset TEXT NOT NULL, holds INTEGER NOT NULL, PRIMARY KEY (project, view, revision))",
    "CREATE TABLE pipeline_runs (seq {serial}, id TEXT UNIQUE NOT NULL, project TEXT NOT NULL, view TEXT NOT NULL, revision INTEGER NOT NULL, "
    "batch TEXT NOT NULL, supersedes TEXT NOT NULL, ordinal BIGINT NOT NULL, backfill INTEGER NOT NULL, state TEXT NOT NULL, "
    "feature_set TEXT NOT NULL, inputs {json} NOT NULL, sealed TEXT NOT NULL, step_after BIGINT, step_until BIGINT, newest BIGINT, "
    "row_count BIGINT NOT NULL, seconds DOUBLE PRECISION NOT NULL, error TEXT NOT NULL, at BIGINT NOT NULL, "
    "UNIQUE (project, view, revision, batch))",
    "CREATE INDEX pipeline_runs_state ON pipeline_runs (state, ordinal, seq)",
)
INSERT = (
    "INSERT INTO pipeline_runs (id, project, view, revision, batch, supersedes, ordinal, backfill, state, feature_set, inputs, sealed, "
    "row_count, seconds, error, at) VALUES (:id, :project, :view, :revision, :batch, :supersedes, :ordinal, :backfill, :state, '', '[]', "
    ":sealed, 0, 0, '', :at) ON CONFLICT (project, view, revision, batch) DO NOTHING"
)

REST_SECONDS, MOST_REST_SECONDS = 1.0, 60.0


@dataclass(frozen=True)
class Claim:
    """A run that is being executed."""

    id: str
    project: str
    view: str
    revision: int
    batch: str


@dataclass(frozen=True)
class Done:
    """A run that succeeded, and what it means for later ones of its view."""

    step: Step
    newest: datetime | None
    """Greatest event of its source rows; None without rows."""
    supersedes: str
    sealed: bool


class Rests:
    """The projects that rest because what they need does not answer: a second, then twice as long each time, a minute at most."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._met: dict[str, tuple[float, float]] = {}
        """Project -> seconds of its latest rest, and until when that is."""

    def begin(self, project: str) -> None:
        seconds = min(2 * self._met[project][0], MOST_REST_SECONDS) if project in self._met else REST_SECONDS
        self._met[project] = seconds, self._now() + seconds

    def end(self, project: str) -> None:
        self._met.pop(project, None)

    def resting(self) -> list[str]:
        now = self._now()
        return [project for project, (_, until) in self._met.items() if until > now]


def enqueue(db: Connection, state: State, batch: Batch) -> None:
    """Queue the runs of `batch` for every view that its data set drives; called in the transaction that makes it known.

    A correction of a batch whose run failed takes that run's place, and lets the ones behind it run again.
    """
    go_on(db, batch.project)
    views = text(
        "SELECT view, revision FROM view_revisions WHERE project = :p AND dataset = :d AND holds = 1 ORDER BY view"
    )
    schedules = _schedules(db, batch.project)
    for view, revision in db.execute(views, {"p": batch.project, "d": batch.dataset}).all():
        where = {"p": batch.project, "v": view, "r": revision}
        failed = db.execute(
            text(
                "DELETE FROM pipeline_runs WHERE project = :p AND view = :v AND revision = :r AND batch = :b AND state = 'failed' "
                "RETURNING ordinal"
            ),
            {**where, "b": batch.supersedes},
        ).scalar()
        later = view in schedules and failed is None
        add(db, batch, view, revision, ordinal=batch.seq if failed is None else failed, later=later)
        if failed is not None:
            retry(db, **where)


def add(
    db: Connection, batch: Batch, view: str, revision: int, *, ordinal: int, backfill: bool = False, later: bool = False
) -> None:
    values = {
        "id": ids.new("prun"), "project": batch.project, "view": view, "revision": revision, "batch": batch.id,
        "supersedes": batch.supersedes, "ordinal": ordinal, "backfill": int(backfill), "sealed": batch.sealed,
        "state": "scheduled" if later else "queued", "at": micros(clock.now()),
    }  # fmt: skip
    db.execute(text(INSERT), values)


def _schedules(db: Connection, project: str) -> dict[str, str]:
    """Return view -> schedule of the views that have one, as they are defined now."""
    query = "SELECT body FROM definitions WHERE project = :p ORDER BY revision DESC LIMIT 1"
    body = db.execute(text(query), {"p": project}).scalar()
    views = msgspec.json.decode(body, type=Definitions).views if body else []
    return {view.name: view.schedule for view in views if view.schedule}


def queue_due(state: State) -> int:
    """Queue the scheduled runs whose time has come, those too whose view has no schedule any more; returns how many."""
    now, due = clock.now(), []
    with state.engine.begin() as db:
        rows = db.execute(text("SELECT id, project, view, at FROM pipeline_runs WHERE state = 'scheduled'")).all()
        schedules = {project: _schedules(db, project) for project in {row.project for row in rows}}
        for row in rows:
            schedule = schedules[row.project].get(row.view)
            if schedule is None or clock.next_due(schedule, moment(row.at)) <= now:
                due.append({"id": row.id})
        if due:
            db.execute(text("UPDATE pipeline_runs SET state = 'queued' WHERE id = :id AND state = 'scheduled'"), due)
    return len(due)


def queue_now(db: Connection, project: str, view: str) -> int:
    """Queue the scheduled and failed runs of a view at once; returns how many."""
    query = (
        "UPDATE pipeline_runs SET state = 'queued', error = '' WHERE project = :p AND view = :v AND state IN ('scheduled', 'failed', 'waiting') "
        "AND revision = (SELECT revision FROM view_revisions WHERE project = :p AND view = :v AND holds = 1)"
    )
    return db.execute(text(query), {"p": project, "v": view}).rowcount


def retry(db: Connection, *, p: str, v: str, r: int) -> None:
    """Queue the failed runs of a view again, and those that wait."""
    db.execute(
        text(
            "UPDATE pipeline_runs SET state = 'queued', error = '' WHERE project = :p AND view = :v AND revision = :r "
            "AND state IN ('failed', 'waiting')"
        ),
        {"p": p, "v": v, "r": r},
    )


def go_on(db: Connection, project: str) -> None:
    """Queue what waits in `project`; what still lacks a source will wait again."""
    query = "UPDATE pipeline_runs SET state = 'queued', error = '' WHERE project = :p AND state = 'waiting'"
    db.execute(text(query), {"p": project})


def hold(state: State, run: Claim, sources: Sequence[str]) -> bool:
    """Let `run` wait if one of `sources` has no batch yet; whether it does.

    What is missing is asked again inside the transaction: no batch can arrive between that and the run's new state.
    """

    def missing() -> list[str]:
        return [source for source in sources if not batches.pinned(state, run.project, source)]

    if not missing():
        return False
    with state.engine.begin() as db:
        left = missing()
        if left:
            said = {"e": f"waits for a batch of {left[0]!r}", "at": micros(clock.now()), "id": run.id}
            db.execute(text("UPDATE pipeline_runs SET state = 'waiting', error = :e, at = :at WHERE id = :id"), said)
    return bool(left)


def fill(state: State, project: str) -> None:
    """Queue a run for every current batch that a view of `project` has none for. Calling it twice queues nothing twice."""
    with state.engine.connect() as db:
        views = db.execute(
            text("SELECT view, revision, dataset FROM view_revisions WHERE project = :p AND holds = 1 ORDER BY view"),
            {"p": project},
        ).all()
    for dataset in sorted({row.dataset for row in views}):
        there = [(batch, _place(state, batch)) for batch in batches.current(state, project, dataset)]
        with state.engine.begin() as db:
            for batch, place in there:
                for view, revision, driving in views:
                    if driving == dataset:
                        add(db, batch, view, revision, ordinal=place, backfill=True)


def _place(state: State, batch: Batch) -> int:
    """Return the number of the delivery that `batch`, after all corrections, stands in for."""
    while batch.supersedes:
        batch = batches.get(state, batch.supersedes)
    return batch.seq


def recover(state: State) -> None:
    """After a start: queue again what a crash left running, and what it kept from being queued."""
    with state.engine.begin() as db:
        db.execute(text("UPDATE pipeline_runs SET state = 'queued', error = '' WHERE state IN ('running', 'waiting')"))
        projects = db.execute(text("SELECT DISTINCT project FROM definitions")).scalars().all()
    for project in projects:
        fill(state, project)


def claim(state: State, resting: Sequence[str] = ()) -> Claim | None:
    """Take the next run of a project that is not `resting`, or None."""
    left_out: BindParameter[Any] = bindparam("resting", expanding=True)
    query = (
        "SELECT id, project, view, revision, batch FROM pipeline_runs WHERE state = 'queued' AND project NOT IN :resting "
        "ORDER BY ordinal, seq LIMIT 1"
    )
    with state.engine.begin() as db:
        row = db.execute(text(query).bindparams(left_out), {"resting": list(resting)}).first()
        if row is None:
            return None
        db.execute(text("UPDATE pipeline_runs SET state = 'running' WHERE id = :id"), {"id": row.id})
        return Claim(*row)


def fail(state: State, run: Claim, error: str) -> None:
    with state.engine.begin() as db:
        db.execute(
            text("UPDATE pipeline_runs SET state = 'failed', error = :e, at = :at WHERE id = :id"),
            {"e": error, "at": micros(clock.now()), "id": run.id},
        )


def put_back(state: State, run: Claim, why: str) -> None:
    """Queue `run` again: what it needs does not answer now."""
    with state.engine.begin() as db:
        query = "UPDATE pipeline_runs SET state = 'queued', error = :e, at = :at WHERE id = :id"
        db.execute(text(query), {"e": why, "at": micros(clock.now()), "id": run.id})


def succeed(
    db: Connection, run: Claim, *, feature_set: str, inputs: Sequence[str], rows: int, seconds: float, done: Done | None
) -> None:
    """Record that `run` is done; `done` is what it means for later runs of a rolling view."""
    values = {
        "id": run.id, "fset": feature_set, "inputs": msgspec.json.encode(inputs).decode(), "rows": rows, "seconds": seconds,
        "after": _us(done.step.after) if done else None, "until": _us(done.step.until) if done else None,
        "newest": _us(done.newest) if done else None, "at": micros(clock.now()),
    }  # fmt: skip
    db.execute(
        text(
            "UPDATE pipeline_runs SET state = 'succeeded', feature_set = :fset, inputs = :inputs, row_count = :rows, seconds = :seconds, "
            "step_after = :after, step_until = :until, newest = :newest, error = '', at = :at WHERE id = :id"
        ),
        values,
    )


def done(state: State, run: Claim) -> list[Done]:
    """Return the runs of the view that succeeded, in their order."""
    with state.engine.connect() as db:
        rows = db.execute(
            text(
                "SELECT batch, supersedes, sealed, step_after, step_until, newest FROM pipeline_runs WHERE project = :p AND view = :v "
                "AND revision = :r AND state = 'succeeded' ORDER BY ordinal, seq"
            ),
            {"p": run.project, "v": run.view, "r": run.revision},
        ).all()
    return [
        Done(
            Step(row.batch, _at(row.step_after), _at(row.step_until)), _at(row.newest), row.supersedes, bool(row.sealed)
        )
        for row in rows
    ]


def blocked_by(state: State, run: Claim) -> str:
    """Return the batch of a failed run that is to be mended before `run` makes sense, or nothing."""
    with state.engine.connect() as db:
        batch = db.execute(
            text(
                "SELECT batch FROM pipeline_runs WHERE project = :p AND view = :v AND revision = :r AND state = 'failed' "
                "ORDER BY ordinal, seq LIMIT 1"
            ),
            {"p": run.project, "v": run.view, "r": run.revision},
        ).scalar()
    return batch or ""


def open_backfill(state: State, project: str, view: str) -> tuple[int, str, str]:
    """Return how many runs of the view's first filling are open, the error of one that failed, and what one waits for."""
    with state.engine.connect() as db:
        rows = db.execute(
            text(
                "SELECT r.state, r.error FROM pipeline_runs r JOIN view_revisions v ON v.project = r.project AND v.view = r.view "
                "AND v.revision = r.revision WHERE v.holds = 1 AND r.project = :p AND r.view = :v AND r.state <> 'succeeded' AND (r.backfill = 1 OR r.state = 'waiting')"
            ),
            {"p": project, "v": view},
        ).all()
    said = {row.state: row.error for row in rows}
    return len(rows), said.get("failed", ""), said.get("waiting", "")


def drop(db: Connection, project: str, view: str) -> None:
    """Forget the runs of a view that have not begun: nobody waits for what a definition that ends would still make."""
    query = "DELETE FROM pipeline_runs WHERE project = :p AND view = :v AND state IN ('queued', 'scheduled', 'waiting')"
    db.execute(text(query), {"p": project, "v": view})


def holds(state: State, run: Claim) -> bool:
    """Whether the view is still defined as it was when `run` was queued."""
    query = "SELECT holds FROM view_revisions WHERE project = :p AND view = :v AND revision = :r"
    with state.engine.connect() as db:
        return bool(db.execute(text(query), {"p": run.project, "v": run.view, "r": run.revision}).scalar())


def begun(db: Connection, project: str, view: str, revision: int) -> bool:
    """Whether there is a run, in whatever state, of a view at a revision."""
    query = "SELECT 1 FROM pipeline_runs WHERE project = :p AND view = :v AND revision = :r LIMIT 1"
    return db.execute(text(query), {"p": project, "v": view, "r": revision}).scalar() is not None


def pending(state: State, run: Claim) -> bool:
    """Whether runs of the view are still to be executed, beside `run` itself."""
    with state.engine.connect() as db:
        found = db.execute(
            text(
                "SELECT 1 FROM pipeline_runs WHERE project = :p AND view = :v AND revision = :r AND state IN ('queued', 'running', 'waiting') "
                "AND id <> :id LIMIT 1"
            ),
            {"p": run.project, "v": run.view, "r": run.revision, "id": run.id},
        ).scalar()
    return found is not None


def listing(
    state: State, project: str, *, after: int, limit: int, chosen: dict[str, str]
) -> list[tuple[int, PipelineRun]]:
    """Return runs of the views as they are defined now, oldest first, each with its number; `chosen` narrows by view, batch, state."""
    where = " AND ".join(f"r.{column} = :{column}" for column, value in chosen.items() if value) or "1 = 1"
    query = (
        "SELECT r.* FROM pipeline_runs r JOIN view_revisions v ON v.project = r.project AND v.view = r.view AND v.revision = r.revision "
        f"WHERE v.holds = 1 AND r.project = :project AND r.seq > :after AND {where} ORDER BY r.seq LIMIT :limit"
    )
    with state.engine.connect() as db:
        rows = db.execute(text(query), {"project": project, "after": after, "limit": limit, **chosen}).mappings().all()
    return [(row["seq"], _run(row)) for row in rows]


def _run(row: Any) -> PipelineRun:
    return PipelineRun(
        id=row["id"], project=row["project"], view=row["view"], batch=row["batch"], state=row["state"],
        feature_set=row["feature_set"], inputs=msgspec.json.decode(row["inputs"]), rows=row["row_count"], seconds=row["seconds"],
        error=row["error"], at=moment(row["at"]),
    )  # fmt: skip


def _us(at: datetime | None) -> int | None:
    return None if at is None else micros(at)


def _at(value: int | None) -> datetime | None:
    return None if value is None else moment(value)
