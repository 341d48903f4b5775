"""Backfill: runs of a job for times that have passed, as if it had been there, some at once, after everything that is due now.

The runs of one request are checked together, then queued in the order of their times, in parts, so that nobody waits long to
write; a request that broke off queues the rest when it is sent again. They wait behind the job's own fires and do not count
against its concurrency, but against the request's own. A time whose newest run succeeded or is under way is left alone, and so
is one that has succeeded and of which no run is kept.
"""

from __future__ import annotations

import time
from datetime import datetime
from itertools import takewhile
from typing import Any

import msgspec
from sqlalchemy import Connection

from cellwork import clock, ids
from cellwork.errors import BadInput, Conflict, TooLarge
from cellwork.jobs import schedule
from cellwork.runs import parameters
from cellwork.wire.jobs import Backfill, BackfillRequest, Policy, Run, Schedule
from cellwork_hub import records
from cellwork_hub.jobs import runs, store
from cellwork_hub.jobs.store import State
from cellwork_hub.records import micros, moment
from cellwork_hub.route import Call, Route

MOST_TIMES, MOST_PARALLEL = 5000, 100
MOST_BYTES = 100_000_000
PART = 200
"""Runs that are queued in one transaction."""
REST_SECONDS = 0.12
"""Between two of them: whoever waits to write SQLite looks again after 0.1 s at the latest, and must find it free."""
BEHIND = 1000
"""By so much the priority of a backfill is below that of the job's fires."""
NEWEST = (
    "FROM runs r WHERE job_id = :job AND due >= :first AND due <= :last AND seq = "
    "(SELECT max(seq) FROM runs x WHERE x.job_id = r.job_id AND x.due = r.due) ORDER BY due"
)

REMEMBERED = (
    "SELECT at FROM successes WHERE job_id = :job AND at >= :first AND at <= :last "
    "AND at NOT IN (SELECT due FROM runs WHERE job_id = :job AND due >= :first AND due <= :last)"
)


def times(plan: Schedule, first: datetime, last: datetime) -> list[datetime]:
    """Return when a job is due from `first` up to `last`; one that goes by no clock, at each midnight of its zone."""
    just_before = moment(micros(clock.kept(first)) - 1)
    now = clock.now()
    if not (plan.cron or plan.every_seconds):
        plan = Schedule(cron="0 0 * * *", timezone=plan.timezone)
    found: list[datetime] = []
    for due in takewhile(lambda due: due <= last, schedule.due(plan, just_before)):
        if due > now:
            raise BadInput("backfill", f"{first.isoformat()} to {last.isoformat()}", f"has a time that has not come yet ({due.isoformat()})", f"end before it, at {now.isoformat(timespec='seconds')}; then the job runs by itself")  # fmt: skip
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
    with state.engine.connect() as db:
        job = store.job_row(db, call.path["project"], call.path["name"])
        wanted = _wanted(db, job, first, last, again=asked.again)
        rows = _rows(state, db, job, [due for due, waits in wanted.items() if waits])
    lane = {"lane": ids.new("fire"), "lane_most": asked.parallel, "principal": who, "scopes": store.json(sorted(granted))}  # fmt: skip
    queued: list[str] = []
    for k in range(0, len(rows), PART):
        time.sleep(REST_SECONDS if k else 0)
        part = [{**row, **lane} for row in rows[k : k + PART]]
        queued += _queue_part(state, call, job, part, asked.again)
        state.bell.ring()
    return Backfill(queued=queued, left_alone=len(wanted) - len(queued))


def _wanted(db: Connection, job: dict[str, Any], first: datetime, last: datetime, *, again: bool) -> dict[datetime, bool]:  # fmt: skip
    """Return the times of `job` from `first` to `last`, and of each whether its run is still to be queued."""
    found = times(msgspec.json.decode(job["schedule"], type=Schedule), first, last)
    alone = _left_alone(db, job["id"], micros(first), micros(last), again=again) if found else set()
    return {due: micros(due) not in alone for due in found}


