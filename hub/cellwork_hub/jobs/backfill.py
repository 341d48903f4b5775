"""Backfill: runs of a job for times that have passed, as if it had been there, some at once, after everything that is due now.

All runs of one request are queued in one transaction, in the order of their times. They wait behind the job's own fires and
do not count against its concurrency, but against the request's own. A time whose newest run succeeded or is under way is left
alone.
"""

from __future__ import annotations

from datetime import datetime
from itertools import takewhile
from typing import Any

import msgspec
from sqlalchemy import Connection

from cellwork import clock, ids
from cellwork.errors import BadInput
from cellwork.jobs import schedule
from cellwork.runs import parameters
from cellwork.wire.jobs import Backfill, BackfillRequest, Policy, Run, Schedule
from cellwork_hub import records
from cellwork_hub.jobs import runs, store
from cellwork_hub.jobs.store import State
from cellwork_hub.records import micros, moment
from cellwork_hub.route import Call, Route

MOST_TIMES, MOST_PARALLEL = 5000, 100
BEHIND = 1000
"""By so much the priority of a backfill is below that of the job's fires."""
NEWEST = (
    "SELECT * FROM runs r WHERE job_id = :job AND due >= :first AND due <= :last AND seq = "
    "(SELECT max(seq) FROM runs x WHERE x.job_id = r.job_id AND x.due = r.due) ORDER BY due"
)


def times(plan: Schedule, first: datetime, last: datetime) -> list[datetime]:
    """Return when a job is due from `first` up to `last`; one that goes by no clock, at each midnight of its zone."""
    just_before = moment(micros(first) - 1)
    if not (plan.cron or plan.every_seconds):
        plan = Schedule(cron="0 0 * * *", timezone=plan.timezone)
    found = []
    for due in takewhile(lambda due: due <= last, schedule.due(plan, just_before)):
        found.append(due)
        if len(found) > MOST_TIMES:
            raise BadInput(
                "backfill",
                f"{first.isoformat()} to {last.isoformat()}",
                f"has more than {MOST_TIMES} times",
                "ask for it in parts",
            )
    return found


def start(state: State, call: Call) -> Backfill:
    """Queue what the request asks for; returns the runs that were queued."""
    asked: BackfillRequest = call.body
    first, last = clock.utc(asked.first), clock.utc(asked.last)
    if last < first or not 1 <= asked.parallel <= MOST_PARALLEL:
        raise BadInput("backfill", f"{first.isoformat()} to {last.isoformat()}, {asked.parallel} at once", "is out of range", f"end after the start, with 1 to {MOST_PARALLEL} at once")  # fmt: skip
    who, granted = store.owner(state, call.principal)
    with state.engine.begin() as db:
        job = store.job_row(db, call.path["project"], call.path["name"])
        plan = msgspec.json.decode(job["schedule"], type=Schedule)
        wanted = times(plan, first, last)
        query = NEWEST if wanted else f"{NEWEST} LIMIT 0"
        there = {
            row["due"]: row["state"]
            for row in store.select(db, query, job=job["id"], first=micros(first), last=micros(last))
        }
        kept = {"queued", "running"} if asked.again else {"queued", "running", "succeeded"}
        missing = [due for due in wanted if there.get(micros(due)) not in kept]
        lane = {
            "lane": ids.new("fire"),
            "lane_most": asked.parallel,
            "principal": who,
            "scopes": store.json(sorted(granted)),
        }
        queued = [_queue(state, db, job, plan, due, lane) for due in missing]
        name = f"{job['project']}/{job['name']}"
        records.audit(
            db,
            call,
            "job.backfill",
            name,
            after={"first": first.isoformat(), "last": last.isoformat(), "runs": len(queued)},
        )
    state.bell.ring()
    return Backfill(queued=queued, left_alone=len(wanted) - len(queued))


def _queue(
    state: State, db: Connection, job: dict[str, Any], plan: Schedule, due: datetime, lane: dict[str, Any]
) -> str:
    last = runs.last_success(db, f"{job['project']}/{job['name']}", before=micros(due))
    values = schedule.expand(
        msgspec.json.decode(job["parameters"]), schedule.variables(due, plan.timezone, last_success=last)
    )
    notebook = parameters.read(state.home.source(job["notebook_sha256"]).read_bytes(), job["notebook"])
    policy = msgspec.json.decode(job["policy"], type=Policy)
    behind = msgspec.structs.replace(policy, priority=policy.priority - BEHIND, deadline_seconds=0)
    row = {
        **runs.of_job(job),
        "parameters": store.json(parameters.check(notebook, values, job["notebook"])),
        "policy": store.json(behind),
    }
    return runs.queue(db, {**row, **lane, "due": micros(due), "cause": "backfill"})


def grid(state: State, call: Call) -> list[Run]:
    """Return the newest run for each time of the job, in order of the times."""
    first, last = (micros(clock.utc(call.required(name))) for name in ("first", "last"))
    with state.engine.connect() as db:
        job = store.job_row(db, call.path["project"], call.path["name"])
        rows = store.select(db, f"{NEWEST} LIMIT {MOST_TIMES}", job=job["id"], first=first, last=last)
        return [store.as_run(db, row) for row in rows]


def routes(state: State) -> list[Route]:
    one = "/api/v1/jobs/{project}/{name}"
    return [
        Route("POST", f"{one}/backfill", lambda c: start(state, c), scope="jobs:write", body=BackfillRequest, answer=Backfill, doc="Run a job for times that have passed."),
        Route("GET", f"{one}/grid", lambda c: grid(state, c), scope="jobs:read", answer=list[Run], doc="The newest run for each time of a job, from `first` to `last`."),
    ]  # fmt: skip
