"""Features over HTTP: definitions, pipeline runs, feature rows, push and online reads. Thin; the work is in `feature_*`."""

from __future__ import annotations

import threading
from typing import Any

import polars as pl

from cellwork import clock, ids
from cellwork.content import frame_sha256
from cellwork.data.schema import EXACT
from cellwork.errors import BadInput
from cellwork.features import references
from cellwork.features.row import BATCH, CREATED, EVENT, fitted, require, schema, shaped
from cellwork.wire.features import (
    Applied,
    Definitions,
    PipelineRun,
    PushRequest,
    View,
)
from cellwork_hub import records
from cellwork_hub.platform import (
    batches,
    feature_definitions,
    feature_online,
    feature_proposals,
    feature_queue,
    feature_tables,
)
from cellwork_hub.platform.feature_definitions import definitions
from cellwork_hub.platform.feature_online import opened
from cellwork_hub.platform.feature_queue import MIGRATION, Claim, enqueue
from cellwork_hub.platform.feature_tables import prepared_rows, view_rows
from cellwork_hub.platform.feature_worker import Worker
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

__all__ = ["MIGRATION", "Worker", "definitions", "enqueue", "prepared_rows", "push", "routes", "view_rows"]

_adding = threading.Lock()
"""Held while a distinct push looks what is there and adds the rest."""


def push(state: State, call: Call, view_name: str, request: PushRequest) -> int:
    """Take rows for a view, past its pipeline; returns how many.

    They are one delivery with a content id, in the table and online; the same delivery again changes nothing. Of a `distinct`
    push the table takes what it does not have; online they are all offered again, as a crash may have kept them from it. Of a
    view that changed, and that no run is filling, readers see the new definition from then on.
    """
    known, _ = definitions(state, request.project)
    view = references.view_of(known, view_name)
    keys = references.join_keys(known, view)
    revision = feature_definitions.view_revision(state, request.project, view.name)
    rows = _pushed(request, view, keys)
    there = feature_tables.scan(state, request.project, view, revision).collect_schema()
    typed = shaped(view, keys, rows.with_columns(_fitted_key(view, rows[key], there[key]) for key in keys))
    if typed.height < rows.height:
        raise BadInput(
            f"rows for view {view.name!r}",
            rows.height - typed.height,
            "have no key of its type, or no time",
            "give each both",
        )
    delivery = ids.of_content("bat", request.project, "push", view.name, frame_sha256(typed.drop(BATCH)))
    typed = typed.with_columns(pl.lit(delivery).alias(BATCH))
    claim = Claim("", request.project, view.name, revision, delivery)
    if request.distinct:
        with _adding:
            fresh = _fresh(feature_tables.scan(state, request.project, view, revision), keys, typed)
            if fresh.height:
                feature_tables.write(state, claim, fresh, sealed=False)
    else:
        feature_tables.write(state, claim, typed, sealed=False)
    if view.online:
        with opened(state, request.project) as store:
            store.write(view.name, revision, keys, typed)
            active = store.active(view.name)
            if active is None:
                with feature_tables.writing:
                    feature_online.serve(state, store, claim, view, keys)
            elif active != revision:
                feature_online.serve(state, store, claim, view, keys)
    with state.engine.begin() as db:
        records.edge(db, delivery, "made_by", f"{call.principal.kind}:{call.principal.name}")
        records.event(db, "features.online", request.project, delivery, view=view.name, rows=typed.height)
        records.audit(
            db, call, "features.push", f"{request.project}/{view.name}", after={"batch": delivery, "rows": typed.height}
        )
    return typed.height


