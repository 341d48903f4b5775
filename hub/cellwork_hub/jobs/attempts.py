"""How attempts end, and what becomes of their run: ended, queued again after a failure or a lost runner, or stopped for good.

Three lost runners are forgiven, because a run that takes its runner down would do so for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import msgspec
from sqlalchemy import Connection

from cellwork.wire.jobs import Policy
from cellwork_hub import records
from cellwork_hub.jobs import checkpoints, leases, notices, store
from cellwork_hub.jobs.store import State

log = logging.getLogger("cellwork.jobs")

Row = Mapping[str, Any]

MOST_LOST = 3
MOST_BACKOFF = timedelta(hours=1)
LOST = "SELECT * FROM runs WHERE lease_until < :now"
LATE = "SELECT * FROM runs WHERE deadline < :now AND state = 'queued' AND held = 0"


def micros(span: timedelta) -> int:
    return span // timedelta(microseconds=1)


def begin(db: Connection, run: Row, runner: str) -> dict[str, Any]:
    """Insert the next attempt at `run`, which `runner` has just claimed, and return it."""
    last = store.select(db, "SELECT coalesce(max(n), 0) AS n FROM attempts WHERE run = :run", run=run["id"])[0]["n"]
    attempt = {
        "run": run["id"], "n": last + 1, "fence": run["fence"] + 1, "runner": runner, "state": "running",
        "started": store.now(), "ended": None, "cell": 0, "cells": 0, "error": "", "first_cell": run["first_cell"],
    }  # fmt: skip
    store.insert(db, "attempts", attempt)
    return attempt


def renew(db: Connection, state: State, run: str) -> None:
    until = store.now() + micros(state.lease)
    store.write(db, "UPDATE runs SET lease_until = :until WHERE id = :run", until=until, run=run)


def undo(db: Connection, run: Row, attempt: Row, kept: Row | None, wait: timedelta) -> None:
    """Make as if `attempt` at `run` had not begun: the run waits on as it did, for the kernel that was `kept` if there is one."""
    store.write(
        db, "DELETE FROM attempts WHERE run = :run AND fence = :fence", run=attempt["run"], fence=attempt["fence"]
    )
    change = (
        "UPDATE runs SET state = 'queued', lease_until = NULL, not_before = :at, held = :held, first_cell = :first "
        "WHERE id = :run AND fence = :fence AND state = 'running'"
    )
    before = {"held": run["held"], "first": run["first_cell"], "at": store.now() + micros(wait)}
    if store.write(db, change, **before, run=attempt["run"], fence=attempt["fence"]) and kept:
        store.insert(db, "kept", {**kept, "heard": store.now()})


def end(db: Connection, state: State, run: Row, attempt: Row, word: str, error: str = "") -> None:
    """End `attempt` by its runner's last `word`; a failed run is queued again while it has retries left, ever later."""
    close(db, attempt, word, error or ("its runner was stopped" if word == "queued" else ""))
    if word == "failed" and run["retries_left"] > 0 and run["state"] == "running":
        given = msgspec.json.decode(run["policy"], type=Policy).backoff_seconds
        first = timedelta(seconds=given) if given else state.backoff
        wait = min(first * 2 ** min(attempt["n"] - 1, 20), MOST_BACKOFF)
        settle(db, run, "queued", retries_left=run["retries_left"] - 1, not_before=store.now() + micros(wait))
    else:
        settle(db, run, word)


def close(db: Connection, attempt: Row, word: str, error: str) -> None:
    change = "UPDATE attempts SET state = :word, error = :error, ended = :now WHERE run = :run AND fence = :fence"
    store.write(
        db, change, word=word, error=error[:20_000], now=store.now(), run=attempt["run"], fence=attempt["fence"]
    )


def settle(db: Connection, run: Row, word: str, **fields: int) -> None:
    """Put `run` into the state `word`; one that was stopped stays stopped."""
    target = "stopped" if run["state"] == "stopped" else word
    more = "".join(f", {key} = :{key}" for key in fields)
    ended = None if target == "queued" else store.now()
    change = f"UPDATE runs SET state = :word, lease_until = NULL, token_id = '', ended = :ended{more} WHERE id = :id"
    store.write(db, change, word=target, id=run["id"], ended=ended, **fields)
    if target == "succeeded" and run["job_id"]:
        at = run["due"] or run["created"]
        store.insert(db, "successes", {"job_id": run["job_id"], "job": run["job"], "at": at}, once=True)
    if target != run["state"] and target != "queued":
        records.event(db, f"run.{target}", run["project"], run["id"], job=run["job"], notebook=run["notebook"])
        notices.write(db, run, target)


def after(state: State, run: Row, *, kept: bool = False) -> None:
    """After an attempt: its token ends with it, unless its kernel is kept, and the next run may start."""
    state.bell.ring()
    if run["token_id"] and not kept:
        state.tokens.revoke(run["principal"], run["token_id"])


def expire(state: State) -> int:
    """Take back the runs whose runner was not heard of within its lease; returns how many.

    A lease is a time of day: if that jumped, every runner gets a fresh one, and its kept kernels with it.
    """
    jumped = state.watch.jumped()
    if jumped:
        log.warning("the time of day jumped by %s: every lease is renewed", jumped)
        extend(state)
        leases.extend(state, jumped)
        state.watch.settled(jumped)
    with state.engine.begin() as db:
        lost = store.select(db, LOST, now=store.now())
        for run in lost:
            close(
                db, {"run": run["id"], "fence": run["fence"]}, "failed", "its runner was lost: no word within the lease"
            )
            settle(db, run, "failed" if run["lost"] >= MOST_LOST else "queued", lost=run["lost"] + 1)
    for run in lost:
        after(state, run)
        if run["state"] in checkpoints.OVER:
            checkpoints.forget(state.home, run["id"])
    return len(lost)


def miss(state: State) -> int:
    """Fail the runs that wait beyond their deadline; returns how many."""
    with state.engine.begin() as db:
        late = store.select(db, LATE, now=store.now())
        for run in late:
            refuse(db, run, "its deadline passed before it was started")
    return len(late)


def refuse(db: Connection, run: Row, error: str) -> None:
    """Fail a run that never starts, with an attempt that says why."""
    last = store.select(db, "SELECT coalesce(max(n), 0) AS n FROM attempts WHERE run = :run", run=run["id"])[0]["n"]
    at = store.now()
    row = {
        "run": run["id"], "n": last + 1, "fence": run.get("fence", 0), "runner": "", "state": "failed", "started": at, "ended": at, "cell": 0, "cells": 0,
        "error": error, "first_cell": 1,
    }  # fmt: skip
    store.insert(db, "attempts", row)
    settle(db, {"state": "queued", **run}, "failed")


def extend(state: State) -> None:
    """Give every running attempt a fresh lease, and none a longer one: this service was away, not its runners."""
    with state.engine.begin() as db:
        until = store.now() + micros(state.lease)
        store.write(db, "UPDATE runs SET lease_until = :until WHERE lease_until > 0", until=until)
