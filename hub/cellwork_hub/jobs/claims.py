"""Claims: a runner gets a run under a lease and a fence, reports on it, and publishes its result once.

Whose fence is stale learns it by a Conflict and changes nothing. A lease that ends hands the run to another attempt; three
times at most, because a run that takes its runner down would do so for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import anyio.to_thread
import msgspec
from cellwork import files
from cellwork.errors import BadInput, CellworkError, Conflict, Unavailable
from cellwork.wire.jobs import Claim, ClaimRequest, Progress, Run
from sqlalchemy import Connection, text

from cellwork_hub import records
from cellwork_hub.jobs import store
from cellwork_hub.jobs.store import State
from cellwork_hub.route import Call, Route

MOST_WAIT_SECONDS = 10.0
MOST_LOST = 3
TOKEN_MARGIN_SECONDS = 300

OLDEST = text(
    "SELECT r.* FROM runs r LEFT JOIN jobs j ON j.id = r.job_id WHERE r.state = 'queued' AND r.not_before <= :now AND (j.id IS NULL OR "
    "(SELECT count(*) FROM runs x WHERE x.job_id = r.job_id AND x.lease_until IS NOT NULL) < j.concurrency) ORDER BY r.seq LIMIT 1"
)
CLAIMED = text(
    "UPDATE runs SET state = 'running', fence = fence + 1, lease_until = :until WHERE id = :id AND state = 'queued'"
)


def micros(span: timedelta) -> int:
    return span // timedelta(microseconds=1)


def take(state: State, call: Call, runner: str) -> Claim | None:
    """Return the oldest queued run whose job may have one more running, as a new attempt of `runner`, with the run's own token."""
    with state.engine.begin() as db:
        row = db.execute(OLDEST, {"now": store.now()}).mappings().first()
        if (
            row is None
            or db.execute(CLAIMED, {"until": store.now() + micros(state.first_lease), "id": row["id"]}).rowcount == 0
        ):
            return None
        n = db.execute(text("SELECT count(*) FROM attempts WHERE run = :run"), {"run": row["id"]}).scalar_one() + 1
        attempt = {
            "run": row["id"],
            "n": n,
            "fence": row["fence"] + 1,
            "runner": runner,
            "state": "running",
            "started": store.now(),
            "ended": None,
            "cell": 0,
            "cells": 0,
            "error": "",
        }
        store.insert(db, "attempts", attempt)
        records.event(db, "run.started", row["project"], row["id"], attempt=n, runner=runner)
        records.audit(db, call, "run.claim", row["id"], after={"attempt": n, "runner": runner})
    token = _token(state, dict(row), attempt)
    with state.engine.begin() as db:
        run = store.as_run(db, store.run_row(db, row["id"]))
    return Claim(
        run=run, attempt=n, fence=attempt["fence"], content=state.home.source(row["notebook_sha256"]).read_text(), token=token,
        files={path: state.home.source(digest).read_text() for path, digest in msgspec.json.decode(row["files"]).items()},
        timeout_seconds=row["timeout_seconds"], lease_seconds=int(state.lease.total_seconds()),
    )  # fmt: skip


def _token(state: State, row: Mapping[str, Any], attempt: Mapping[str, Any]) -> str:
    """Return the run's token. Without one the run waits on (the hub is away) or fails (its owner may not have it)."""
    granted = frozenset(msgspec.json.decode(row["scopes"]))
    try:
        identity, token = state.tokens.mint(
            row["principal"], granted, row["timeout_seconds"] + TOKEN_MARGIN_SECONDS, f"run {row['id']}"
        )
    except Unavailable:
        with state.engine.begin() as db:
            db.execute(text("DELETE FROM attempts WHERE run = :run AND fence = :fence"), attempt)
            db.execute(
                text(
                    "UPDATE runs SET state = 'queued', lease_until = NULL, not_before = :at WHERE id = :run AND fence = :fence AND state = 'running'"
                ),
                {**attempt, "at": store.now() + 2_000_000},
            )
        raise
    except CellworkError as error:
        with state.engine.begin() as db:
            _end(db, state, row, attempt, "failed", f"no token for it: {error}", retry=False)
        raise Conflict("run", row["id"], f"can't start: {error}", "see the run") from None
    with state.engine.begin() as db:
        db.execute(
            text("UPDATE runs SET token_id = :token WHERE id = :id AND fence = :fence"),
            {"token": identity, "id": row["id"], "fence": attempt["fence"]},
        )
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
        attempt = {**found, "cell": progress.cell or found["cell"], "cells": progress.cells or found["cells"]}
        db.execute(
            text("UPDATE attempts SET cell = :cell, cells = :cells WHERE run = :run AND fence = :fence"), attempt
        )
        if progress.state == "running":
            _renew(db, state, row, attempt, found["cell"])
        else:
            _end(db, state, row, attempt, progress.state, progress.error)
            records.audit(db, call, "run.report", row["id"], after={"attempt": found["n"], "state": progress.state})
        run = store.as_run(db, store.run_row(db, row["id"]))
    if progress.state != "running":
        _after(state, row)
    return run


