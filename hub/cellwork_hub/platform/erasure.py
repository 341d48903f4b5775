"""Erases a subject from everything a project keeps, and leaves a tombstone that does not say who it was.

Order, and what a crash leaves: (1) a file with the request and, found before anything is deleted, which batches hold the subject;
(2) of each raw data set: sealed values, quarantine, held deliveries, then the raw table, then the batches' records and sketches;
(3) prepared rows (a cache) are dropped, feature rows taken out by their key or made anew, online values forgotten; (4) in one
transaction tombstone and audit; (5) the file of (1) goes. Whatever stands in such a file is finished when the service starts:
every step may be repeated. Batches keep their ids, so the same delivery, sent again, is known and brings nothing back. Pipelines
wait meanwhile, so that none writes rows that it read before.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
from collections import Counter
from pathlib import Path

import msgspec
import polars as pl
from deltalake import DeltaTable
from sqlalchemy import text

from cellwork import clock, files, ids
from cellwork.data import aside, erase, sealed, sketches, statistics, tables
from cellwork.errors import BadInput
from cellwork.features import packed, references
from cellwork.features.row import BATCH
from cellwork.wire import Struct
from cellwork.wire.batches import RawDataset
from cellwork.wire.datasets import Dataset
from cellwork.wire.erasures import EraseRequest, Erasure
from cellwork.wire.features import Definitions, Rolling, View
from cellwork.wire.origin import Origin
from cellwork.wire.records import Principal
from cellwork_hub import records
from cellwork_hub.platform import batches, feature_definitions, feature_online, feature_worker, raw
from cellwork_hub.platform.feature_queue import Claim
from cellwork_hub.platform.state import State
from cellwork_hub.platform.statistics import defined
from cellwork_hub.route import Call, Route

log = logging.getLogger("cellwork.erasure")
MIGRATION = (
    "CREATE TABLE erasures (id TEXT PRIMARY KEY, project TEXT NOT NULL, record {json} NOT NULL)",
    "CREATE INDEX erasures_project ON erasures (project)",
)
_one = threading.Lock()


class Pending(Struct):
    """An erasure that is not finished."""

    id: str
    project: str
    value: str
    reason: str
    principal: str
    request_id: str
    found: dict[str, dict[str, int]] = {}
    """Raw data set -> batch -> rows of the subject."""


def erase_subject(state: State, call: Call, project: str, request: EraseRequest) -> Erasure:
    """Erase `request.value` from `project`; erasing it again finds nothing and says so.

    Raises
    ------
    BadInput
        Value or reason is missing, or no data set of the project names a subject.
    """
    if not request.value or not request.reason.strip():
        raise BadInput("erasure", "", "lacks the subject or the reason", "give both; the reason goes into the audit")
    declared = raw.all_declared(state, project)
    if not any(each.subject for each in declared):
        way_out = "declare which column names it: RawDataset(name=…, subject='user_id')"
        raise BadInput("project", project, "has no data set with a subject", way_out)
    for each in declared:
        if each.subject:
            _value(state, project, each, request.value)
    pending = Pending(
        id=ids.new("ers"), project=project, value=request.value, reason=request.reason.strip(),
        principal=call.principal.name, request_id=call.request_id,
    )  # fmt: skip
    with _one:
        _keep(state, pending)
        return _finish(state, pending)


def resume(state: State) -> None:
    """After a start: finish what a crash interrupted."""
    for path in sorted(state.home.erasing().glob("*.json")):
        pending = msgspec.json.decode(path.read_bytes(), type=Pending)
        try:
            with _one:
                _finish(state, pending)
        except Exception:  # the service must start; the file stays and is tried at the next start
            log.exception("erasure %s could not be finished", pending.id)


def _keep(state: State, pending: Pending) -> None:
    state.home.erasing().mkdir(parents=True, exist_ok=True, mode=0o700)
    files.write(state.home.erasing() / f"{pending.id}.json", msgspec.json.encode(pending), mode=0o600)


def _finish(state: State, pending: Pending) -> Erasure:
    project, known = pending.project, defined(state, pending.project)
    declared = raw.all_declared(state, project)
    with feature_worker.working:
        for each in declared:
            if each.subject:
                _from_raw(state, pending, each)
        for folder in (state.home.prepared(project, "any").parent, state.home.sealed(project) / "prepared"):
            shutil.rmtree(folder, ignore_errors=True)
        columns = {each.subject for each in declared if each.subject}
        views, aggregates = _from_views(state, pending, known, columns)
    done = Erasure(
        id=pending.id, project=project, subject_sha256=hashlib.sha256(f"{pending.id}:{pending.value}".encode()).hexdigest(),
        rows={name: sum(found.values()) for name, found in pending.found.items() if found}, views=views,
        aggregates=aggregates, datasets=_datasets(state, pending),
        undeclared=[each.name for each in declared if not each.subject and each.erasable],
        by=pending.principal, reason=pending.reason, at=clock.now(),
    )  # fmt: skip
    _record(state, pending, done)
    _empty_log(state)
    (state.home.erasing() / f"{pending.id}.json").unlink(missing_ok=True)
    return done


def _value(state: State, project: str, declared: RawDataset, value: str) -> str | int:
    types = {column.name: column.type for column in raw.pinned(state, project, declared.name)}
    return erase.typed(value, types.get(declared.subject, "string"), declared.subject)


def _from_raw(state: State, pending: Pending, declared: RawDataset) -> None:
    project, dataset, column = pending.project, declared.name, declared.subject
    value = _value(state, project, declared, pending.value)
    table, quarantine = state.home.raw_table(project, dataset), state.home.quarantine(project, dataset)
    with batches.writing(project, dataset):
        rows = pl.concat([erase.rows_of(table, column, value), erase.rows_of(quarantine, column, value)])
        found = pending.found.setdefault(dataset, {})
        for batch, count in Counter(rows.get_column("_batch")).items():
            found[batch] = max(count, found.get(batch, 0))
        _keep(state, pending)
        for batch, own in rows.group_by("_batch"):
            path = sealed.path(state.home.sealed(project), dataset, str(batch[0]))
            erase.from_file(path, ~pl.col("_row").is_in(own.get_column("_row").implode()))
        erase.from_table(quarantine, column, value)
        _from_held(state.home.held(project, dataset), column, value)
        erase.from_table(table, column, value)
        for batch in found:
            _correct(state, project, dataset, batch)


def _from_held(folder: Path, column: str, value: str | int) -> None:
    for record in aside.listing(folder):
        _, rows = aside.get(folder, record.id)
        if column in rows.columns:
            kept = rows.filter(pl.col(column).cast(pl.String).ne_missing(str(value)))
            if kept.height < rows.height:
                aside.keep(folder, msgspec.structs.replace(record, rows=kept.height), kept)


def _correct(state: State, project: str, dataset: str, batch: str) -> None:
    """Let the record and the sketch of a batch say what is there now."""
    rows = raw.raw_rows(state, project, dataset, [batch]).drop(BATCH)
    sketch, columns = sketches.of(rows), raw.pinned(state, project, dataset)
    path = state.home.sketches(project, "raw", dataset) / batch
    files.write(path, sketches.pack(sketch), mode=0o600, sync=False)
    record, quarantine = raw.get(state, batch), state.home.quarantine(project, dataset)
    record.erased += record.rows - rows.height
    record.rows = rows.height
    if record.rejected and DeltaTable.is_deltatable(str(quarantine)):
        record.rejected = tables.read(quarantine, [batch]).height
    record.statistics = statistics.said(sketch, dates=[c.name for c in columns if c.type == "date32[day]"])
    with state.engine.begin() as db:
        if db.dialect.name == "sqlite":
            db.exec_driver_sql("PRAGMA secure_delete = ON")  # the old record names frequent values
        values = {"r": msgspec.json.encode(record).decode(), "id": batch}
        db.execute(text("UPDATE batches SET record = :r WHERE id = :id"), values)


# Features


def _from_views(state: State, pending: Pending, known: Definitions, columns: set[str]) -> tuple[list[str], list[str]]:
    """Return the views whose rows were erased or made anew, and those that only counted them."""
    touched, aggregates = [], []
    hit = {name for name, found in pending.found.items() if found}
    for view in known.views:
        keys = references.join_keys(known, view)
        sources = references.prepared_of(known, view.pipeline.rows).sources
        if own := columns & set(keys):
            _by_key(state, pending, view, keys, min(own))
        elif not hit & set(sources):
            continue
        elif isinstance(view.pipeline, Rolling):
            aggregates.append(view.name)
            continue
        else:
            _anew(state, pending, view, keys, None if hit & set(sources[1:]) else set(pending.found[sources[0]]))
        shutil.rmtree(state.home.sketches(pending.project, "features", view.name), ignore_errors=True)
        touched.append(view.name)
    return touched, aggregates


def _tables(state: State, project: str, view: str) -> list[Path]:
    """Return the tables of a view: of every revision, readable and sealed."""
    folders = (state.home.feature_table(project, view), state.home.sealed(project) / "features" / view)
    return [
        path for folder in folders for path in sorted(folder.glob("revision-*")) if DeltaTable.is_deltatable(str(path))
    ]


def _by_key(state: State, pending: Pending, view: View, keys: list[str], column: str) -> None:
    for path in _tables(state, pending.project, view.name):
        rows = pl.scan_delta(str(path))
        dtype = rows.collect_schema()[column]
        value = int(pending.value) if dtype.is_integer() else pending.value
        _forget(state, pending, view, keys, rows.filter(pl.col(column) == value).select(keys).unique().collect())
        erase.from_table(path, column, value)


def _forget(state: State, pending: Pending, view: View, keys: list[str], entities: pl.DataFrame) -> None:
    if view.online and entities.height:
        with feature_online.opened(state, pending.project) as store:
            store.forget(view.name, packed.entity_keys([entities.get_column(key).to_list() for key in sorted(keys)]))


def _anew(state: State, pending: Pending, view: View, keys: list[str], caused_by: set[str] | None) -> None:
    """Make the rows of a Select view again that the batches `caused_by` (None: all) caused; older revisions lose theirs."""
    project = pending.project
    revision = feature_definitions.view_revision(state, project, view.name)
    query = "SELECT id, revision, batch FROM pipeline_runs WHERE project = :p AND view = :v AND state = 'succeeded'"
    with state.engine.connect() as db:
        runs = [
            row
            for row in db.execute(text(query), {"p": project, "v": view.name})
            if caused_by is None or row.batch in caused_by
        ]
    made = {row.batch for row in runs}
    before = _entities(state, project, view, keys, made)
    for row in runs:
        if row.revision == revision:
            feature_worker.execute(state, Claim(row.id, project, view.name, revision, row.batch))
    for path in _tables(state, project, view.name):
        if path.name != f"revision-{revision}":
            for batch in made:
                DeltaTable(path).delete(f"{BATCH} = '{batch}'")
        erase.purge(path)
    after = _entities(state, project, view, keys, None)
    gone = before.join(after, on=keys, how="anti", nulls_equal=True) if after.width else before
    _forget(state, pending, view, keys, gone)


def _entities(state: State, project: str, view: View, keys: list[str], caused_by: set[str] | None) -> pl.DataFrame:
    found = []
    for path in _tables(state, project, view.name):
        rows = pl.scan_delta(str(path))
        rows = rows if caused_by is None else rows.filter(pl.col(BATCH).is_in(list(caused_by)))
        found.append(rows.select(keys).unique().collect())
    return pl.concat(found).unique() if found else pl.DataFrame()


# The tombstone


def _datasets(state: State, pending: Pending) -> list[str]:
    hit = {batch for found in pending.found.values() for batch in found}
    with state.engine.connect() as db:
        rows = db.execute(text("SELECT record FROM datasets WHERE project = :p ORDER BY seq"), {"p": pending.project})
        there = [msgspec.json.decode(row[0], type=Dataset) for row in rows]
    return [f"{d.name} {d.id}" for d in there if hit & set(d.batches)]


def _record(state: State, pending: Pending, done: Erasure) -> None:
    principal = Principal(kind="user", name=pending.principal)
    call = Call(principal, pending.request_id, Origin(user=pending.principal), {}, {}, None, {})
    with state.engine.begin() as db:
        values = {"id": done.id, "p": done.project, "r": msgspec.json.encode(done).decode()}
        made = db.execute(text("INSERT INTO erasures VALUES (:id, :p, :r) ON CONFLICT (id) DO NOTHING"), values)
        if made.rowcount:
            after = {"erasure": done.id, "rows": done.rows, "views": done.views}
            records.audit(db, call, "subject.erase", done.project, after=after, reason=done.reason)


def _empty_log(state: State) -> None:
    """Let SQLite's write-ahead log go, in which old records stand; PostgreSQL's goes by its own rules."""
    if state.engine.dialect.name == "sqlite":
        connection = state.engine.raw_connection()
        connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()


def routes(state: State) -> list[Route]:
    def post_erasure(call: Call) -> Erasure:
        return erase_subject(state, call, ids.name(call.path["project"], "project"), call.body)

    def get_erasures(call: Call) -> list[Erasure]:
        with state.engine.connect() as db:
            query = text("SELECT record FROM erasures WHERE project = :p ORDER BY id")
            rows = db.execute(query, {"p": call.path["project"]})
            return [msgspec.json.decode(row[0], type=Erasure) for row in rows]

    return [
        Route("POST", "/api/v1/erasures/{project}", post_erasure, scope="admin", body=EraseRequest, answer=Erasure, doc="Erase a subject from raw batches and features, for a reason."),
        Route("GET", "/api/v1/erasures/{project}", get_erasures, scope="data:read", answer=list[Erasure], doc="Tombstones of erasures; they do not say who."),
    ]  # fmt: skip
