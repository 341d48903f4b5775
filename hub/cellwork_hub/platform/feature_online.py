"""The online side: reading it, and filling it from the feature tables (`materialize`, and `prewarm` after a start).

Pipelines and pushes write online as they go. `materialize` writes again what the tables say of a time: it writes, reads a
sample back, compares counts, and moves the watermark last, so that a watermark never stands for values that are not there.
Killed anywhere before, it is simply made again; since older values never replace newer ones, it may run beside pushes.

A view of which the store has nothing, as after a loss, is written whole before readers see it, by whoever comes first: a start, a run, a push
or `materialize`, whatever times that was asked for. So a view that is seen lacks nothing that its table has.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import polars as pl
from sqlalchemy import text

from cellwork import clock, errors
from cellwork.errors import BadInput, Conflict, near_miss
from cellwork.features import online as stores
from cellwork.features import packed, references
from cellwork.features.online import OnlineStore
from cellwork.features.row import BATCH, CREATED, EVENT
from cellwork.wire.features import (
    Definitions,
    Materialized,
    MaterializeRequest,
    OnlineAnswer,
    OnlineRequest,
    OnlineValue,
    View,
)
from cellwork_hub import records
from cellwork_hub.platform import feature_definitions, feature_queue, feature_tables
from cellwork_hub.platform.feature_queue import Claim
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

log = logging.getLogger("cellwork.features")
MIGRATION = (
    "CREATE TABLE online_watermarks (project TEXT NOT NULL, view TEXT NOT NULL, revision INTEGER NOT NULL, until BIGINT NOT NULL, "
    "PRIMARY KEY (project, view, revision))",
)
SAMPLE = 200
"""Entities that `materialize` reads back."""


@contextmanager
def opened(state: State, project: str) -> Iterator[OnlineStore]:
    """Yield the online store of a project, for writing."""
    store = stores.open_store(state.home.online(project), state.context.settings.online_url)
    try:
        yield store
    finally:
        store.close()


def read(state: State, request: OnlineRequest) -> OnlineAnswer:
    """Return the newest value of each view asked for, for each entity row. The caller judges a value's age by its event."""
    known, _ = feature_definitions.definitions(state, request.project)
    lengths = {key: len(values) for key, values in request.entities.items()}
    if len(set(lengths.values())) > 1:
        raise BadInput("entities", lengths, "differ in length", "give each key a value per row")
    views = {}
    with opened(state, request.project) as store:
        for view, fields in references.chosen(known, request.features):
            keys = references.join_keys(known, view)
            for key in keys:
                if key not in request.entities:
                    raise BadInput(
                        f"entities for view {view.name!r}", key, "is missing", near_miss(key, request.entities)
                    )
            found = store.read(view.name, {key: request.entities[key] for key in keys})
            views[view.name] = [_only(value, fields) for value in found]
    return OnlineAnswer(views=views)


def _only(value: OnlineValue, fields: list[str]) -> OnlineValue:
    values = {field: value.values.get(field) for field in fields}
    return OnlineValue(values=values, event=value.event, created=value.created, batch=value.batch)


def materialize(state: State, call: Call, request: MaterializeRequest) -> list[Materialized]:
    """Write online what the feature tables say of (start, end]; returns what was written of each view.

    A view of which the store has nothing is written from the beginning until now.

    Raises
    ------
    BadInput
        The end lies in the future, or a view is not defined or not online.
    Conflict
        What was written can't be read back; the watermark stays where it was.
    """
    known, _ = feature_definitions.definitions(state, request.project)
    end = clock.utc(request.end) if request.end else clock.now()
    if end > clock.now():
        raise BadInput(
            "end", end.isoformat(), "lies in the future: what arrives until then would be left out of the next one",
            "leave it out, or choose a time that has passed",
        )  # fmt: skip
    views = [references.view_of(known, name) for name in request.views] or [v for v in known.views if v.online]
    for view in views:
        if not view.online:
            raise BadInput("view", view.name, "is not online", "set online=True in its definition")
    return [_materialize(state, call, known, view, request.start, end) for view in views]


def _materialize(
    state: State, call: Call, known: Definitions, view: View, start: datetime | None, end: datetime
) -> Materialized:
    project, keys = known.project, references.join_keys(known, view)
    revision = feature_definitions.view_revision(state, project, view.name)
    rows = feature_tables.view_rows(state, project, view, sealed=True)
    since: datetime | None = None
    if _lost(state, project, view.name):
        end = clock.now()
    else:
        since = clock.utc(start) if start else watermark(state, project, view.name, revision)
        rows = rows.filter(pl.col(EVENT) <= end, pl.lit(True) if since is None else pl.col(EVENT) > since)
    entities, written = _filled(state, project, view, revision, keys, rows)
    with state.engine.begin() as db:
        db.execute(
            text(
                "INSERT INTO online_watermarks VALUES (:p, :v, :r, :u) ON CONFLICT (project, view, revision) "
                "DO UPDATE SET until = excluded.until WHERE excluded.until > online_watermarks.until"
            ),
            {"p": project, "v": view.name, "r": revision, "u": records.micros(end)},
        )
        after = {"end": end.isoformat(), "rows": rows.height, "entities": entities, "written": written}
        records.event(db, "features.online", project, f"view:{project}/{view.name}@{revision}", **after)
        records.audit(db, call, "features.materialize", f"{project}/{view.name}", after=after)
    return Materialized(view=view.name, start=since, end=end, rows=rows.height, entities=entities, written=written)


