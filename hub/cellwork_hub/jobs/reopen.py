"""Reopen a failed run: its runner keeps the kernel and asks whether it shall go on; the owner resumes it, or lets the kernel go.

The states are in `leases`. Only the run's owner attaches or resumes: the kernel holds the owner's rights.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

import anyio.to_thread
import msgspec
from sqlalchemy import Connection

from cellwork.errors import Conflict
from cellwork.runs import parameters
from cellwork.runs import resume as pages
from cellwork.wire.jobs import KeepAnswer, KeepRequest, ResumeRequest, Run
from cellwork_hub import records
from cellwork_hub.jobs import claims, leases, store
from cellwork_hub.jobs.store import State
from cellwork_hub.route import Call, Route

MOST_WAIT_SECONDS = 5.0

Row = Mapping[str, Any]


def hear(state: State, call: Call) -> KeepAnswer:
    """Take a runner's word that it keeps the kernel; answer the next attempt if the run was resumed."""
    said: KeepRequest = call.body
    with state.engine.begin() as db:
        row = store.one(
            db, "SELECT * FROM kept WHERE run = :run AND fence = :fence", run=call.path["run"], fence=said.fence
        )
        reason = said.ended
        if row and not reason and said.bytes > row["most_bytes"]:
            reason = f"it held {said.bytes / 1e9:.1f} GB, the limit is {row['most_bytes'] / 1e9:.1f} GB"
        if row and reason:
            leases.drop(db, row["run"], reason)
        elif row:
            change = "UPDATE kept SET heard = :now, bytes = :bytes WHERE run = :run"
            store.write(db, change, now=store.now(), bytes=said.bytes, run=row["run"])
        run = store.run_row(db, call.path["run"])
    if row is None or reason:
        raise Conflict("kernel of run", run["id"], "is kept no more", "end it")
    return KeepAnswer(claim=claims.take(state, call, row["runner"], held=run["id"]) if run["held"] else None)


def resume(state: State, call: Call) -> Run:
    """Queue the failed run again: held for the kernel that was kept, or, if asked for, for a new one. Its deadline is over."""
    asked: ResumeRequest = call.body
    with state.engine.begin() as db:
        row = store.run_row(db, call.path["run"])
        call.enter(row["project"])
        leases.check_owner(state, call.principal, row)
        if row["state"] != "failed":
            raise Conflict("run", row["id"], f"is {row['state']}", "only a failed run is resumed")
        kept = store.one(db, "SELECT * FROM kept WHERE run = :run", run=row["id"])
        content, first = _mended(state, db, row, kept, asked)
        if asked.new_kernel and kept:
            leases.drop(db, row["id"], "the run goes on in a new one")
        change = (
            "UPDATE runs SET state = 'queued', notebook_sha256 = :sha, first_cell = :first, held = :held, not_before = 0, retries_left = 0, "
            "deadline = NULL, ended = NULL WHERE id = :id"
        )  # fmt: skip
        store.write(db, change, sha=content, first=first, held=int(not asked.new_kernel), id=row["id"])
        records.event(db, "run.queued", row["project"], row["id"], job=row["job"], cause="resume", cell=first)
        records.audit(db, call, "run.resume", row["id"], after={"cell": first, "new_kernel": asked.new_kernel})
        run = store.as_run(db, store.run_row(db, row["id"]))
    state.bell.ring()
    return run


def _mended(state: State, db: Connection, row: Row, kept: Row | None, asked: ResumeRequest) -> tuple[str, int]:
    """Return the hash of the notebook to go on with, kept as its author wrote it, and the number of the first cell."""
    before = state.home.source(row["notebook_sha256"]).read_text()
    mended = parameters.read(asked.content or before, row["notebook"])
    written = msgspec.json.encode(pages.plain(mended)).decode()
    parameters.check(parameters.read(written, row["notebook"]), msgspec.json.decode(row["parameters"]), row["notebook"])
    sha = store.keep(state.home, written) if asked.content else row["notebook_sha256"]
    if asked.new_kernel:
        return sha, 1
    if kept is None:
        way_out = "start on a new kernel from the last checkpoint: cellwork run resume --new-kernel"
        raise Conflict("kernel of run", row["id"], "is not kept (any more)", way_out)
    first = asked.first_cell or kept["cell"] or 1
    pages.merge(msgspec.json.decode(store.executed(state.home, row["id"], kept["attempt"])), mended, first)
    return sha, first


def release(state: State, call: Call) -> Run:
    """End the kept kernel of a run, if there is one; its runner hears of it with its next word."""
    with state.engine.begin() as db:
        row = store.run_row(db, call.path["run"])
        call.enter(row["project"])
        leases.check_owner(state, call.principal, row)
        leases.drop(db, row["id"], f"{call.principal.name} released it")
        records.audit(db, call, "run.release", row["id"])
        run = store.as_run(db, store.run_row(db, row["id"]))
    state.bell.ring()
    return run


def routes(state: State) -> list[Route]:
    async def listen(call: Call) -> KeepAnswer:
        end = time.monotonic() + min(call.body.wait_seconds, MOST_WAIT_SECONDS)
        while True:
            rung = state.bell.listen()
            answer = await anyio.to_thread.run_sync(hear, state, call)
            left = end - time.monotonic()
            if answer.claim or left <= 0:
                return answer
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(rung.wait(), left)

    one = "/api/v1/runs/{run}"
    return [
        Route(
            "POST",
            f"{one}/kernel",
            listen,
            scope="runs:execute",
            body=KeepRequest,
            answer=KeepAnswer,
            doc="A runner's word on a kernel it keeps.",
        ),
        Route(
            "DELETE",
            f"{one}/kernel",
            lambda call: release(state, call),
            scope="jobs:write",
            answer=Run,
            doc="End the kernel that is kept for a failed run.",
        ),
        Route(
            "POST",
            f"{one}/resume",
            lambda call: resume(state, call),
            scope="jobs:write",
            body=ResumeRequest,
            answer=Run,
            doc="Continue a failed run, from the cell where it failed.",
        ),
    ]
