"""Claims: a runner gets a run under a lease and a fence, reports on it, and publishes its result once.

Whose fence is stale learns it by a Conflict and changes nothing; a lease that ends hands the run to another attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import timedelta
from typing import Any

import anyio.to_thread
import msgspec
from sqlalchemy import Connection

from cellwork import files
from cellwork.errors import BadInput, CellworkError, Conflict, Unavailable
from cellwork.secrets import Masker
from cellwork.wire.jobs import Claim, ClaimRequest, Policy, Progress, Run
from cellwork.wire.secrets import Mask
from cellwork_hub import records
from cellwork_hub.jobs import attempts, checkpoints, fires, leases, store
from cellwork_hub.jobs.attempts import Row, micros
from cellwork_hub.jobs.store import State
from cellwork_hub.route import Call, Route

MOST_WAIT_SECONDS = 10.0
LOOK_SECONDS = 1.0
"""How often a claim that waits looks without being rung: a backoff may have ended."""
TOKEN_MARGIN_SECONDS = 300
HUB_AWAY = timedelta(seconds=2)

OLDEST = (
    "WITH busy AS MATERIALIZED (SELECT lane, lane_most, job_id FROM runs WHERE lease_until > 0) "
    "SELECT * FROM runs WHERE state = 'queued' AND held = 0 AND not_before <= :now "
    "AND (lane = '' OR lane NOT IN (SELECT lane FROM busy GROUP BY lane, lane_most HAVING count(*) >= lane_most)) "
    "AND (lane <> '' OR job_id NOT IN (SELECT job_id FROM busy WHERE lane = '' GROUP BY job_id "
    "HAVING count(*) >= (SELECT concurrency FROM jobs WHERE id = busy.job_id))) ORDER BY priority DESC, seq LIMIT 1"
)
"""What runs is counted once, by lane and by job; the first that waits and is in none of the full ones is taken. No history is read."""
HELD = "SELECT * FROM runs WHERE id = :run AND state = 'queued' AND held = 1"
CLAIMED = "UPDATE runs SET state = 'running', fence = fence + 1, lease_until = :until, held = 0, first_cell = 1 WHERE id = :id AND state = 'queued'"


def take(state: State, call: Call, runner: str, held: str = "") -> Claim | None:
    """Return the oldest queued run whose job may have one more running, as a new attempt of `runner`, with the run's own token.

    `held` names the run whose kernel the runner has kept; it gets that one or none.
    """
    with state.engine.begin() as db:
        row = store.one(db, HELD, run=held) if held else store.one(db, OLDEST, now=store.now())
        if row is None or not store.write(db, CLAIMED, until=store.now() + micros(state.first_lease), id=row["id"]):
            return None
        attempt = attempts.begin(db, row, runner)
        records.event(db, "run.started", row["project"], row["id"], attempt=attempt["n"], runner=runner)
        records.audit(db, call, "run.claim", row["id"], after={"attempt": attempt["n"], "runner": runner})
        kept = store.one(db, "SELECT * FROM kept WHERE run = :run", run=row["id"])
        store.write(db, "DELETE FROM kept WHERE run = :run", run=row["id"])
    content, beside = _sources(state, row, attempt)
    try:
        masks = _masks(state, row, attempt)
        token = _token(state, row, attempt)
    except Unavailable:
        with state.engine.begin() as db:
            attempts.undo(db, row, attempt, kept, HUB_AWAY)
        raise
    if row["token_id"]:
        state.tokens.revoke(row["principal"], row["token_id"])
    with state.engine.connect() as db:
        run = store.as_run(db, store.run_row(db, row["id"]))
    policy = msgspec.json.decode(row["policy"], type=Policy)
    return Claim(
        run=run, attempt=attempt["n"], fence=attempt["fence"], content=content, files=beside, token=token,
        timeout_seconds=_time_left(row), cell_timeout_seconds=policy.cell_timeout_seconds, memory_megabytes=policy.memory_megabytes, masks=masks, lease_seconds=int(state.lease.total_seconds()), first_cell=attempt["first_cell"],
        executed=store.executed(state.home, row["id"], attempt["n"] - 1).decode() if held else "",
        checkpoints=checkpoints.of_run(state.home, row["id"]) if attempt["n"] > 1 and not held else [],
    )  # fmt: skip


def _sources(state: State, row: Row, attempt: Row) -> tuple[str, dict[str, str]]:
    """Return the notebook and the files beside it, as they were kept; a run whose files are gone fails and says so."""
    try:
        beside = msgspec.json.decode(row["files"], type=dict[str, str])
        files = {path: state.home.source(digest).read_text() for path, digest in beside.items()}
        return state.home.source(row["notebook_sha256"]).read_text(), files
    except OSError as error:
        reason = (
            f"what was kept of it can't be read ({error.strerror}: {error.filename}); start it again from its notebook"
        )
        with state.engine.begin() as db:
            attempts.end(db, state, {**row, "state": "running", "retries_left": 0}, attempt, "failed", reason)
        raise Conflict("run", row["id"], reason, "look at the run") from None


def _time_left(row: Row) -> int:
    """Return how many seconds the run may take: its timeout, and no longer than to its deadline."""
    timeout: int = row["timeout_seconds"]
    return max(1, min((row["deadline"] - store.now()) // 1_000_000, timeout)) if row["deadline"] else timeout


def _masks(state: State, row: Row, attempt: Row) -> list[Mask]:
    """Return what the run must hide; a run that was given a secret's value as a parameter fails. Raises Unavailable."""
    masks = state.masks(row["project"], row["principal"])
    masker = Masker(masks)
    name = masker.found(row["parameters"])
    if name:
        with state.engine.begin() as db:
            hidden = masker.text(row["parameters"])
            store.write(db, "UPDATE runs SET parameters = :hidden WHERE id = :id", hidden=hidden, id=row["id"])
            error = f"a parameter holds the value of the secret {name!r}; hand over its name, and read it in the notebook: secret({name!r})"
            attempts.end(db, state, {**row, "retries_left": 0}, attempt, "failed", error)
        raise Conflict("run", row["id"], "was given a secret's value as a parameter", "look at the run")
    return masks


