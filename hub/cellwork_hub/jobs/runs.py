"""Runs: queue, list, look at, stop. A run keeps the content it was queued with; a later change of its job does not reach it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection

from cellwork import clock, ids
from cellwork.errors import BadInput, Conflict
from cellwork.jobs import schedule
from cellwork.runs import parameters
from cellwork.wire.jobs import Policy, Run, RunRequest, Schedule
from cellwork_hub import records
from cellwork_hub.jobs import attempts, checkpoints, leases, notices, retention, store
from cellwork_hub.jobs.definitions import check_labels, check_limits
from cellwork_hub.jobs.store import State
from cellwork_hub.route import Call, Route

NEWEST = (
    "SELECT * FROM runs WHERE seq < :cursor AND (:job = '' OR job = :job) AND (:project = '' OR project = :project) "
    "AND (:state = '' OR state = :state) ORDER BY seq DESC LIMIT :limit"
)
LAST_SUCCESS = "SELECT at FROM successes WHERE job = :job AND at < :before ORDER BY at DESC LIMIT 1"
NO_SUCCESS = (
    "DELETE FROM successes WHERE job_id = :job AND at = :at AND NOT EXISTS "
    "(SELECT 1 FROM runs WHERE job_id = :job AND state = 'succeeded' AND coalesce(due, created) = :at)"
)


def queue(db: Connection, row: Mapping[str, Any]) -> str:
    """Insert a queued run with the fields of `row` and return its id."""
    full = {
        "id": ids.new("run"), "job_id": "", "job": "", "due": None, "state": "queued", "created": store.now(), "retries_left": 0,
        "lost": 0, "not_before": 0, "fence": 0, "lease_until": None, "token_id": "", "first_cell": 1, "held": 0, "policy": "{}", "ended": None, "lane": "", "lane_most": 0, "image_digest": "", "labels": "{}", "once": "", **row,
    }  # fmt: skip
    policy = msgspec.json.decode(full["policy"], type=Policy)
    wait = policy.deadline_seconds * 1_000_000
    own = full["due"] and not full["cause"].startswith("after ")  # else it is that of the run before, however late
    since = full["due"] if own else full["created"]
    full |= {"priority": policy.priority, "deadline": since + wait if wait else None}
    store.insert(db, "runs", full)
    records.event(
        db, "run.queued", full["project"], full["id"], job=full["job"], notebook=full["notebook"], cause=full["cause"]
    )
    if full["job"]:
        records.edge(db, full["id"], "made_by", full["job"])
    identity: str = full["id"]
    return identity


def of_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a run takes from its job."""
    taken = {
        key: job[key]
        for key in (
            "project",
            "notebook",
            "notebook_sha256",
            "files",
            "timeout_seconds",
            "scopes",
            "policy",
            "image_digest",
            "labels",
        )
    }
    return taken | {
        "job_id": job["id"],
        "job": f"{job['project']}/{job['name']}",
        "principal": job["owner"],
        "retries_left": job["retries"],
    }


def start(state: State, call: Call) -> Run:
    """Queue a run of a job, or of a notebook that came along; its parameters are checked before."""
    request: RunRequest = call.body
    who, granted = store.owner(state, call.principal)
    mine = {"principal": who, "scopes": store.json(sorted(granted)), "cause": "manual", "once": request.once}
    check_labels(request.labels)
    if not request.job:
        mine["image_digest"] = request.origin.image_digest or call.origin.image_digest
    if bool(request.job) == bool(request.content):
        raise BadInput(
            "run",
            request.job,
            "names a job and brings a notebook, or neither",
            "send `job`, or `notebook` with `content`",
        )
    with state.engine.begin() as db:
        row = _of_job(state, db, request) if request.job else _of_notebook(state, request)
        labels = {**msgspec.json.decode(row.get("labels", "{}")), **request.labels}
        _check_once(db, who, request.once)
        identity = queue(db, {**row, **mine, "labels": store.json(labels)})
        records.audit(
            db,
            call,
            "run.start",
            identity,
            after={"job": request.job, "notebook": row["notebook"], "parameters": request.parameters},
        )
        run = store.as_run(db, store.run_row(db, identity))
    state.bell.ring()
    return run


def _check_once(db: Connection, who: str, once: str) -> None:
    """Raise Conflict if `who` has asked for a run with the word `once` before. Writers take turns, so none comes between."""
    found = (
        store.one(db, "SELECT id FROM runs WHERE principal = :who AND once = :once", who=who, once=once)
        if once
        else None
    )
    if found:
        raise Conflict(
            "run", once, f"was asked for before: it is {found['id']}", "look at that one, or choose another word"
        )


def last_success(db: Connection, job: str, before: int = 2**62) -> datetime | None:
    """Return when the last run of `job` that succeeded, of those due `before` a time, was due (or was asked for); None if there is none."""
    found = store.one(db, LAST_SUCCESS, job=job, before=before)
    return records.moment(found["at"]) if found else None