def _current(db: Connection, run: str, progress: Progress) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return run and attempt that `progress` is about; raises Conflict if that attempt is not the run's any more."""
    row = store.run_row(db, run)
    found = (
        db.execute(
            text("SELECT * FROM attempts WHERE run = :run AND fence = :fence"),
            {"run": row["id"], "fence": progress.fence},
        )
        .mappings()
        .first()
    )
    if found is None or progress.fence != row["fence"] or (found["ended"] and progress.state != found["state"]):
        raise Conflict(
            f"attempt of run {row['id']}",
            f"fence {progress.fence}",
            f"was replaced or has ended (now: {row['fence']})",
            "drop this result",
        )
    return row, dict(found)


def _keep_notebook(state: State, run: str, n: int, notebook: str) -> None:
    if not notebook:
        return
    try:
        msgspec.json.decode(notebook, type=dict[str, Any])
    except msgspec.MsgspecError:
        raise BadInput("executed notebook", f"of run {run}", "is not JSON", "send the notebook as a whole") from None
    files.write(state.home.attempt(run, n) / "out.ipynb", notebook, mode=0o600)


def _renew(db: Connection, state: State, row: Mapping[str, Any], attempt: Mapping[str, Any], cell_before: int) -> None:
    db.execute(
        text("UPDATE runs SET lease_until = :until WHERE id = :id"),
        {"until": store.now() + micros(state.lease), "id": row["id"]},
    )
    if attempt["cell"] != cell_before:
        records.event(
            db,
            "run.cell",
            row["project"],
            row["id"],
            cell=attempt["cell"],
            cells=attempt["cells"],
            attempt=attempt["n"],
        )


def _end(
    db: Connection,
    state: State,
    row: Mapping[str, Any],
    attempt: Mapping[str, Any],
    word: str,
    error: str,
    *,
    retry: bool = True,
) -> None:
    """End the attempt by its runner's last `word` and say what becomes of the run: ended, or queued again."""
    if word == "queued":
        _close(db, attempt, "queued", error or "its runner was stopped")
        _settle(db, row, "queued")
        return
    _close(db, attempt, word, error)
    if word == "failed" and retry and row["retries_left"] > 0 and row["state"] == "running":
        wait = micros(state.backoff) * 2 ** (attempt["n"] - 1)
        _settle(
            db, row, "queued", retries_left=row["retries_left"] - 1, not_before=store.now() + min(wait, 3_600_000_000)
        )
        return
    _settle(db, row, word)


def _close(db: Connection, attempt: Mapping[str, Any], word: str, error: str) -> None:
    db.execute(
        text("UPDATE attempts SET state = :word, error = :error, ended = :now WHERE run = :run AND fence = :fence"),
        {"word": word, "error": error[:20_000], "now": store.now(), "run": attempt["run"], "fence": attempt["fence"]},
    )


def _settle(db: Connection, row: Mapping[str, Any], word: str, **fields: int) -> None:
    """Put the run into state `word`; one that was stopped stays stopped."""
    target = "stopped" if row["state"] == "stopped" else word
    more = "".join(f", {key} = :{key}" for key in fields)
    db.execute(
        text(f"UPDATE runs SET state = :word, lease_until = NULL, token_id = ''{more} WHERE id = :id"),
        {"word": target, "id": row["id"], **fields},
    )
    if target != row["state"] and target != "queued":
        records.event(db, f"run.{target}", row["project"], row["id"], job=row["job"], notebook=row["notebook"])


def _after(state: State, row: Mapping[str, Any]) -> None:
    """After an attempt: its token ends with it, and the next run may start."""
    state.bell.ring()
    if row["token_id"]:
        state.tokens.revoke(row["principal"], row["token_id"])


def expire(state: State) -> int:
    """Take back the runs whose runner was not heard of within its lease; returns how many."""
    with state.engine.begin() as db:
        rows = [
            dict(row)
            for row in db.execute(text("SELECT * FROM runs WHERE lease_until < :now"), {"now": store.now()}).mappings()
        ]
        for row in rows:
            attempt = (
                db.execute(text("SELECT * FROM attempts WHERE run = :id AND fence = :fence"), row).mappings().one()
            )
            _close(db, attempt, "failed", "its runner was lost: no word within the lease")
            word = "failed" if row["lost"] >= MOST_LOST else "queued"
            _settle(db, row, word, lost=row["lost"] + 1)
    for row in rows:
        _after(state, row)
    return len(rows)


def extend(state: State) -> None:
    """Give every running attempt a fresh lease: this service was away, not its runners."""
    with state.engine.begin() as db:
        db.execute(
            text("UPDATE runs SET lease_until = :until WHERE lease_until < :until"),
            {"until": store.now() + micros(state.lease)},
        )


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
                await asyncio.wait_for(rung.wait(), min(left, 1.0))

    return [
        Route(
            "POST",
            "/api/v1/claims",
            claim,
            scope="runs:execute",
            body=ClaimRequest,
            answer=Claim | None,
            doc="Get a run to execute.",
        ),
        Route(
            "POST",
            "/api/v1/runs/{run}/progress",
            lambda call: report(state, call),
            scope="runs:execute",
            body=Progress,
            answer=Run,
            doc="A runner's word on its attempt.",
        ),
    ]
