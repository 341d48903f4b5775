"""Point-in-time joins for somebody's own rows: asked for with the rows, made in the background, fetched when done.

A join belongs to who asked for it, lives in memory and is forgotten an hour after it was asked for, or when the service ends: it is made
of data that stays. States: running -> done | failed | cancelled. A cancel takes effect at the next step and leaves nothing. One
join runs at a time, the others wait; readable rows only, as for every reader.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec
import polars as pl

from cellwork import errors, ids
from cellwork.errors import BadInput, NotFound, TooBusy
from cellwork.features import estimate, history, references
from cellwork.features.history import JoinView, Progress
from cellwork.wire.features import HistoryStatus
from cellwork_hub.platform import batches, feature_definitions, feature_tables
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

log = logging.getLogger("cellwork.features")
MIGRATION: tuple[str, ...] = ()
KEPT_SECONDS = 3600
MOST = 20
"""Joins kept at a time."""


class _Cancelled(Exception):
    """Raised in the step after a cancel."""


@dataclass
class _Join:
    owner: str
    status: HistoryStatus
    rows: pl.DataFrame
    at: str
    views: list[JoinView]
    arrival: bool
    late: bool
    memory: int | None
    asked: float = field(default_factory=time.monotonic)
    cancelled: threading.Event = field(default_factory=threading.Event)
    result: bytes = b""


class Joins:
    """The joins that are known."""

    def __init__(self, state: State) -> None:
        self.state, self._lock = state, threading.Lock()
        self._joins: dict[str, _Join] = {}
        self._worker = ThreadPoolExecutor(1, "feature-history")

    def start(self, call: Call) -> HistoryStatus:
        """Estimate the join that `call` asks for and queue it.

        Raises
        ------
        BadInput
            The rows are no parquet, or a name is wrong.
        TooLarge
            It can't be done in the memory allowed.
        """
        join = self._asked(call)
        with self._lock:
            for key in [key for key, old in self._joins.items() if time.monotonic() - old.asked > KEPT_SECONDS]:
                del self._joins[key]
            if len(self._joins) >= MOST:
                raise TooBusy("joins", MOST, "are kept already", "wait, or cancel one")
            self._joins[join.status.id] = join
        told = msgspec.structs.replace(join.status)
        self._worker.submit(self._make, join)
        return told

    def _asked(self, call: Call) -> _Join:
        project, at = call.path["project"], call.query.get("at") or "event_timestamp"
        try:
            rows = pl.read_parquet(io.BytesIO(call.body))
        except (OSError, pl.exceptions.PolarsError) as error:
            raise BadInput("rows", "", f"are no parquet: {error}", "send the frame as parquet") from None
        known, _ = feature_definitions.definitions(self.state, project)
        wanted = [name for name in call.query.get("features", "").split(",") if name]
        if not wanted:
            raise BadInput("features", "", "names none", "name services, views or view:feature")
        views = [
            JoinView(
                view, {key: key for key in references.join_keys(known, view)}, fields,
                feature_tables.view_rows(self.state, project, view),
            )
            for view, fields in references.chosen(known, wanted)
        ]  # fmt: skip
        memory = call.number("memory_mb", 0) * 1_000_000 or None
        history.check(rows, at=at, views=views)
        told = estimate.estimate(rows, views, memory=memory)
        status = HistoryStatus(id=ids.new("join"), state="running", steps=told.partitions, estimate=told)
        return _Join(
            call.principal.name, status, rows, at, views, call.query.get("arrival") != "false",
            call.query.get("late") == "true", memory,
        )  # fmt: skip

    def _make(self, join: _Join) -> None:
        def tell(step: Progress) -> None:
            if join.cancelled.is_set():
                raise _Cancelled
            join.status.done, join.status.view = step.done, step.view

        started, status = time.monotonic(), join.status
        try:
            frame, status.coverage = history.join(
                join.rows, at=join.at, views=join.views, arrival=join.arrival, memory=join.memory, progress=tell
            )
            status.late = history.late(join.rows, at=join.at, views=join.views) if join.late else []
            buffer = io.BytesIO()
            frame.write_parquet(buffer, compression="zstd")
            join.result = buffer.getvalue()
            status.seconds = time.monotonic() - started
            status.state = "done"
        except _Cancelled:
            status.state = "cancelled"
        except errors.CellworkError as error:
            status.error, status.state = str(error), "failed"
        except (
            Exception
        ) as error:  # the thread must go on to the next join; what it was stands in the log and the status
            log.exception("join %s failed", status.id)
            status.error, status.state = f"{type(error).__name__}: {error}", "failed"
        join.rows, join.views = pl.DataFrame(), []

    def get(self, call: Call) -> _Join:
        """Return the caller's join of that id; of other people's nobody learns."""
        with self._lock:
            join = self._joins.get(call.path["join"])
        if join is None or join.owner != call.principal.name:
            raise NotFound("join", call.path["join"], "is not there (any more)", "ask for it again")
        return join

    def cancel(self, call: Call) -> HistoryStatus:
        """Stop a join and forget its result; twice is fine."""
        join = self.get(call)
        join.cancelled.set()
        join.result = b""
        if join.status.state == "done":
            join.status.state = "cancelled"
        return join.status


def routes(state: State) -> list[Route]:
    joins = Joins(state)

    def post_join(call: Call) -> HistoryStatus:
        return joins.start(call)

    def get_join(call: Call) -> HistoryStatus:
        return joins.get(call).status

    def delete_join(call: Call) -> HistoryStatus:
        return joins.cancel(call)

    def get_data(call: Call) -> bytes:
        join = joins.get(call)
        if join.status.state != "done":
            raise NotFound(
                "result of join", join.status.id, f"is not there: it is {join.status.state}", "wait until it is done"
            )
        call.media_type = batches.PARQUET
        return join.result

    one = "/api/v1/history/{project}/{join}"
    return [
        Route("POST", "/api/v1/history/{project}", post_join, scope="features:read", body=bytes, answer=HistoryStatus, doc="Join features point in time to rows sent as parquet; ?features=&at=&arrival=&late=&memory_mb=."),
        Route("GET", one, get_join, scope="features:read", answer=HistoryStatus, doc="How far a join is, and its coverage."),
        Route("DELETE", one, delete_join, scope="features:read", answer=HistoryStatus, doc="Cancel a join."),
        Route("GET", f"{one}/data", get_data, scope="features:read", answer=bytes, doc="The rows of a join, as parquet."),
    ]  # fmt: skip
