"""Kept kernels: a failed run's kernel waits under a lease for its owner, who attaches to it, mends the notebook and goes on.

    running --failed, the kernel lives--> failed + kept --resume--> queued + held --its own runner--> running (the next attempt)
                                            |    ^                       |
                     release, its time,     |    +-- the runner is lost--+    (held: no other runner may take it)
                     memory, a lost runner  v
                                          failed

The runner says every few seconds that the kernel lives; it learns by a Conflict that it shall end it. A row of `kept` and the
run's state change in one transaction. The run's token lives as long as its kernel is kept, and no longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection

from cellwork import clock
from cellwork.errors import Refused
from cellwork.wire.records import Principal
from cellwork_hub import records
from cellwork_hub.jobs import store
from cellwork_hub.jobs.store import State
from cellwork_hub.records import micros

Row = Mapping[str, Any]

LEFT = "SELECT * FROM runs WHERE token_id <> '' AND lease_until IS NULL AND id NOT IN (SELECT run FROM kept)"


def check_owner(state: State, principal: Principal, run: Row) -> None:
    """Raise Refused unless `principal` is whose rights the run's kernel holds."""
    if store.owner(state, principal)[0] != run["principal"]:
        way_out = "start a run of your own from its notebook"
        raise Refused(f"user {principal.name!r}", run["id"], f"is a run of {run['principal']}", way_out)


def keep(db: Connection, state: State, run: Row, attempt: Row) -> bool:
    """Keep the kernel of `attempt`, which has just failed for good; returns whether it is. A new one may push the oldest out."""
    if not state.keep:
        return False
    for old in store.select(db, "SELECT * FROM kept ORDER BY until DESC LIMIT 100 OFFSET :n", n=state.keep_most - 1):
        drop(db, old["run"], "another failed run's kernel took its place")
    now = clock.now()
    row = {
        "run": run["id"], "attempt": attempt["n"], "fence": attempt["fence"], "runner": attempt["runner"], "cell": attempt["cell"],
        "until": micros(now + state.keep), "heard": micros(now), "bytes": 0, "most_bytes": state.keep_bytes,
    }  # fmt: skip
    store.insert(db, "kept", row)
    store.write(db, "UPDATE runs SET token_id = :token WHERE id = :run", token=run["token_id"], run=run["id"])
    records.event(db, "run.kept", run["project"], run["id"], attempt=attempt["n"], cell=attempt["cell"])
    return True


def drop(db: Connection, run: str, reason: str) -> None:
    """Forget the kept kernel of `run`, if there is one. A run that waited for it has failed; `expire` takes its token back."""
    row = store.run_row(db, run)
    if not store.write(db, "DELETE FROM kept WHERE run = :run", run=run):
        return
    back = "UPDATE runs SET state = 'failed', held = 0, ended = :now WHERE id = :run AND state = 'queued' AND held = 1"
    store.write(db, back, run=run, now=store.now())
    records.event(db, "run.released", row["project"], run, reason=reason)


def expire(state: State) -> int:
    """Forget kernels whose time is up or whose runner was not heard of, and take tokens back; returns how many kernels."""
    now = store.now()
    with state.engine.begin() as db:
        silent = now - state.lease // timedelta(microseconds=1)
        lost = store.select(db, "SELECT * FROM kept WHERE until < :now OR heard < :heard", now=now, heard=silent)
        for row in lost:
            drop(db, row["run"], "its time was up" if row["until"] < now else "its runner was lost")
        left = store.select(db, LEFT)
        for row in left:
            store.write(db, "UPDATE runs SET token_id = '' WHERE id = :id", id=row["id"])
    for row in left:
        state.tokens.revoke(row["principal"], row["token_id"])
    return len(lost)


def extend(state: State, jumped: timedelta = timedelta()) -> None:
    """Take every runner that keeps a kernel as heard of just now: this service was away, not they.

    By as much as the time of day has `jumped` each is kept longer, or less long.
    """
    with state.engine.begin() as db:
        by = jumped // timedelta(microseconds=1)
        store.write(db, "UPDATE kept SET heard = :now, until = until + :by", now=store.now(), by=by)
