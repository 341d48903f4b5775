"""Jobs: make or change, list, pause, resume, remove. Who changes a job owns it from then on, so that nobody's rights are borrowed."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, text

from cellwork import clock, ids
from cellwork.errors import BadInput
from cellwork.jobs import schedule
from cellwork.runs import parameters
from cellwork.wire.jobs import Job, JobRequest, Schedule
from cellwork_hub import records
from cellwork_hub.jobs import checkpoints, leases, notices, store
from cellwork_hub.jobs.store import State
from cellwork_hub.route import Call, Route

BY_NAME = (
    "SELECT * FROM jobs WHERE (:project = '' OR project = :project) AND project || '/' || name > :cursor "
    "ORDER BY project || '/' || name LIMIT :limit"
)
MOST_LABELS, MOST_LABEL_BYTES = 64, 16_000
CHANGES = (
    "notebook",
    "notebook_sha256",
    "files",
    "parameters",
    "schedule",
    "timeout_seconds",
    "image_digest",
    "retries",
    "concurrency",
    "policy",
    "labels",
)


def check(request: JobRequest) -> None:
    """Raise BadInput for anything in `request` that could only fail later."""
    ids.name(request.project, "project")
    ids.name(request.name, "job")
    store.check_paths(request.notebook, request.files)
    schedule.check(request.schedule, request.parameters)
    notebook = parameters.read(request.content, request.notebook)
    schedule.check_parameters(request.schedule, request.parameters, notebook, request.notebook)
    check_limits(request.timeout_seconds, request.retries, request.concurrency)
    schedule.check_policy(request.policy)
    check_labels(request.labels)


def check_limits(timeout_seconds: int, retries: int = 0, concurrency: int = 1) -> None:
    for name, value, least, most in (
        ("timeout_seconds", timeout_seconds, 1, store.MOST_TIMEOUT),
        ("retries", retries, 0, 20),
        ("concurrency", concurrency, 1, 1000),
    ):
        if not least <= value <= most:
            raise BadInput(name, value, "is out of range", f"choose from {least} to {most}")


def check_labels(labels: dict[str, str]) -> None:
    size = sum(len(key) + len(value) for key, value in labels.items())
    if len(labels) > MOST_LABELS or size > MOST_LABEL_BYTES:
        raise BadInput("labels", f"{len(labels)} of {size} characters", f"are over {MOST_LABELS} or {MOST_LABEL_BYTES}", "keep less with it")  # fmt: skip


def ensure(state: State, call: Call, request: JobRequest) -> Job:
    """Return the job `project/name` as `request` says; the same request twice changes nothing."""
    check(request)
    wanted = {
        "notebook": request.notebook, "notebook_sha256": store.keep(state.home, request.content),
        "files": store.json({path: store.keep(state.home, content) for path, content in sorted(request.files.items())}),
        "parameters": store.json(request.parameters), "schedule": store.json(request.schedule),
        "timeout_seconds": request.timeout_seconds, "retries": request.retries, "concurrency": request.concurrency,
        "policy": store.json(request.policy), "image_digest": call.origin.image_digest, "labels": store.json(request.labels),
    }  # fmt: skip
    with state.engine.begin() as db:
        found = store.one(db, "SELECT * FROM jobs WHERE project = :p AND name = :n", p=request.project, n=request.name)
        if found is not None and all(found[key] == wanted[key] for key in CHANGES):
            return store.as_job(found)
        if request.schedule.after:
            call.enter(ids.split_name(request.schedule.after)[0])
        if (of := request.schedule.match.get("project", request.project)) != request.project:
            call.enter(of)
        _check_chain(db, f"{request.project}/{request.name}", request.schedule.after)
        who, granted = store.owner(state, call.principal)
        wanted |= {"owner": who, "scopes": store.json(sorted(granted))}
        if found is None or found["schedule"] != wanted["schedule"]:
            wanted |= {"since": store.now(), "next_due": store.due_after(request.schedule, clock.now())}
        _write(db, request, found, wanted)
        row = store.job_row(db, request.project, request.name)
        name = f"{request.project}/{request.name}"
        records.event(db, "job.changed" if found else "job.created", request.project, name, revision=row["revision"])
        before = store.as_job(found) if found else ""
        records.audit(db, call, "job.change" if found else "job.create", name, before=before, after=store.as_job(row))
        return store.as_job(row)


def _check_chain(db: Connection, name: str, after: str) -> None:
    """Raise BadInput if the job `name` would come after itself; one after a job that is not there yet waits for it."""
    chain = [name]
    while after:
        chain.append(after)
        if after == name or len(chain) > 100:
            raise BadInput("job", name, f"would come after itself: {' after '.join(chain)}", "break the circle")
        project, short = ids.split_name(after)
        found = store.one(db, "SELECT schedule FROM jobs WHERE project = :p AND name = :n", p=project, n=short)
        after = msgspec.json.decode(found["schedule"], type=Schedule).after if found else ""


def _write(db: Connection, request: JobRequest, found: dict[str, Any] | None, wanted: dict[str, Any]) -> None:
    if found is None:
        store.insert(
            db,
            "jobs",
            {
                "id": ids.new("job"),
                "project": request.project,
                "name": request.name,
                "revision": 1,
                "paused": 0,
                **wanted,
            },
        )
        return
    fields = ", ".join(f"{key} = :{key}" for key in wanted)
    db.execute(text(f"UPDATE jobs SET {fields}, revision = revision + 1 WHERE id = :id"), {**wanted, "id": found["id"]})


def pause(state: State, call: Call, *, paused: bool) -> Job:
    """Return the job, paused or not. What came due while it was paused is not made up for."""
    with state.engine.begin() as db:
        row = store.job_row(db, call.path["project"], call.path["name"])
        if bool(row["paused"]) != paused:
            due = store.due_after(msgspec.json.decode(row["schedule"], type=Schedule), clock.now())
            change = "UPDATE jobs SET paused = :paused, since = :now, next_due = :due WHERE id = :id"
            store.write(db, change, paused=int(paused), now=store.now(), due=due, id=row["id"])
            name = f"{row['project']}/{row['name']}"
            records.event(db, "job.changed", row["project"], name, paused=paused)
            records.audit(
                db, call, "job.pause" if paused else "job.resume", name, before=bool(row["paused"]), after=paused
            )
        return store.as_job(store.job_row(db, row["project"], row["name"]))


def remove(state: State, call: Call) -> None:
    """Forget the job; its runs stay, and those that wait are stopped."""
    with state.engine.begin() as db:
        row = store.job_row(db, call.path["project"], call.path["name"])
        name = f"{row['project']}/{row['name']}"
        waiting = store.select(db, "SELECT * FROM runs WHERE job_id = :id AND state = 'queued'", id=row["id"])
        for run in waiting:
            if run["held"]:
                leases.drop(db, run["id"], "its job was removed")
            store.write(
                db, "UPDATE runs SET state = 'stopped', ended = :now WHERE id = :id", now=store.now(), id=run["id"]
            )
            records.event(db, "run.stopped", row["project"], run["id"], job=name)
            notices.write(db, run, "stopped")
        store.write(db, "DELETE FROM jobs WHERE id = :id", id=row["id"])
        records.event(db, "job.changed", row["project"], name, removed=True)
        records.audit(db, call, "job.remove", name, before=store.as_job(row))
    for run in waiting:
        checkpoints.forget(state.home, run["id"])


def listing(state: State, call: Call) -> list[Job]:
    limit, project, cursor = call.limit(), call.query.get("project", ""), call.query.get("cursor", "")
    with state.engine.connect() as db:
        rows = store.select(db, BY_NAME, project=project, cursor=cursor, limit=limit)
    jobs = [store.as_job(row) for row in rows]
    if len(jobs) == limit:
        call.next_page(f"{jobs[-1].project}/{jobs[-1].name}")
    call.may_enter("")
    return [job for job in jobs if call.may_enter(job.project)]


def routes(state: State) -> list[Route]:
    def put(call: Call) -> Job:
        if (call.body.project, call.body.name) != (call.path["project"], call.path["name"]):
            raise BadInput(
                "job",
                f"{call.body.project}/{call.body.name}",
                "is not the one of the path",
                "send the same project and name",
            )
        return ensure(state, call, call.body)

    def get(call: Call) -> Job:
        with state.engine.connect() as db:
            return store.as_job(store.job_row(db, call.path["project"], call.path["name"]))

    def as_request(call: Call) -> JobRequest:
        with state.engine.connect() as db:
            return store.as_request(state.home, store.job_row(db, call.path["project"], call.path["name"]))

    one = "/api/v1/jobs/{project}/{name}"
    return [
        Route(
            "GET",
            "/api/v1/jobs",
            lambda call: listing(state, call),
            scope="jobs:read",
            answer=list[Job],
            doc="Jobs, by name.",
        ),
        Route("PUT", one, put, scope="jobs:write", body=JobRequest, answer=Job, doc="Make or change a job."),
        Route("GET", one, get, scope="jobs:read", answer=Job, doc="One job."),
        Route(
            "GET",
            f"{one}/request",
            as_request,
            scope="jobs:read",
            answer=JobRequest,
            doc="The request that would make it as it is, with its notebook.",
        ),
        Route("DELETE", one, lambda call: remove(state, call), scope="jobs:write", doc="Forget a job; its runs stay."),
        Route(
            "POST",
            f"{one}/pause",
            lambda call: pause(state, call, paused=True),
            scope="jobs:write",
            answer=Job,
            doc="Fire it no more.",
        ),
        Route(
            "POST",
            f"{one}/resume",
            lambda call: pause(state, call, paused=False),
            scope="jobs:write",
            answer=Job,
            doc="Fire it again.",
        ),
    ]
