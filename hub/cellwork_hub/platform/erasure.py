"""Erases a subject from the raw data, features, online values and predictions of a project, and leaves a tombstone that does not say who it
was, but which places were rewritten and which were not (`erasure_places`).

Order, and what a crash leaves: (1) a file with the request and, found before anything is deleted, which batches hold the subject;
(2) of each raw data set: held deliveries, sealed values, quarantine, then the raw table, then the batches' records and sketches;
(3) prepared rows (a cache) are dropped, feature rows taken out by their key or made anew, online values forgotten; (4) rows of datasets
built before are emptied, and what is built just now from rows read before is not stored (`feature_tables.outdate`); (5) predictions, outcomes and feedback are emptied (`erasure_served`), for which the inference service must be there;
(6) in one transaction tombstone and audit; (7) the file of (1) goes. Every step may be repeated, and whatever stands in such a file is finished
when the service starts or, where it waits for another service, some time later (`Again`): there is no tombstone before all is done, and who asks
meanwhile is told that it waits and for what. Batches keep their ids, so the same delivery, sent again, is known and brings nothing back. Pipelines
wait meanwhile, so that none writes rows that it read before.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections import Counter
from pathlib import Path

import msgspec
import polars as pl
from sqlalchemy import text

from cellwork import clock, files, ids
from cellwork.data import aside, erase, sealed, sketches, statistics, tables
from cellwork.errors import BadInput, CellworkError
from cellwork.features.row import BATCH
from cellwork.wire import Struct
from cellwork.wire.batches import RawDataset
from cellwork.wire.endpoints import Forget
from cellwork.wire.erasures import EraseRequest, Erasure
from cellwork.wire.origin import Origin
from cellwork.wire.records import Principal
from cellwork_hub import records
from cellwork_hub.loop import Loop
from cellwork_hub.platform import (
    batches,
    erasure_datasets,
    erasure_features,
    erasure_places,
    erasure_served,
    feature_tables,
    feature_twins,
    feature_worker,
    raw,
)
from cellwork_hub.platform.erasure_served import Observed, Served
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

log = logging.getLogger("cellwork.erasure")
MIGRATION = (
    "CREATE TABLE erasures (id TEXT PRIMARY KEY, project TEXT NOT NULL, record {json} NOT NULL)",
    "CREATE INDEX erasures_project ON erasures (project)",
)
AGAIN_SECONDS = 20.0
"""How often what waits for another service is tried again."""
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
    keyed: dict[str, list[str]] | None = None
    """View and revision in which it may have another key than itself -> those keys, empty where they can't be told; found before raw rows went."""
    touched: list[str] = []
    """Views of which rows went or were made anew."""
    emptied: dict[str, int] = {}
    """Dataset -> rows of the subject."""
    observed: Observed | None = None
    """Its observations, from before raw rows went."""
    online: list[str] = []
    """Views whose online values were forgotten."""
    data: Erasure | None = None
    """The tombstone when raw data, features and datasets are done."""
    served: Served = msgspec.field(default_factory=Served)
    waits_for: str = "its turn"


def erase_subject(state: State, call: Call, project: str, request: EraseRequest) -> Erasure:
    """Erase `request.value` from `project`; erasing it again finds nothing and says so.

    Raises
    ------
    BadInput
        Value or reason is missing, no data set of the project names a subject, or the value is of no such column's type.
    """
    if not request.value or not request.reason.strip():
        raise BadInput("erasure", "", "lacks the subject or the reason", "give both; the reason goes into the audit")
    declared = raw.all_declared(state, project)
    if not any(each.subject for each in declared):
        way_out = "declare which column names it: RawDataset(name=…, subject='user_id')"
        raise BadInput("project", project, "has no data set with a subject", way_out)
    _check_fits(state, project, declared, request.value)
    pending = Pending(
        id=ids.new("ers"), project=project, value=request.value, reason=request.reason.strip(),
        principal=call.principal.name, request_id=call.request_id,
    )  # fmt: skip
    with _one:
        _keep(state, pending)
        return _finish(state, pending)


class Again(Loop):
    """The thread that tries again what waits."""

    def __init__(self, state: State) -> None:
        super().__init__("erasures", self._look, idle=AGAIN_SECONDS)
        self.state = state

    def _look(self) -> bool:
        if any(self.state.home.erasing().glob("*.json")):
            resume(self.state)
        return False


def resume(state: State) -> None:
    """Finish what a crash interrupted, or what waited; what waits still stays."""
    for path in sorted(state.home.erasing().glob("*.json")):
        try:
            with _one:
                if path.exists():  # nobody else has finished it meanwhile
                    _finish(state, msgspec.json.decode(path.read_bytes(), type=Pending))
        except Exception:  # the service must start; the file stays and is tried at the next start
            log.exception("erasure %s could not be finished", path.stem)