def _of_job(state: State, db: Connection, request: RunRequest) -> dict[str, Any]:
    job = store.job_row(db, *ids.split_name(request.job))
    timezone = msgspec.json.decode(job["schedule"], type=Schedule).timezone
    wanted = {**msgspec.json.decode(job["parameters"]), **request.parameters}
    asked = "last_success" in schedule.used(wanted)
    last = last_success(db, f"{job['project']}/{job['name']}") if asked else None
    values = schedule.expand(wanted, schedule.variables(clock.now(), timezone, last_success=last))
    notebook = parameters.read(state.home.source(job["notebook_sha256"]).read_bytes(), job["notebook"])
    return {**of_job(job), "parameters": store.json(parameters.check(notebook, values, job["notebook"]))}


def _of_notebook(state: State, request: RunRequest) -> dict[str, Any]:
    ids.name(request.project, "project")
    store.check_paths(request.notebook, request.files)
    check_limits(request.timeout_seconds)
    schedule.check_policy(request.policy)
    values = parameters.check(parameters.read(request.content, request.notebook), request.parameters, request.notebook)
    kept = {path: store.keep(state.home, content) for path, content in request.files.items()}
    return {
        "project": request.project, "notebook": request.notebook, "notebook_sha256": store.keep(state.home, request.content),
        "files": store.json(kept), "parameters": store.json(values), "timeout_seconds": request.timeout_seconds,
        "policy": store.json(request.policy),
    }  # fmt: skip


def stop(state: State, call: Call) -> Run:
    """Stop the run: one that waits never starts, one that runs is interrupted by its runner. An ended run stays as it ended."""
    with state.engine.begin() as db:
        row = store.run_row(db, call.path["run"])
        call.enter(row["project"])
        if row["held"]:
            leases.drop(db, row["id"], "the run was stopped")
        if row["state"] in ("queued", "running"):
            store.write(
                db, "UPDATE runs SET state = 'stopped', ended = :now WHERE id = :id", id=row["id"], now=store.now()
            )
            records.event(db, "run.stopped", row["project"], row["id"], job=row["job"])
            notices.write(db, row, "stopped")
            records.audit(db, call, "run.stop", row["id"], before=row["state"], after="stopped")
        run = store.as_run(db, store.run_row(db, row["id"]))
    if row["state"] == "queued":
        checkpoints.forget(state.home, row["id"])
    return run


def forget(state: State, call: Call) -> None:
    """Forget an ended run, and that it succeeded: its row, notebooks and checkpoints; events, audit and lineage stay."""
    with state.engine.begin() as db:
        row = store.run_row(db, call.path["run"])
        call.enter(row["project"])
        if row["state"] in ("queued", "running") or row["lease_until"] is not None:
            raise Conflict("run", row["id"], f"is {row['state']}", "stop it and wait for its end")
        leases.drop(db, row["id"], "the run was forgotten")
        records.audit(db, call, "run.forget", row["id"], before=row["state"])
        retention.remove_rows(db, row["id"])
        if row["state"] == "succeeded":
            store.write(db, NO_SUCCESS, job=row["job_id"], at=row["due"] or row["created"])
    retention.remove_files(state, row["id"])
    attempts.after(state, row)


def listing(state: State, call: Call) -> list[Run]:
    limit = call.limit()
    where = {key: call.query.get(key, "") for key in ("job", "project", "state")}
    with state.engine.connect() as db:
        found = store.select(db, NEWEST, **where, cursor=call.number("cursor", 2**62), limit=limit)
        if len(found) == limit:
            call.next_page(found[-1]["seq"])
        call.may_enter("")
        return [store.as_run(db, row) for row in found if call.may_enter(row["project"])]


def notebook(state: State, call: Call) -> bytes:
    """Return the executed notebook of the newest attempt that has one, else the notebook as it will run."""
    with state.engine.connect() as db:
        row = store.run_row(db, call.path["run"])
        call.enter(row["project"])
        attempts = len(store.as_run(db, row).attempts)
    call.media_type = "application/x-ipynb+json"
    found = store.executed(state.home, row["id"], attempts)
    return found or state.home.source(row["notebook_sha256"]).read_bytes()


def routes(state: State) -> list[Route]:
    def get(call: Call) -> Run:
        with state.engine.connect() as db:
            row = store.run_row(db, call.path["run"])
            call.enter(row["project"])
            return store.as_run(db, row)

    one = "/api/v1/runs/{run}"
    return [
        Route(
            "POST",
            "/api/v1/runs",
            lambda call: start(state, call),
            scope="jobs:write",
            body=RunRequest,
            answer=Run,
            doc="Run a job or a notebook now.",
        ),
        Route(
            "GET",
            "/api/v1/runs",
            lambda call: listing(state, call),
            scope="jobs:read",
            answer=list[Run],
            doc="Runs, newest first.",
        ),
        Route("GET", one, get, scope="jobs:read", answer=Run, doc="One run with its attempts."),
        Route(
            "GET",
            f"{one}/notebook",
            lambda call: notebook(state, call),
            scope="jobs:read",
            answer=bytes,
            doc="The executed notebook, so far.",
        ),
        Route(
            "DELETE",
            one,
            lambda call: forget(state, call),
            scope="jobs:write",
            doc="Forget an ended run; its events and lineage stay.",
        ),
        Route("POST", f"{one}/stop", lambda call: stop(state, call), scope="jobs:write", answer=Run, doc="Stop a run."),
    ]