def _token(state: State, row: Row, attempt: Row) -> str:
    """Return the run's token; a run whose owner may not have it fails. Raises Unavailable while the hub is away."""
    granted = frozenset(msgspec.json.decode(row["scopes"]))
    try:
        seconds = row["timeout_seconds"] + TOKEN_MARGIN_SECONDS
        identity, token = state.tokens.mint(row["principal"], granted, seconds, f"run {row['id']}")
    except Unavailable:
        raise
    except CellworkError as error:
        with state.engine.begin() as db:
            attempts.end(db, state, {**row, "retries_left": 0}, attempt, "failed", f"there is no token for it: {error}")
        raise Conflict("run", row["id"], f"can't start: {error}", "look at the run") from None
    with state.engine.begin() as db:
        change = "UPDATE runs SET token_id = :token WHERE id = :id AND fence = :fence AND lease_until IS NOT NULL"
        held = store.write(db, change, token=identity, id=row["id"], fence=attempt["fence"])
    if not held:
        state.tokens.revoke(row["principal"], identity)
        raise Conflict("run", row["id"], "was taken back while its token was made", "ask for the next run")
    return token


def report(state: State, call: Call) -> Run:
    """Take a runner's word: renew its lease, or end its attempt. The same last word twice is one."""
    progress: Progress = call.body
    with state.engine.connect() as db:
        row, found = _current(db, call.path["run"], progress)
    if not found["ended"]:  # before the transaction: a disk may take its time, and the path is this attempt's alone
        _keep_notebook(state, row["id"], found["n"], progress.notebook)
    with state.engine.begin() as db:
        row, found = _current(db, call.path["run"], progress)
        if found["ended"]:
            return store.as_run(db, row)
        _move(db, row, found, progress)
        if progress.state == "running":
            attempts.renew(db, state, row["id"])
        else:
            attempts.end(db, state, row, found, progress.state, progress.error)
            ended = store.run_row(db, row["id"])["state"]  # one that was stopped is, whatever its runner says
            if ended == "succeeded":
                fires.after_success(db, state, row)
            if progress.keepable and ended == "failed":
                leases.keep(db, state, row, {**found, "cell": progress.cell or found["cell"]})
            records.audit(db, call, "run.report", row["id"], after={"attempt": found["n"], "state": progress.state})
        run = store.as_run(db, store.run_row(db, row["id"]))
    if progress.state == "running":
        if progress.cell != found["cell"]:
            state.bell.ring()
    else:
        attempts.after(state, row, kept=run.kept is not None)
        if run.state in checkpoints.OVER:
            checkpoints.forget(state.home, row["id"])
    return run


def _current(db: Connection, run: str, progress: Progress) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return run and attempt that `progress` is about; raises Conflict if that attempt is not the run's any more."""
    row = store.run_row(db, run)
    query = "SELECT * FROM attempts WHERE run = :run AND fence = :fence"
    found = store.one(db, query, run=row["id"], fence=progress.fence)
    if found is None or progress.fence != row["fence"] or (found["ended"] and progress.state != found["state"]):
        verdict = f"was replaced or has ended (now: {row['fence']})"
        raise Conflict(f"attempt of run {row['id']}", f"fence {progress.fence}", verdict, "drop this result")
    return row, found


def _keep_notebook(state: State, run: str, n: int, notebook: str) -> None:
    if not notebook:
        return
    try:
        msgspec.json.decode(notebook, type=dict[str, msgspec.Raw])
    except msgspec.MsgspecError:
        raise BadInput("executed notebook", f"of run {run}", "is not JSON", "send the notebook as a whole") from None
    files.write(state.home.attempt(run, n) / "out.ipynb", notebook, mode=0o600)


def _move(db: Connection, row: Row, found: Row, progress: Progress) -> None:
    """Note in which cell the attempt is."""
    if progress.cell and (progress.cell, progress.cells) != (found["cell"], found["cells"]):
        change = (
            "UPDATE attempts SET cell = :cell, cells = :cells, first_cell = :first WHERE run = :run AND fence = :fence"
        )
        told = {"cell": progress.cell, "cells": progress.cells, "first": progress.first_cell}
        store.write(db, change, **told, run=row["id"], fence=found["fence"])
        where = {"cell": progress.cell, "cells": progress.cells, "attempt": found["n"]}
        records.event(db, "run.cell", row["project"], row["id"], **where)


def routes(state: State) -> list[Route]:
    async def claim(call: Call) -> Claim | None:
        asked: ClaimRequest = call.body
        end = time.monotonic() + min(asked.wait_seconds, MOST_WAIT_SECONDS)
        while True:
            rung = state.bell.listen()
            found = await anyio.to_thread.run_sync(take, state, call, asked.runner)
            left = end - time.monotonic()
            if found or left <= 0:
                return found
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(rung.wait(), min(left, LOOK_SECONDS))

    one = "/api/v1/runs/{run}/progress"
    return [
        Route(
            "POST",
            "/api/v1/claims",
            claim,
            scope="runs:execute",
            body=ClaimRequest,
            answer=Claim | None,
            doc="Get a run to execute.",
            within="platform",
        ),
        Route(
            "POST",
            one,
            lambda call: report(state, call),
            scope="runs:execute",
            body=Progress,
            answer=Run,
            doc="A runner's word on its attempt.",
            within="platform",
        ),
    ]