def _pending(state: State) -> list[Pending]:
    found = []
    for path in sorted(state.home.erasing().glob("*.json")):
        with contextlib.suppress(FileNotFoundError):  # it is finished just now
            found.append(msgspec.json.decode(path.read_bytes(), type=Pending))
    return found


def _keep(state: State, pending: Pending) -> None:
    state.home.erasing().mkdir(parents=True, exist_ok=True, mode=0o700)
    files.write(state.home.erasing() / f"{pending.id}.json", msgspec.json.encode(pending), mode=0o600)


def _finish(state: State, pending: Pending) -> Erasure:
    """Return the tombstone, or what waits and for what."""
    pending.data = pending.data or _from_data(state, pending)
    try:
        erasure_served.forget(
            state, pending.project, _wish(state, pending), pending.observed or Observed(), pending.served
        )
        _keep(state, pending)
    except CellworkError as error:
        pending.waits_for = str(error)
        _keep(state, pending)
        log.warning("erasure %s waits: %s", pending.id, error)
        return _waiting(pending)
    done = pending.data
    done.at, done.predictions = clock.now(), sum(pending.served.predictions.values())
    done.rewritten = erasure_places.rewritten(done, pending.online, pending.served)
    done.untouched = erasure_places.untouched(done, pending.served, pending.observed or Observed())
    _record(state, pending, done)
    _empty_log(state)
    (state.home.erasing() / f"{pending.id}.json").unlink(missing_ok=True)
    return done


def _wish(state: State, pending: Pending) -> Forget:
    columns = {each.subject for each in raw.all_declared(state, pending.project) if each.subject}
    return Forget(erasure=pending.id, value=pending.value, names=erasure_served.names(state, pending.project, columns))


def _waiting(pending: Pending) -> Erasure:
    """Return how an erasure stands that is not finished."""
    nothing = Erasure(
        id=pending.id, project=pending.project, subject_sha256=_digest(pending), rows={}, views=[], aggregates=[], datasets=[],
        undeclared=[], by=pending.principal, reason=pending.reason, at=clock.now(),
    )  # fmt: skip
    return msgspec.structs.replace(pending.data or nothing, state="waiting", waits_for=pending.waits_for)


def _digest(pending: Pending) -> str:
    return hashlib.sha256(f"{pending.id}:{pending.value}".encode()).hexdigest()


def _from_data(state: State, pending: Pending) -> Erasure:
    """Take the subject out of raw data, features, online values and datasets; return the tombstone as far as it is about those."""
    project = pending.project
    declared = raw.all_declared(state, project)
    if pending.observed is None:
        columns = {each.subject for each in declared if each.subject}
        pending.observed = erasure_served.observed(state, project, pending.value, columns)
        _keep(state, pending)
    with feature_worker.working:
        if pending.keyed is None:
            pending.keyed = erasure_features.changed(state, project, pending.value, declared)
            _keep(state, pending)
        for each in declared:
            if each.subject:
                _from_raw(state, pending, each)
        if any(pending.found.values()):
            feature_tables.drop_prepared(state, project)
            feature_twins.drop(state, project)
        columns = {each.subject for each in declared if each.subject}
        aggregates = erasure_features.from_views(
            state, project, pending.value, pending.found, columns,
            pending.keyed, pending.touched, lambda: _keep(state, pending),
        )  # fmt: skip
        feature_twins.drop(state, project)
        if any(pending.found.values()) or pending.touched:
            feature_tables.outdate(state, project)
        erasure_datasets.empty(state, project, pending.value, columns, pending.emptied, lambda: _keep(state, pending))
    views = sorted(pending.touched)
    pending.online = erasure_features.online(state, project, views)
    pending.data = _tombstone(state, pending, declared, views, aggregates)
    _keep(state, pending)
    return pending.data


def _tombstone(
    state: State, pending: Pending, declared: list[RawDataset], views: list[str], aggregates: list[str]
) -> Erasure:
    project, (emptied, left) = pending.project, _datasets(state, pending)
    return Erasure(
        id=pending.id, project=project, subject_sha256=_digest(pending),
        rows={name: sum(found.values()) for name, found in pending.found.items() if found}, views=views,
        aggregates=aggregates, emptied=emptied, datasets=left,
        undeclared=[each.name for each in declared if not each.subject and each.erasable],
        by=pending.principal, reason=pending.reason, at=clock.now(),
    )  # fmt: skip


def _type(state: State, project: str, declared: RawDataset) -> str:
    """Return the Arrow type of the column that names subjects; before its first batch that of a text."""
    types = {column.name: column.type for column in raw.pinned(state, project, declared.name)}
    return types.get(declared.subject, "string")


def _check_fits(state: State, project: str, declared: list[RawDataset], value: str) -> None:
    """Raise BadInput for a value that none of the data sets can have."""
    types = {f"{each.name}.{each.subject}": _type(state, project, each) for each in declared if each.subject}
    if all(erase.typed(value, type_) is None for type_ in types.values()):
        known = ", ".join(f"{column}: {type_}" for column, type_ in types.items())
        raise BadInput(
            "subject", value, f"is of no type that a subject has here ({known})", "give the value as it stands there"
        )