def _lost(state: State, project: str, view: str) -> bool:
    """Whether the store has nothing of `view`; its watermarks, which stand for values that are gone, are removed then."""
    with opened(state, project) as store:
        if store.active(view) is not None:
            return False
    with state.engine.begin() as db:
        query = "DELETE FROM online_watermarks WHERE project = :p AND view = :v"
        db.execute(text(query), {"p": project, "v": view})
    return True


def _filled(
    state: State, project: str, view: View, revision: int, keys: Sequence[str], rows: pl.DataFrame
) -> tuple[int, int]:
    """Write `rows` online and read them back; returns how many entities they have and how many values were newer."""
    if not rows.height:
        return 0, 0
    with opened(state, project) as store:
        written = store.write(view.name, revision, keys, rows)
        if store.active(view.name) is None:
            store.activate(view.name, revision)
        entities = rows.select(keys).unique().height
        if store.active(view.name) == revision:
            _check(store, view, keys, rows, entities)
    return entities, written


def _check(store: OnlineStore, view: View, keys: Sequence[str], rows: pl.DataFrame, entities: int) -> None:
    """Raise Conflict unless the store has as many entities, and of a sample nothing older than `rows`."""
    there = store.count(view.name)
    if there < entities:
        raise Conflict(
            f"online values of view {view.name!r}", there, f"are fewer than the {entities} that were written",
            "look at the store, then materialize again",
        )  # fmt: skip
    newest = stores.newest_rows(rows, keys).unique(list(keys)).sort(list(keys))
    sample = newest.gather_every(max(1, newest.height // SAMPLE))
    fields = [name for name in rows.columns if name not in (*keys, EVENT, CREATED, BATCH)]
    wanted = list(packed.records(fields, sorted(keys), sample))
    found = store.packed(view.name, [entity for entity, _ in wanted])
    for (entity, value), record in zip(wanted, found, strict=True):
        if record is None or packed.times(record) < packed.times(value):
            raise Conflict(
                f"online value of view {view.name!r}", entity.hex(), "is older than the one that was just written",
                "look at the store, then materialize again",
            )  # fmt: skip


def serve(state: State, store: OnlineStore, run: Claim, view: View, keys: Sequence[str]) -> None:
    """Let readers see what `run` makes of `view`, if it is still defined so and no other run of that is to be executed.

    A view of which the store has nothing is written whole, and seen at once; the caller holds `feature_worker.working` or
    `feature_tables.writing` then, so that no erasure takes rows away that were just read.
    """
    active = store.active(view.name)
    if active == run.revision:
        return
    if active is None:
        rows = feature_tables.read(state, run.project, view, run.revision, sealed=True)
        if rows.height:
            store.write(view.name, run.revision, keys, rows)
    with feature_definitions.applying:
        if feature_queue.holds(state, run) and (active is None or not feature_queue.pending(state, run)):
            store.activate(view.name, run.revision)


def watermark(state: State, project: str, view: str, revision: int) -> datetime | None:
    """Return until when `view` is known to be online, under `revision`."""
    query = "SELECT until FROM online_watermarks WHERE project = :p AND view = :v AND revision = :r"
    with state.engine.connect() as db:
        until = db.execute(text(query), {"p": project, "v": view, "r": revision}).scalar()
    return None if until is None else records.moment(until)


def prewarm(state: State) -> list[str]:
    """Fill every view that should be online and of which the store has nothing, as after a lost store; returns their names."""
    filled = []
    with state.engine.connect() as db:
        held = db.execute(text("SELECT project, view, revision FROM view_revisions WHERE holds = 1")).all()
    for project, name, revision in held:
        try:
            if _prewarmed(state, project, name, revision):
                filled.append(f"{project}/{name}")
        except errors.CellworkError as error:
            log.info("view %s/%s is not prewarmed: %s", project, name, error)
        except Exception:  # what one project's store meets, such as a damaged file, keeps no other from being filled
            log.exception("view %s/%s is not prewarmed", project, name)
    return filled


def _prewarmed(state: State, project: str, name: str, revision: int) -> bool:
    known, _ = feature_definitions.definitions(state, project)
    view = references.view_of(known, name)
    with opened(state, project) as store:
        if not view.online or store.active(name) is not None:
            return False
    rows = feature_tables.view_rows(state, project, view, sealed=True)
    return _filled(state, project, view, revision, references.join_keys(known, view), rows)[0] > 0


def routes(state: State) -> list[Route]:
    def post_online(call: Call) -> OnlineAnswer:
        return read(state, call.body)

    def post_materialize(call: Call) -> list[Materialized]:
        return materialize(state, call, call.body)

    return [
        Route("POST", "/api/v1/online/read", post_online, scope="features:read", body=OnlineRequest, answer=OnlineAnswer, doc="The newest values of entities."),
        Route("POST", "/api/v1/online/materialize", post_materialize, scope="features:write", body=MaterializeRequest, answer=list[Materialized], doc="Write the newest values of a time from the feature tables online again."),
    ]  # fmt: skip
