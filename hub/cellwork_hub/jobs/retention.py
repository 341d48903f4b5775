"""Forget ended runs beyond what their job keeps: rows, executed notebooks and checkpoints go; events, audit and lineage stay.

The fires stay too: a time that was fired is never fired again, however little is remembered of its run.
"""

from __future__ import annotations

import shutil

import msgspec
from sqlalchemy import Connection

from cellwork.wire.jobs import Policy
from cellwork_hub.jobs import store
from cellwork_hub.jobs.store import State

OLD = (
    "SELECT id FROM runs WHERE job_id = :job AND ended IS NOT NULL AND state NOT IN ('queued', 'running') AND lease_until IS NULL "
    "AND id NOT IN (SELECT run FROM kept) AND id NOT IN (SELECT run FROM notices WHERE sent IS NULL) ORDER BY seq DESC LIMIT 1000 OFFSET :kept"
)
ENDED = (
    "DELETE FROM runs WHERE id = :run AND state NOT IN ('queued', 'running') AND lease_until IS NULL "
    "AND id NOT IN (SELECT run FROM kept)"
)


def forget(state: State) -> int:
    """Forget what no job keeps; returns how many runs."""
    with state.engine.connect() as db:
        jobs = store.select(db, "SELECT id, policy FROM jobs")
        keeps = [(job["id"], msgspec.json.decode(job["policy"], type=Policy).keep_runs) for job in jobs]
        old = [row["id"] for job, kept in keeps if kept for row in store.select(db, OLD, job=job, kept=kept)]
    return sum(remove(state, run) for run in old)


def remove(state: State, run: str) -> bool:
    """Take away the rows, then the notebooks and checkpoints of an ended run; returns whether it was one. May be called twice."""
    with state.engine.begin() as db:
        gone = remove_rows(db, run)
    if gone:
        remove_files(state, run)
    return gone


def remove_rows(db: Connection, run: str) -> bool:
    """Take away the rows of a run; returns False, and leaves them, if it goes on or may go on in its kernel."""
    if not store.write(db, ENDED, run=run):
        return False
    for table in ("attempts", "notices"):
        store.write(db, f"DELETE FROM {table} WHERE run = :run", run=run)
    return True


def remove_files(state: State, run: str) -> None:
    shutil.rmtree(state.home.attempt(run, 1).parent, ignore_errors=True)