def _from_raw(state: State, pending: Pending, declared: RawDataset) -> None:
    project, dataset, column = pending.project, declared.name, declared.subject
    value = erase.typed(pending.value, _type(state, project, declared))
    table, quarantine = state.raw_table(project, dataset), state.quarantine(project, dataset)
    with batches.writing(project, dataset):
        _from_held(state.home.held(project, dataset), column, pending.value)
        if value is None:
            return
        rows = pl.concat([erase.rows_of(table, column, value), erase.rows_of(quarantine, column, value)])
        found = pending.found.setdefault(dataset, {})
        for batch, count in Counter(rows.get_column("_batch")).items():
            found[batch] = max(count, found.get(batch, 0))
        _keep(state, pending)
        for batch, own in rows.group_by("_batch"):
            path = sealed.path(state.home.sealed(project), dataset, str(batch[0]))
            erase.from_file(path, ~pl.col("_row").is_in(own.get_column("_row").implode()))
        erase.from_table(quarantine, column, value)
        erase.from_table(table, column, value)
        for batch in found:
            _correct(state, project, dataset, batch)


def _from_held(folder: Path, column: str, value: str) -> None:
    for record in aside.listing(folder):
        _, rows = aside.get(folder, record.id)
        if column in rows.columns:
            kept = rows.filter(pl.col(column).cast(pl.String).ne_missing(value))
            if kept.height < rows.height:
                aside.keep(folder, msgspec.structs.replace(record, rows=kept.height), kept)


def _correct(state: State, project: str, dataset: str, batch: str) -> None:
    """Let the record and the sketch of a batch say what is there now."""
    rows = raw.raw_rows(state, project, dataset, [batch]).drop(BATCH)
    sketch, columns = sketches.of(rows), raw.pinned(state, project, dataset)
    path = state.home.sketches(project, "raw", dataset) / batch
    files.write(path, sketches.pack(sketch), mode=0o600, sync=False)
    record, quarantine = raw.get(state, batch), state.quarantine(project, dataset)
    record.erased += record.rows - rows.height
    record.rows = rows.height
    if record.rejected and quarantine.exists():
        record.rejected = tables.read(quarantine, [batch]).height
    record.statistics = statistics.said(sketch, dates=[c.name for c in columns if c.type == "date32[day]"])
    with state.engine.begin() as db:
        if db.dialect.name == "sqlite":
            db.exec_driver_sql("PRAGMA secure_delete = ON")  # the old record names frequent values
        values = {"r": msgspec.json.encode(record).decode(), "id": batch}
        db.execute(text("UPDATE batches SET record = :r WHERE id = :id"), values)


# The tombstone


def _datasets(state: State, pending: Pending) -> tuple[list[str], list[str]]:
    """Return the datasets whose rows were emptied, and those from the same batches in which nothing names the subject."""
    hit, emptied, left = {batch for found in pending.found.values() for batch in found}, [], []
    for record in erasure_datasets.stored(state, pending.project):
        if record.id in pending.emptied:
            emptied.append(f"{record.name} {record.id}: {pending.emptied[record.id]:,} rows")
        elif hit & set(record.batches):
            left.append(f"{record.name} {record.id}")
    return emptied, left


def _record(state: State, pending: Pending, done: Erasure) -> None:
    principal = Principal(kind="user", name=pending.principal)
    call = Call(principal, pending.request_id, Origin(user=pending.principal), {}, {}, None, {})
    with state.engine.begin() as db:
        values = {"id": done.id, "p": done.project, "r": msgspec.json.encode(done).decode()}
        made = db.execute(text("INSERT INTO erasures VALUES (:id, :p, :r) ON CONFLICT (id) DO NOTHING"), values)
        if made.rowcount:
            after = {
                "erasure": done.id, "rows": done.rows, "views": done.views, "emptied": done.emptied, "datasets": done.datasets,
                "predictions": done.predictions, "rewritten": [place.what for place in done.rewritten], "untouched": [place.what for place in done.untouched],
            }  # fmt: skip
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
        return [*_done(call), *(_waiting(each) for each in _pending(state) if each.project == call.path["project"])]

    def _done(call: Call) -> list[Erasure]:
        with state.engine.connect() as db:
            query = text("SELECT record FROM erasures WHERE project = :p ORDER BY id")
            rows = db.execute(query, {"p": call.path["project"]})
            return [msgspec.json.decode(row[0], type=Erasure) for row in rows]

    return [
        Route("POST", "/api/v1/erasures/{project}", post_erasure, scope="admin", body=EraseRequest, answer=Erasure, doc="Erase a subject from data, features and predictions, for a reason; what a service is away for is tried again by itself."),
        Route("GET", "/api/v1/erasures/{project}", get_erasures, scope="data:read", answer=list[Erasure], doc="Tombstones of erasures, and those that wait; they do not say who."),
    ]  # fmt: skip
