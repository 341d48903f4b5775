"""What comes due: cron times and the platform's events queue runs, each fire once, whatever dies in between.

A fire is a row unique by job and due time (or event), written in the transaction that queues its run and moves the job's next
due time or the cursor on the events. After an absence a job's policy says which missed times are made up for. What goes wrong
with one job is its own: its run has failed and says why, or the log says so, and every other job fires.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from cellwork import clock, ids
from cellwork.errors import BadInput, CellworkError
from cellwork.jobs import schedule
from cellwork.runs import parameters
from cellwork.wire.jobs import Policy, Schedule
from cellwork.wire.records import Event
from cellwork_hub import records
from cellwork_hub.jobs import attempts, checkpoints, leases, retention, runs, store
from cellwork_hub.jobs.store import Events, State
from cellwork_hub.records import micros, moment

log = logging.getLogger("cellwork.jobs")

TICK_SECONDS = 0.5
FOLLOW_SECONDS = 1.0
SWEEP_SECONDS = 60.0
CURSOR = "cellwork"
PUNCTUAL = timedelta(seconds=60)
MOST_AT_ONCE = 200
DUE = "SELECT * FROM jobs WHERE paused = 0 AND next_due <= :now"
UNDER_WAY = "SELECT count(*) AS runs FROM runs WHERE job_id = :job AND lane = '' AND ended IS NULL AND state IN ('queued', 'running')"


def last_due(plan: Schedule, first: datetime, now: datetime) -> datetime:
    """Return the last time `plan` was due up to `now`; `first`, a due time, if none came after it.

    It looks back an hour, a day, and so on, so that an absence of a year costs no more than one of a day.
    """
    for days in (1 / 24 / 60, 1 / 24, 1, 32, 366, 366 * 30):
        start = max(first, now - timedelta(days=days))
        found = list(takewhile(lambda due: due <= now, schedule.due(plan, start)))
        if found or start == first:
            return found[-1] if found else first
    return first


def to_fire(plan: Schedule, first: datetime, now: datetime) -> list[datetime]:
    """Return which of the times from `first` to `now` at which `plan` was due are fired, by its policy for missed ones.

    A time that is noticed within PUNCTUAL was not missed. Of very many missed times the first ones come now, the others next.
    """
    if plan.catch_up == "all":
        return [first, *islice(takewhile(lambda due: due <= now, schedule.due(plan, first)), MOST_AT_ONCE - 1)]
    last = last_due(plan, first, now)
    return [last] if plan.catch_up == "last" or now - last <= PUNCTUAL else []


@contextlib.contextmanager
def alone(db: Connection, job: Mapping[str, Any], what: str) -> Iterator[None]:
    """Keep what goes wrong with `job` from the others: what was written for it is undone, and the log says so."""
    try:
        with db.begin_nested():
            yield
    except OperationalError:  # the database is away, and no job's fault
        raise
    except Exception:
        log.exception("job %s/%s: %s went wrong", job["project"], job["name"], what)


def tick(state: State) -> int:
    """Fire what is due by the clock; returns how many runs were queued."""
    fired, now = 0, clock.now()
    with state.engine.begin() as db:
        for job in store.select(db, DUE, now=micros(now)):
            done = None
            with alone(db, job, "what is due by the clock"):
                done = _come_due(state, db, job, now)
            fired += _say_so(db, job, now) if done is None else done
    if fired:
        state.bell.ring()
    return fired


def _come_due(state: State, db: Connection, job: Mapping[str, Any], now: datetime) -> int:
    """Fire the times at which `job` was due and note when it is next; returns how many runs were queued."""
    plan = msgspec.json.decode(job["schedule"], type=Schedule)
    first = moment(job["next_due"])
    chosen = to_fire(plan, first, now)
    fired = sum(fire(state, db, job, micros(due), "schedule") for due in chosen)
    following = store.due_after(plan, chosen[-1] if len(chosen) == MOST_AT_ONCE else now)
    store.write(db, "UPDATE jobs SET next_due = :due WHERE id = :id", due=following, id=job["id"])
    if now - first > PUNCTUAL:
        log.warning("job %s/%s: was away since %s; catches up with %d fires (%s)", job["project"], job["name"], first, len(chosen), plan.catch_up)  # fmt: skip
    return fired


def _say_so(db: Connection, job: Mapping[str, Any], now: datetime) -> int:
    """Make what could not be fired a failed run, and go on with the next time of `job`, if it can be told; returns how many runs."""
    following, reason = None, "what was due could not be fired; the log of the jobs service says why"
    with alone(db, job, "when it is due next"):
        following = store.due_after(msgspec.json.decode(job["schedule"], type=Schedule), now)
    if following is None:
        reason += ". When it is due next can't be told: pause and resume it when that is mended"
    store.write(db, "UPDATE jobs SET next_due = :due WHERE id = :id", due=following, id=job["id"])
    with alone(db, job, "its failed run"):
        row = {"due": job["next_due"], "cause": "schedule", "id": ids.new("run"), "parameters": job["parameters"]}
        _refuse(db, {**runs.of_job(job), **row}, reason)
        return 1
    return 0


def after_success(db: Connection, state: State, run: Mapping[str, Any]) -> int:
    """Fire the jobs that come after the job of `run`, for the time it was due; returns how many. Its own success stands in any case."""
    if not run["job"]:
        return 0
    fired = 0
    for job in store.select(db, "SELECT * FROM jobs WHERE paused = 0 AND schedule LIKE :after", after=f'%"after":"{run["job"]}"%'):  # fmt: skip
        with alone(db, job, f"to come after {run['id']}"):
            if msgspec.json.decode(job["schedule"], type=Schedule).after == run["job"]:
                fired += fire(state, db, job, run["due"] or store.now(), f"after {run['id']}", of=run["id"])
    return fired


def take_events(state: State, events: Iterable[Event]) -> int:
    """Fire the jobs that wait for `events` and move the cursor past them, in one transaction; returns how many runs were queued."""
    fired, last = 0, 0
    with state.engine.begin() as db:
        jobs = store.select(db, "SELECT * FROM jobs WHERE paused = 0")
        plans = [(job, plan) for job in jobs if (plan := msgspec.json.decode(job["schedule"], type=Schedule)).event]
        for event in events:
            at, last = micros(event.at), event.seq
            for job, plan in plans:
                if plan.event == event.name and at >= job["since"] and matches(plan, job["project"], event):
                    with alone(db, job, f"event {event.id}"):
                        fired += fire(state, db, job, at, f"event {event.id}", event)
        if last:
            store.write(
                db,
                "INSERT INTO cursors VALUES (:name, :seq) ON CONFLICT (name) DO UPDATE SET seq = excluded.seq",
                name=CURSOR,
                seq=last,
            )
    if fired:
        state.bell.ring()
    return fired


def matches(plan: Schedule, project: str, event: Event) -> bool:
    """Say whether `event` has the fields that `plan` asks for; without a word on it, its project is the job's.

    Another project's events are for its members: that who applies the job is one is asked then (`definitions.ensure`), and not
    again at each event.
    """
    fields = {"subject": event.subject, **event.data, "project": event.project}
    return all(str(fields.get(key)) == value for key, value in {"project": project, **plan.match}.items())


def cursor(state: State) -> int:
    """Return the sequence number of the last event that was taken."""
    with state.engine.connect() as db:
        row = store.one(db, "SELECT seq FROM cursors WHERE name = :name", name=CURSOR)
    return row["seq"] if row else 0


def fire(
    state: State, db: Connection, job: Mapping[str, Any], due: int, cause: str, event: Event | None = None, of: str = ""
) -> int:  # fmt: skip
    """Queue the run of one fire, unless it was queued before or the job leaves it out; returns 1 or 0.

    Parameters that don't fit, or can't be told, make it a failed run. A fire that is left out because runs are under way is
    written down as one without a run, so that it isn't made up for later.
    """
    skipped = _under_way(db, job)
    row = {**runs.of_job(job), "due": due, "cause": cause, "id": ids.new("run"), "parameters": job["parameters"]}
    key = event.id if event else of or str(due)
    if not store.insert(
        db, "fires", {"job_id": job["id"], "fire": key, "run": "" if skipped else row["id"]}, once=True
    ):
        return 0
    if skipped:
        log.info("job %s/%s: %s is left out, a run is under way", job["project"], job["name"], cause)
        return 0
    try:
        values = store.json(_parameters(state, db, job, due, event, of))
    except OperationalError:
        raise
    except CellworkError as error:
        _refuse(db, row, str(error))
    except Exception as error:  # the run is its owner's to look at; the traceback is for who runs the platform
        log.exception("job %s/%s: its parameters can't be told", job["project"], job["name"])
        _refuse(db, row, f"its parameters can't be told: {type(error).__name__}: {error}")
    else:
        runs.queue(db, {**row, "parameters": values})
    if event and event.subject.startswith("bat_"):
        records.edge(db, row["id"], "built_from", event.subject)
    return 1


def _refuse(db: Connection, row: Mapping[str, Any], reason: str) -> None:
    runs.queue(db, row)
    attempts.refuse(db, store.run_row(db, row["id"]), reason.replace("\0", "\ufffd"))


def _under_way(db: Connection, job: Mapping[str, Any]) -> bool:
    """Say whether `job` leaves out what comes now, because as many of its runs as may be have not ended."""
    if msgspec.json.decode(job["policy"], type=Policy).while_running == "queue":
        return False
    found = store.one(db, UNDER_WAY, job=job["id"])
    return bool(found and found["runs"] >= job["concurrency"])


def _parameters(
    state: State, db: Connection, job: Mapping[str, Any], due: int, event: Event | None, of: str
) -> dict[str, Any]:
    timezone = msgspec.json.decode(job["schedule"], type=Schedule).timezone
    given = msgspec.json.decode(job["parameters"])
    asked = "last_success" in schedule.used(given)
    last = runs.last_success(db, f"{job['project']}/{job['name']}") if asked else None
    known = schedule.variables(moment(due), timezone, event, last_success=last, run=of)
    values = schedule.expand(given, known)
    return parameters.check(
        _notebook(state.home.source(job["notebook_sha256"]), job["notebook"]), values, job["notebook"]
    )


@functools.lru_cache(maxsize=256)
def _notebook(path: Path, name: str) -> dict[str, Any]:
    """Return the notebook at `path`, which is named by its content and never changes: a thousand jobs that come due read it once."""
    try:
        return parameters.read(path.read_bytes(), name)
    except OSError as error:
        raise BadInput("notebook", name, f"as the job kept it can't be read ({error.strerror})", "apply the job again: cellwork job apply") from None  # fmt: skip


class Ticker:
    """Two threads: one fires by the clock and takes back lost runs, one follows the platform's events."""

    def __init__(self, state: State, events: Events) -> None:
        self.state, self.events = state, events
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=run, name=run.__name__, daemon=True) for run in (self._tick, self._follow)
        ]

    def start(self) -> None:
        attempts.extend(self.state)
        leases.extend(self.state)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(5)

    def alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def _tick(self) -> None:
        swept = looked = time.monotonic()
        while not self._stop.wait(TICK_SECONDS):
            if (still := time.monotonic() - looked) > self.state.lease.total_seconds() / 2:
                log.warning("the clock stood still for %.0f s, as its runners may have: every lease is renewed", still)
                self._do(attempts.extend)
                self._do(leases.extend)
            looked = time.monotonic()
            if time.monotonic() - swept > SWEEP_SECONDS:
                self._do(retention.forget)
                swept = time.monotonic()
            for duty in (attempts.expire, leases.expire, attempts.miss, tick):
                self._do(duty)

    def _do(self, duty: Callable[[State], object]) -> None:
        """Do `duty`, or say in the log why not: neither the other duties nor the thread end with it."""
        try:
            duty(self.state)
        except (CellworkError, OperationalError) as error:
            log.warning("the clock waits: %s", error)
        except Exception:
            log.exception("the clock goes on without %s.%s", duty.__module__, duty.__name__)

    def _follow(self) -> None:
        self._do(checkpoints.tidy)
        while not self._stop.wait(FOLLOW_SECONDS):
            try:
                while found := self.events(cursor(self.state)):
                    take_events(self.state, found)
            except (CellworkError, OperationalError) as error:
                log.info("the platform's events wait: %s", error)
            except Exception:
                log.exception("the platform's events wait")
