"""Point-in-time joins for somebody's own rows: asked for with the rows, made in the background, fetched when done.

`background` says whose a join is and how long it is kept; a cancelled one leaves nothing behind. Readable rows only, as for every reader. Who asks gets the
estimate at once: it is made of what the tables say of themselves, and the first feature row is read in the background. With a limit of memory they are read a
partition at a time, without one all at once.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import polars as pl

from cellwork import ids
from cellwork.data import delivery
from cellwork.errors import BadInput, NotFound
from cellwork.features import estimate, history, references
from cellwork.features.history import JoinView
from cellwork.wire.datasets import Estimate
from cellwork.wire.features import HistoryStatus
from cellwork_hub.platform import batches, feature_definitions, feature_tables, joining
from cellwork_hub.platform.background import Line, Task, Tell
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

MIGRATION: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Asked:
    rows: pl.DataFrame
    at: str
    memory: int | None
    project: str
    wanted: list[str]
    estimate: Estimate


def _asked(state: State, call: Call) -> _Asked:
    """Return the join that `call` asks for, with its estimate.

    Raises
    ------
    BadInput
        The rows are no parquet, or a name is wrong.
    TooLarge
        They are too many, or it can't be done in the memory allowed.
    """
    at, memory = call.query.get("at") or "event_timestamp", call.number("memory_mb", 0) * 1_000_000 or None
    rows = delivery.unpack(call.body, "rows")
    project, wanted = call.path["project"], [name for name in call.query.get("features", "").split(",") if name]
    views = _views(state, project, wanted, lazy=True)
    history.check(rows, at=at, views=views)
    return _Asked(rows, at, memory, project, wanted, estimate.estimate(rows, views, memory=memory))


def _task(state: State, call: Call, asked: _Asked) -> Task[HistoryStatus]:
    told = asked.estimate
    status = HistoryStatus(id=ids.new("join"), state="running", steps=told.partitions, estimate=told)
    arrival, late = call.query.get("arrival") != "false", call.query.get("late") == "true"

    def make(tell: Tell) -> bytes:
        rows, at = asked.rows, asked.at
        views = _views(state, asked.project, asked.wanted, lazy=joining.lazily(state, asked.memory))
        frame, status.coverage = joining.join(
            state, rows, at=at, views=views, arrival=arrival, memory=asked.memory, progress=tell
        )
        status.late = history.late(rows, at=at, views=views, memory=asked.memory) if late else []
        buffer = io.BytesIO()
        frame.write_parquet(buffer, compression="zstd")
        return buffer.getvalue()

    return Task(call.principal.name, status, make)


def _views(state: State, project: str, wanted: list[str], *, lazy: bool) -> list[JoinView]:
    known, _ = feature_definitions.definitions(state, project)
    if not wanted:
        raise BadInput("features", "", "names none", "name services, views or view:feature")
    read = feature_tables.view_scan if lazy else feature_tables.view_rows
    return [
        JoinView(view, {key: key for key in references.join_keys(known, view)}, fields, read(state, project, view))
        for view, fields in references.chosen(known, wanted)
    ]


def routes(state: State) -> list[Route]:
    line: Line[HistoryStatus] = Line("join")

    def post_join(call: Call) -> HistoryStatus:
        join = _task(state, call, _asked(state, call))
        line.add(join)
        return join.status

    def post_estimate(call: Call) -> Estimate:
        return _asked(state, call).estimate

    def get_join(call: Call) -> HistoryStatus:
        return line.get(call, call.path["join"]).status

    def delete_join(call: Call) -> HistoryStatus:
        status = line.cancel(call, call.path["join"])
        if status.state == "done":  # its result was all there was of it
            status.state = "cancelled"
        return status

    def get_data(call: Call) -> bytes:
        join = line.get(call, call.path["join"])
        if join.status.state != "done":
            raise NotFound(
                "result of join", join.status.id, f"is not there: it is {join.status.state}", "wait until it is done"
            )
        call.media_type = batches.PARQUET
        return join.result

    one = "/api/v1/history/{project}/{join}"
    return [
        Route("POST", "/api/v1/history/{project}/estimate", post_estimate, scope="features:read", body=bytes, answer=Estimate, doc="What a join will take; the same rows and query as for the join."),
        Route("POST", "/api/v1/history/{project}", post_join, scope="features:read", body=bytes, answer=HistoryStatus, doc="Join features point in time to rows sent as parquet; ?features=&at=&arrival=&late=&memory_mb=."),
        Route("GET", one, get_join, scope="features:read", answer=HistoryStatus, doc="How far a join is, and its coverage."),
        Route("DELETE", one, delete_join, scope="features:read", answer=HistoryStatus, doc="Cancel a join."),
        Route("GET", f"{one}/data", get_data, scope="features:read", answer=bytes, doc="The rows of a join, as parquet."),
    ]  # fmt: skip