def _left_alone(db: Connection, job: str, first: int, last: int, *, again: bool) -> set[int]:
    """Return the times whose newest run is under way, or has succeeded and shall not run `again`."""
    kept = {"queued", "running"} if again else {"queued", "running", "succeeded"}
    asked = {"job": job, "first": first, "last": last}
    known = {row["due"] for row in store.select(db, f"SELECT due, state {NEWEST}", **asked) if row["state"] in kept}
    return known if again else known | {row["at"] for row in store.select(db, REMEMBERED, **asked)}


def _rows(state: State, db: Connection, job: dict[str, Any], dues: list[datetime]) -> list[dict[str, Any]]:
    """Return what is to be queued for each of `dues`, checked; no more than one backfill may hold."""
    notebook = parameters.read(state.home.source(job["notebook_sha256"]).read_bytes(), job["notebook"])
    zone = msgspec.json.decode(job["schedule"], type=Schedule).timezone
    given = msgspec.json.decode(job["parameters"])
    asked = "last_success" in schedule.used(given)
    policy = msgspec.json.decode(job["policy"], type=Policy)
    behind = msgspec.structs.replace(policy, priority=policy.priority - BEHIND, deadline_seconds=0)
    same = {**runs.of_job(job), "policy": store.json(behind), "cause": "backfill"}
    size, rows = 0, list[dict[str, Any]]()
    for due in dues:
        last = runs.last_success(db, same["job"], before=micros(due)) if asked else None
        values = schedule.expand(given, schedule.variables(due, zone, last_success=last))
        row = {**same, "due": micros(due), "parameters": store.json(parameters.check(notebook, values, job["notebook"]))}  # fmt: skip
        size += sum(len(value) for value in row.values() if isinstance(value, str))
        if size > MOST_BYTES:
            raise TooLarge("backfill", f"of {len(dues)} runs", f"holds more than {MOST_BYTES:,} bytes of parameters and labels", f"ask for it in parts, of {len(rows)} times at most")  # fmt: skip
        rows.append(row)
    return rows


def _queue_part(state: State, call: Call, job: dict[str, Any], rows: list[dict[str, Any]], again: bool) -> list[str]:
    """Queue `rows` in one transaction, less those that somebody else has queued meanwhile."""
    name = f"{job['project']}/{job['name']}"
    first, last = rows[0]["due"], rows[-1]["due"]
    with state.engine.begin() as db:
        now = store.job_row(db, job["project"], job["name"])
        if (now["id"], now["revision"]) != (job["id"], job["revision"]):
            raise Conflict("job", name, "was changed while its backfill was queued", "ask again: the times that are queued are left alone")  # fmt: skip
        alone = _left_alone(db, job["id"], first, last, again=again)
        queued = [runs.queue(db, row) for row in rows if row["due"] not in alone]
        told = {"first": moment(first).isoformat(), "last": moment(last).isoformat(), "runs": len(queued)}
        records.audit(db, call, "job.backfill", name, after=told)
    return queued


def grid(state: State, call: Call) -> list[Run]:
    """Return the newest run for each time of the job, in order of the times."""
    first, last = (micros(clock.utc(call.required(name))) for name in ("first", "last"))
    with state.engine.connect() as db:
        job = store.job_row(db, call.path["project"], call.path["name"])
        rows = store.select(db, f"SELECT * {NEWEST} LIMIT {MOST_TIMES}", job=job["id"], first=first, last=last)
        return [store.as_run(db, row) for row in rows]


def routes(state: State) -> list[Route]:
    one = "/api/v1/jobs/{project}/{name}"
    return [
        Route("POST", f"{one}/backfill", lambda c: start(state, c), scope="jobs:write", body=BackfillRequest, answer=Backfill, doc="Run a job for times that have passed."),
        Route("GET", f"{one}/grid", lambda c: grid(state, c), scope="jobs:read", answer=list[Run], doc="The newest run for each time of a job, from `first` to `last`."),
    ]  # fmt: skip
