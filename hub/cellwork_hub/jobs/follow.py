"""Follow a run: its events as they happen, as server-sent events, from the first one or from where the caller broke off.

The stream ends with the run. `id` of each event is its sequence number; `Last-Event-ID` or `?after=` takes it up again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import anyio.to_thread
import msgspec

from cellwork.wire.records import Event
from cellwork_hub import records
from cellwork_hub.jobs import store
from cellwork_hub.jobs.store import State
from cellwork_hub.route import Call, Route

ENDS = frozenset({"run.succeeded", "run.failed", "run.stopped"})
LOOK_SECONDS, BEAT_SECONDS = 1.0, 15.0
MOST_AT_ONCE = 1000
OF_RUN = f"SELECT * FROM events WHERE subject = :run AND seq > :after ORDER BY seq LIMIT {MOST_AT_ONCE}"


def events(state: State, run: str, after: int) -> tuple[list[Event], bool]:
    """Return the events of `run` after a sequence number, and whether there will be no more for now."""
    with state.engine.connect() as db:
        rows = store.select(db, OF_RUN, run=run, after=after)
        row = store.run_row(db, run)
    found = [
        Event(**{**row, "at": records.moment(row["at"]), "data": msgspec.json.decode(row["data"])}) for row in rows
    ]
    return found, row["state"] not in ("queued", "running") and len(found) < MOST_AT_ONCE


def frame(event: Event) -> bytes:
    return f"id: {event.seq}\nevent: {event.name}\ndata: {msgspec.json.encode(event).decode()}\n\n".encode()


async def follow(state: State, run: str, after: int) -> AsyncIterator[bytes]:
    said = time.monotonic()
    while True:
        rung = state.bell.listen()
        found, over = await anyio.to_thread.run_sync(events, state, run, after)
        for event in found:
            yield frame(event)
            after, said = event.seq, time.monotonic()
        if over:
            return
        if len(found) == MOST_AT_ONCE:
            continue
        if time.monotonic() - said > BEAT_SECONDS:
            yield b": the run goes on\n\n"
            said = time.monotonic()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(rung.wait(), LOOK_SECONDS)


def routes(state: State) -> list[Route]:
    async def stream(call: Call) -> AsyncIterator[bytes]:
        with state.engine.connect() as db:
            row = store.run_row(db, call.path["run"])
        call.enter(row["project"])
        call.media_type = "text/event-stream"
        call.query.setdefault("after", call.headers.get("last-event-id", ""))
        return follow(state, row["id"], call.number("after", 0))

    return [
        Route(
            "GET",
            "/api/v1/runs/{run}/events",
            stream,
            scope="jobs:read",
            answer=bytes,
            doc="The events of a run as they happen (server-sent events); the stream ends with the run.",
        )
    ]
