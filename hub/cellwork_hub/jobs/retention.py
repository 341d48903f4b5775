"""Forget ended runs beyond what their job keeps: rows, executed notebooks and checkpoints go; events, audit and lineage stay.

The fires stay too: a time that was fired is never fired again, however little is remembered of its run.
"""

from __future__ import annotations

import shutil

import msgspec

from cellwork.wire.jobs import Policy
from cellwork_hub.jobs import store
from cellwork_hub.jobs.store import State

OLD = (
    "SELECT id FROM runs WHERE job_id = :job AND ended IS NOT NULL AND state NOT IN ('queued', 'running') "
    "AND id NOT IN (SELECT run FROM kept) AND id NOT IN (SELECT run FROM notices WHERE sent IS NULL) ORDER BY seq DESC LIMIT 1000 OFFSET :kept"
)


def forget(state: State) -> int:
    """Forget what no job keeps; returns how many runs."""
    with state.engine.connect() as db:
        jobs = store.select(db, "SELECT id, policy FROM jobs")
        keeps = [(job["id"], msgspec.json.decode(job["policy"], type=Policy).keep_runs) for job in jobs]
        old = [row["id"] for job, kept in keeps if kept for row in store.select(db, OLD, job=job, kept=kept)]
    for run in old:
        remove(state, run)
    return len(old)


def remove(state: State, run: str) -> None:
    """Take away the rows, notebooks and checkpoints of an ended run. May be called twice."""
    shutil.rmtree(state.home.attempt(run, 1).parent, ignore_errors=True)
    with state.engine.begin() as db:
        for table, column in (("attempts", "run"), ("notices", "run"), ("runs", "id")):
            store.write(db, f"DELETE FROM {table} WHERE {column} = :run", run=run)