def _fresh(there: pl.LazyFrame, keys: list[str], rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows that are not `there`, each once; two are the same if all but `_batch` is."""
    same = [name for name in rows.columns if name != BATCH]
    rows = rows.unique(same, keep="first", maintain_order=True)
    if any(dtype == pl.Null for dtype in there.collect_schema().values()):
        return rows
    near = there.filter(pl.col(EVENT).is_between(rows[EVENT].min(), rows[EVENT].max()))
    known = near.join(rows.lazy().select(keys).unique(), on=keys, how="semi").select(same).collect()
    return rows.join(known, on=same, how="anti", nulls_equal=True, maintain_order="left")


def _fitted_key(view: View, column: pl.Series, there: pl.DataType) -> pl.Series:
    """Return a key as the table has it; the first row of a view says what it is."""
    first = pl.Int64() if column.dtype.is_integer() else column.dtype
    return fitted(view, column, first if there == pl.Null else there, of="key")


def _pushed(request: PushRequest, view: View, keys: list[str]) -> pl.DataFrame:
    """Return the rows of a push with both times and an empty `_batch`, each value as it came."""
    subject = f"push to view {view.name!r}"
    if not request.rows:
        raise BadInput(subject, "", "has no rows", "send at least one")
    now = clock.now()
    rows: list[dict[str, Any]] = []
    for row in request.rows:
        if not row.get(EVENT):
            raise BadInput(
                f"row of a {subject}",
                "",
                f"has no {EVENT}",
                "say from when on it is true, e.g. 2013-01-01T10:00:00Z",
            )
        rows.append(
            {
                **row,
                EVENT: clock.utc(row[EVENT]),
                CREATED: now if row.get(CREATED) in (None, "") else clock.utc(row[CREATED]),
            }
        )
    _check_whole(
        subject, request.rows, [*keys, *(name for name, dtype in schema(view).items() if not dtype.is_float())]
    )
    try:
        frame = pl.DataFrame(rows, infer_schema_length=None)
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise BadInput(subject, "", f"has a column of mixed types: {error}", "give each column one type") from None
    except OverflowError:
        raise BadInput(subject, "", "has a whole number beyond 128 bits", "leave it out, or send it as text") from None
    require(f"rows of view {view.name!r}", frame, [*keys, *schema(view)])
    return frame.with_columns(pl.col(EVENT, CREATED).cast(pl.Datetime("us", "UTC")), pl.lit("").alias(BATCH))


def _check_whole(subject: str, rows: list[dict[str, Any]], columns: list[str]) -> None:
    """Raise for a whole number that a fraction in its column would change: the column would be one of floats."""
    for column in columns:
        values = [row.get(column) for row in rows]
        large = next((each for each in values if isinstance(each, int) and abs(each) > EXACT), None)
        if large is not None and any(isinstance(each, float) for each in values):
            raise BadInput(
                f"column {column!r} of a {subject}",
                large,
                "stands beside a fraction, and would become another number",
                "send whole numbers without a point",
            )


def routes(state: State) -> list[Route]:
    def put_definitions(call: Call) -> Applied:
        if call.body.project != call.path["project"]:
            raise BadInput(
                "project of the definitions",
                call.body.project,
                f"is not the {call.path['project']!r} of the path",
                "use one name",
            )
        return feature_proposals.apply_or_propose(state, call, call.body)

    def get_definitions(call: Call) -> Definitions:
        return definitions(state, call.path["project"], call.number("revision", 0) or None)[0]

    def get_runs(call: Call) -> list[PipelineRun]:
        limit = call.limit(100, 1000)
        chosen = {name: call.query.get(name, "") for name in ("view", "batch", "state")}
        found = feature_queue.listing(
            state, call.path["project"], after=call.number("cursor", 0), limit=limit, chosen=chosen
        )
        if len(found) == limit:
            call.next_page(found[-1][0])
        return [run for _, run in found]

    def get_rows(call: Call) -> bytes:
        project = call.path["project"]
        revision = call.number("revision", 0) or None
        view = references.view_of(definitions(state, project, revision)[0], call.path["view"])
        rows = view_rows(state, project, view, revision=revision, batch=call.query.get("batch", ""))
        limit = call.number("limit", -1)
        return batches.parquet(rows if limit < 0 else rows.head(limit), call)

    def post_run(call: Call) -> int:
        project, view = call.path["project"], call.path["view"]
        references.view_of(definitions(state, project)[0], view)
        with state.engine.begin() as db:
            queued = feature_queue.queue_now(db, project, view)
            records.audit(db, call, "view.run", f"{project}/{view}", after=queued)
        return queued

    def post_push(call: Call) -> int:
        return push(state, call, call.path["view"], call.body)

    return [
        Route("PUT", "/api/v1/features/{project}", put_definitions, scope="features:write", body=Definitions, answer=Applied, doc="Apply definitions, or propose them without features:apply; only what changed is computed anew."),
        Route("GET", "/api/v1/features/{project}", get_definitions, scope="features:read", answer=Definitions, doc="The definitions, newest or of a revision."),
        Route("GET", "/api/v1/features/{project}/runs", get_runs, scope="features:read", answer=list[PipelineRun], doc="Pipeline runs of the views as they are now, oldest first."),
        Route("GET", "/api/v1/features/{project}/views/{view}/rows", get_rows, scope="features:read", answer=bytes, doc="Readable feature rows, as parquet."),
        Route("POST", "/api/v1/features/{project}/views/{view}/run", post_run, scope="features:write", answer=int, doc="Queue the runs of a view that failed or wait for its schedule; answers how many."),
        Route("POST", "/api/v1/push/{view}", post_push, scope="features:write", body=PushRequest, answer=int, doc="Take rows for a view, past its pipeline."),
    ]  # fmt: skip
