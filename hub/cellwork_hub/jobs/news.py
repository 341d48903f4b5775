"""News for Lab: how one's own runs ended, as server-sent events for as long as a page is open.

Told are failures, how runs ended that were started by hand, and what a job's `notify` asks for with ``lab: true``. `id` of each
event is its sequence number; `Last-Event-ID` or `?after=` takes the stream up again, so that a page hears in the morning what
failed at night; without either it begins now. The first event, `begin`, says where that is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio.to_thread
import msgspec

from cellwork import clock
from cellwork.wire.jobs import Policy
from cellwork.wire.records import Event
from cellwork_hub import records
from cellwork_hub.jobs import store
from cellwork_hub.jobs.follow import BEAT_SECONDS, LOOK_SECONDS, frame
from cellwork_hub.jobs.store import State
from cellwork_hub.route import Call, Route

MOST = 20
"""Of more that ended while no page was open, the newest are told."""
ENDED = (
    "SELECT e.*, r.policy, r.cause, r.state FROM events e JOIN runs r ON r.id = e.subject WHERE e.seq > :after AND r.principal = :who "
    "AND e.name IN ('run.succeeded', 'run.failed', 'run.stopped') ORDER BY e.seq"
)
LAST = "SELECT cell, cells, error FROM attempts WHERE run = :run ORDER BY n DESC LIMIT 1"


def ended(state: State, call: Call, who: str, after: int) -> tuple[list[Event], int]:
    """Return the news of `who` after a sequence number, oldest first, and up to which number that is."""
    with state.engine.connect() as db:
        newest = store.select(db, "SELECT coalesce(max(seq), 0) AS seq FROM events")[0]["seq"]
        rows = store.select(db, ENDED, after=after, who=who) if newest > after else []
        told = [row for row in rows if is_told(row) and call.may_enter(row["project"])][-MOST:]
        lasts = [store.one(db, LAST, run=row["subject"]) or {} for row in told]
    return [_event(row, last) for row, last in zip(told, lasts, strict=True)], newest


def is_told(row: Mapping[str, Any]) -> bool:
    """Whether the owner of a run that ended as `row` says is told of it in Lab."""
    word = row["name"].removeprefix("run.")
    if word == "failed" or (word == "succeeded" and row["cause"] == "manual"):
        return True
    policy = msgspec.json.decode(row["policy"], type=Policy)
    return any(told.lab and word in told.on for told in policy.notify)


def _event(row: Mapping[str, Any], last: Mapping[str, Any]) -> Event:
    failed = row["name"] == "run.failed"
    error = str(last.get("error", "")).strip().partition("\n")[0][:300] if failed else ""
    data = {**msgspec.json.decode(row["data"]), "cell": last.get("cell", 0), "cells": last.get("cells", 0), "error": error}  # fmt: skip
    at = records.moment(row["at"])
    return Event(seq=row["seq"], id=row["id"], name=row["name"], project=row["project"], subject=row["subject"], at=at, data=data)  # fmt: skip


async def tell(state: State, call: Call, who: str, after: int | None) -> AsyncIterator[bytes]:
    _, newest = await anyio.to_thread.run_sync(ended, state, call, who, 2**62)
    at = newest if after is None else min(after, newest)
    yield frame(Event(seq=at, id="", name="begin", project="", subject="", at=clock.now(), data={}))
    said = time.monotonic()
    while True:
        rung = state.bell.listen()
        found, at = await anyio.to_thread.run_sync(ended, state, call, who, at)
        for event in found:
            yield frame(event)
            said = time.monotonic()
        if time.monotonic() - said > BEAT_SECONDS:
            yield b": nothing new\n\n"
            said = time.monotonic()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(rung.wait(), LOOK_SECONDS)


def routes(state: State) -> list[Route]:
    async def stream(call: Call) -> AsyncIterator[bytes]:
        call.may_enter("")
        call.media_type = "text/event-stream"
        asked = call.headers.get("last-event-id", "") or call.query.get("after", "")
        call.query["after"] = asked
        return tell(state, call, store.owner(state, call.principal)[0], call.number("after", 0) if asked else None)

    return [
        Route(
            "GET",
            "/api/v1/news",
            stream,
            scope="jobs:read",
            answer=bytes,
            doc="How one's own runs end, as it happens (server-sent events): failures, runs started by hand, and what jobs ask for.",
        )
    ]
