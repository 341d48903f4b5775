"""What comes due: cron times and the platform's events queue runs, each fire once, whatever dies in between.

A fire is a row unique by job and due time (or event), written in the transaction that queues its run and moves the job's next
due time or the cursor on the events. After an absence the last missed time of a job is made up for, the earlier ones are not.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any

import msgspec
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from cellwork import clock, ids
from cellwork.errors import BadInput, CellworkError
from cellwork.jobs import schedule
from cellwork.runs import parameters
from cellwork.wire.jobs import Schedule
from cellwork.wire.records import Event
from cellwork_hub import records
from cellwork_hub.jobs import attempts, leases, runs, store
from cellwork_hub.jobs.store import Events, State
from cellwork_hub.records import micros, moment

log = logging.getLogger("cellwork.jobs")

TICK_SECONDS = 0.5
FOLLOW_SECONDS = 1.0
CURSOR = "cellwork"
DUE = "SELECT * FROM jobs WHERE paused = 0 AND next_due <= :now"


def last_due(plan: Schedule, first: datetime, now: datetime) -> datetime:
    """Return the last time `plan` was due up to `now`; `first`, a due time, if none came after it.

    It looks back an hour, a day, and so on, so that an absence of a year costs no more than one of a day.
    """
    for days in (1 / 24, 1, 32, 366, 366 * 30):
        start = max(first, now - timedelta(days=days))
        found = list(takewhile(lambda due: due <= now, clock.fires(plan.cron, start, plan.timezone)))
        if found or start == first:
            return found[-1] if found else first
    return first


def tick(state: State) -> int:
    """Fire what is due by the clock; returns how many runs were queued."""
    fired, now = 0, clock.now()
    with state.engine.begin() as db:
        for job in store.select(db, DUE, now=micros(now)):
            plan = msgspec.json.decode(job["schedule"], type=Schedule)
            due = micros(last_due(plan, moment(job["next_due"]), now))
            if due != job["next_due"]:
                log.warning(
                    "job %s/%s: missed since %s; only its last time is made up for",
                    job["project"],
                    job["name"],
                    moment(job["next_due"]),
                )
            fired += fire(state, db, job, due, "schedule")
            store.write(
                db, "UPDATE jobs SET next_due = :due WHERE id = :id", due=store.due_after(plan, now), id=job["id"]
            )
    if fired:
        state.bell.ring()
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
    """Say whether `event` has the fields that `plan` asks for; without a word on it, its project is the job's."""
    fields = {"subject": event.subject, **event.data, "project": event.project}
    return all(str(fields.get(key)) == value for key, value in {"project": project, **plan.match}.items())


def cursor(state: State) -> int:
    """Return the sequence number of the last event that was taken."""
    with state.engine.connect() as db:
        row = store.one(db, "SELECT seq FROM cursors WHERE name = :name", name=CURSOR)
    return row["seq"] if row else 0


def fire(state: State, db: Connection, job: Mapping[str, Any], due: int, cause: str, event: Event | None = None) -> int:
    """Queue the run of one fire, unless it was queued before; returns 1 or 0. Parameters that don't fit make it a failed run."""
    row = {**runs.of_job(job), "due": due, "cause": cause, "id": ids.new("run"), "parameters": job["parameters"]}
    if not store.insert(
        db, "fires", {"job_id": job["id"], "fire": event.id if event else str(due), "run": row["id"]}, once=True
    ):
        return 0
    try:
        runs.queue(db, {**row, "parameters": store.json(_parameters(state, job, due, event))})
    except BadInput as error:
        runs.queue(db, row)
        _refuse(db, row, str(error))
    if event and event.subject.startswith("bat_"):
        records.edge(db, row["id"], "built_from", event.subject)
    return 1


def _parameters(state: State, job: Mapping[str, Any], due: int, event: Event | None) -> dict[str, Any]:
    timezone = msgspec.json.decode(job["schedule"], type=Schedule).timezone
    values = schedule.expand(msgspec.json.decode(job["parameters"]), schedule.variables(moment(due), timezone, event))
    notebook = parameters.read(state.home.source(job["notebook_sha256"]).read_bytes(), job["notebook"])
    return parameters.check(notebook, values, job["notebook"])


def _refuse(db: Connection, row: Mapping[str, Any], error: str) -> None:
    attempt = {
        "run": row["id"],
        "n": 1,
        "fence": 0,
        "runner": "",
        "state": "failed",
        "started": store.now(),
        "ended": store.now(),
        "cell": 0,
        "cells": 0,
        "error": error,
        "first_cell": 1,
    }
    store.insert(db, "attempts", attempt)
    store.write(db, "UPDATE runs SET state = 'failed' WHERE id = :id", id=row["id"])
    records.event(db, "run.failed", row["project"], row["id"], job=row["job"], notebook=row["notebook"])


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
        while not self._stop.wait(TICK_SECONDS):
            try:
                attempts.expire(self.state)
                leases.expire(self.state)
                tick(self.state)
            except (CellworkError, OperationalError) as error:
                log.warning("the clock waits: %s", error)

    def _follow(self) -> None:
        while not self._stop.wait(FOLLOW_SECONDS):
            try:
                while found := self.events(cursor(self.state)):
                    take_events(self.state, found)
            except (CellworkError, OperationalError) as error:
                log.info("the platform's events wait: %s", error)
