"""Raw data: data sets of immutable batches. This module alone writes the raw tables, their quarantine and what is sealed.

A batch is written in this order: sealed values, quarantine, readable rows, their sketch, and last, in one transaction, its row in the
database with event, audit and what follows from it (`State.on_batch`). A crash before that transaction leaves files that no
reader is ever told of; the same delivery, sent again, replaces them. One delivery of a data set is written at a time.
A delivery that fails a declared check is kept aside (`cellwork.data.aside`) and published only if somebody says so.
"""

from __future__ import annotations

import gzip
import io
import threading
import zlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
import polars as pl
from sqlalchemy import Connection, text

from cellwork import clock, files, ids
from cellwork.data import aside, checks, delivery, schema, sealed, sketches, sources, tables
from cellwork.data.delivery import Delivery
from cellwork.errors import BadInput, Conflict, Refused, TooLarge, near_miss
from cellwork.wire.batches import Batch, Column, Held, Ingested, RawDataset
from cellwork_hub import records
from cellwork_hub.platform import raw
from cellwork_hub.platform.raw import current, get, known_at, pinned, raw_rows
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

__all__ = ["MIGRATION", "current", "declare", "get", "ingest", "known_at", "parquet", "pinned", "raw_rows", "routes"]

MIGRATION = (
    "CREATE TABLE raw_datasets (project TEXT NOT NULL, name TEXT NOT NULL, declared {json} NOT NULL, columns {json} NOT NULL, "
    "at BIGINT NOT NULL, PRIMARY KEY (project, name))",
    "CREATE TABLE batches (seq {serial}, id TEXT UNIQUE NOT NULL, project TEXT NOT NULL, dataset TEXT NOT NULL, partition_key TEXT NOT NULL, "
    "holdout TEXT NOT NULL, supersedes TEXT NOT NULL, superseded_by TEXT NOT NULL, record {json} NOT NULL)",
    "CREATE UNIQUE INDEX batches_current ON batches (project, dataset, partition_key) WHERE superseded_by = ''",
    "CREATE INDEX batches_dataset ON batches (project, dataset, seq)",
)
LAST = 10
"""Batches whose row counts the next one's is compared with."""
TEXTS = {
    "text/csv": "csv",
    "text/tab-separated-values": "tsv",
    "application/x-ndjson": "jsonl",
    "application/jsonl": "jsonl",
}
"""Content types of deliveries that are no parquet."""
MOST_PLAIN = 2**30
PARQUET = "application/vnd.apache.parquet"
_writing: defaultdict[tuple[str, str], threading.Lock] = defaultdict(threading.Lock)


def writing(project: str, dataset: str) -> threading.Lock:
    """Return what to hold while the tables of a data set are changed."""
    return _writing[project, dataset]


def ingest(
    state: State, call: Call, project: str, dataset: str, partition: str, frame: pl.DataFrame, *, waived: str = ""
) -> Ingested:
    """Take `frame` as the batch `partition`: as a new batch, a correction of the current one, or the same delivery again.

    Parameters
    ----------
    waived : the reason for which the declared checks do not count this time.

    Raises
    ------
    BadInput
        Nothing of it can be taken.
    Refused
        A declared check holds it back; it is kept aside until somebody decides.
    """
    with _writing[project, dataset]:
        declared, columns = raw.declaration(state, project, dataset)
        declared, at = declared or RawDataset(name=dataset), clock.now()
        before = raw.last_sizes(state, project, dataset, LAST)
        try:
            received = delivery.receive(
                frame, project, declared, partition, columns, at=at, before=before, waived=bool(waived)
            )
        except BadInput as error:
            _tell_rejected(state, project, f"{project}/{dataset}/{partition}", reason=str(error))
            raise
        there = raw.select(state, "id = :id", id=received.batch)
        if there:
            return Ingested(batch=there[0], new=False)
        if not received.passed:
            raise _hold(state, call, project, declared, partition, received, frame)
        with files.room(state.home.root):
            _write(state, project, dataset, received)
            with state.engine.begin() as db:
                batch = _record(db, call, project, declared, partition, received, waived)
                for follow in state.on_batch:
                    follow(db, state, batch)
        for old in aside.listing(state.home.held(project, dataset)):
            if old.partition == partition:
                aside.drop(state.home.held(project, dataset), old.id)
        return Ingested(batch=batch, new=True)


def _tell_rejected(state: State, project: str, subject: str, **told: str) -> None:
    with state.engine.begin() as db:
        records.event(db, "batch.rejected", project, subject, **told)


def _hold(
    state: State,
    call: Call,
    project: str,
    declared: RawDataset,
    partition: str,
    received: Delivery,
    frame: pl.DataFrame,
) -> Refused:
    failed = [f"{o.check} (not so in {o.failed:,} rows)" for o in received.checks if not o.passed]
    record = Held(
        id=received.batch, project=project, dataset=declared.name, partition=partition, rows=frame.height,
        checks=received.checks, at=clock.now(), origin=call.origin,
    )  # fmt: skip
    aside.keep(state.home.held(project, declared.name), record, frame)
    reason = "; ".join(failed) or "no row passes its checks"
    _tell_rejected(state, project, f"{project}/{declared.name}/{partition}", reason=reason, held=received.batch)
    way_out = f"mend it and send it again, or publish it as it is: cellwork data release {project}/{declared.name} {received.batch} --reason …"
    return Refused(f"batch of data set '{project}/{declared.name}'", partition, f"is held back: {reason}", way_out)


def _write(state: State, project: str, dataset: str, received: Delivery) -> None:
    known = list(raw.holdouts(state, project, dataset))
    if received.sealed is not None:
        sealed.write(state.home.sealed(project), dataset, received.batch, received.sealed)
    if received.rejected.height:
        tables.write(state.quarantine(project, dataset), received.rejected, received.batch, known=known)
    tables.write(state.raw_table(project, dataset), received.readable, received.batch, known=known)
    sketch = state.home.sketches(project, "raw", dataset) / received.batch
    files.write(sketch, sketches.pack(received.sketch), mode=0o600, sync=False)


def _record(
    db: Connection,
    call: Call,
    project: str,
    declared: RawDataset,
    partition: str,
    received: Delivery,
    waived: str,
) -> Batch:
    dataset = declared.name
    where = {"p": project, "d": dataset, "k": partition}
    before = db.execute(
        text(
            "SELECT id FROM batches WHERE project = :p AND dataset = :d AND partition_key = :k AND superseded_by = ''"
        ),
        where,
    ).scalar()
    batch = Batch(
        id=received.batch, seq=0, project=project, dataset=dataset, partition=partition, rows=received.readable.height,
        columns=received.columns, statistics=received.statistics, at=clock.now(), origin=call.origin,
        sealed=received.sealing.holdout if received.sealing else "", supersedes=before or "", rejected=received.rejected.height,
        checks=received.checks,
    )  # fmt: skip
    if before:
        db.execute(text("UPDATE batches SET superseded_by = :new WHERE id = :old"), {"new": batch.id, "old": before})
        records.edge(db, batch.id, "supersedes", before)
    insert = (
        "INSERT INTO batches (id, project, dataset, partition_key, holdout, supersedes, superseded_by, record) "
        "VALUES (:id, :p, :d, :k, :holdout, :supersedes, '', :record) RETURNING seq"
    )
    values = {**where, "id": batch.id, "holdout": batch.sealed, "supersedes": batch.supersedes, "record": _json(batch)}
    batch.seq = db.execute(text(insert), values).scalar_one()
    _declare(db, project, declared, received.columns)
    records.event(
        db, "batch.ready", project, batch.id, dataset=dataset, partition=partition, rows=batch.rows,
        rejected=batch.rejected, supersedes=batch.supersedes,
    )  # fmt: skip
    after = {"batch": batch.id, "rows": batch.rows, "rejected": batch.rejected, "sealed": batch.sealed}
    action = "batch.release" if waived else "batch.ingest"
    records.audit(db, call, action, f"{project}/{dataset}/{partition}", before=before or "", after=after, reason=waived)
    return batch


def declare(state: State, call: Call, project: str, declared: RawDataset) -> RawDataset:
    """Say what a raw data set is. What is sealed in batches that are there already can't change.

    Raises
    ------
    Conflict
        The new seals say something else about a current batch: it is readable already, or it is sealed and would not be.
    """
    sealed.check(declared)
    with _writing[project, declared.name]:
        before, columns = raw.declaration(state, project, declared.name)
        for name in declared.key if columns else []:
            if name not in (known := [column.name for column in columns]):
                raise BadInput(
                    f"key column of data set {declared.name!r}", name, "is not in its schema", near_miss(name, known)
                )
        checks.check_declared(declared, columns)
        _check_subject(declared, columns)
        _check_seals(state, project, before or RawDataset(name=declared.name), declared)
        if before == declared:
            return declared
        with state.engine.begin() as db:
            _declare(db, project, declared, columns)
            records.audit(
                db, call, "dataset.declare", f"{project}/{declared.name}", before=before or "", after=declared
            )
    return declared


def _check_subject(declared: RawDataset, columns: Sequence[Column]) -> None:
    if not declared.subject:
        return
    subject = f"subject of data set {declared.name!r}"
    if not declared.erasable:
        raise BadInput(subject, declared.subject, "contradicts erasable=False", "leave one of both out")
    if any(declared.subject in seal.columns for seal in declared.seals):
        raise BadInput(subject, declared.subject, "is sealed, so its rows could not be found", "do not seal it")
    types = {column.name: column.type for column in columns}
    if types and declared.subject not in types:
        raise BadInput(subject, declared.subject, "is not in its schema", near_miss(declared.subject, types))
    if types.get(declared.subject, "string") not in ("string", "int64", "null"):
        raise BadInput(
            subject, declared.subject, f"is of type {types[declared.subject]}", "name a text or integer column"
        )


def _check_seals(state: State, project: str, before: RawDataset, after: RawDataset) -> None:
    for batch in current(state, project, after.name):
        if sealed.sealing(before, batch.partition) != sealed.sealing(after, batch.partition):
            fact = f"is kept for holdout {batch.sealed!r}" if batch.sealed else "is readable"
            verdict = f"{fact} since {batch.at:%Y-%m-%d %H:%M}Z; its seals can't change any more"
            way_out = "seal partitions before they are ingested, or ingest into another data set"
            raise Conflict(f"batch of partition {batch.partition!r}", batch.id, verdict, way_out)


def _declare(db: Connection, project: str, declared: RawDataset, columns: Sequence[Column]) -> None:
    statement = (
        "INSERT INTO raw_datasets VALUES (:p, :n, :declared, :columns, :at) "
        "ON CONFLICT (project, name) DO UPDATE SET declared = :declared, columns = :columns"
    )
    at = records.micros(clock.now())
    values = {"p": project, "n": declared.name, "declared": _json(declared), "columns": _json(columns), "at": at}
    db.execute(text(statement), values)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def parquet(frame: pl.DataFrame, call: Call) -> bytes:
    """Return `frame` as the body of the answer to `call`."""
    call.media_type = PARQUET
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()


def delivered(state: State, call: Call, project: str, dataset: str) -> pl.DataFrame:
    """Return the rows of a delivery: parquet, or what its content type says; ``?nulls=NA,-`` are a CSV's missing values."""
    kind = TEXTS.get(call.headers.get("content-type", "").partition(";")[0].strip().lower())
    body = _plain(call.body) if call.headers.get("content-encoding") == "gzip" else call.body
    if kind is None:
        return delivery.unpack(body)
    known = {column.name: column.type for column in raw.declaration(state, project, dataset)[1]}
    return sources.text(body, kind, nulls=["", *call.query.get("nulls", "").split(",")], known=known)


def _plain(body: bytes) -> bytes:
    """Return a gzip body unpacked, all its members, if that is not too much."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as packed:
            plain = packed.read(MOST_PLAIN + 1)
    except EOFError:
        raise BadInput("delivery", "", "is gzip that was cut off", "send it again, whole") from None
    except (zlib.error, gzip.BadGzipFile) as error:
        raise BadInput("delivery", "", f"is not gzip throughout: {error}", "send it plain, or pack it again") from None
    if len(plain) > MOST_PLAIN:
        raise TooLarge("delivery", "", f"unpacks to more than {MOST_PLAIN} bytes", "send it in parts")
    return plain


def routes(state: State) -> list[Route]:
    def put_declaration(call: Call) -> RawDataset:
        if call.body.name != call.path["dataset"]:
            raise BadInput(
                "name of the data set",
                call.body.name,
                f"is not the {call.path['dataset']!r} of the path",
                "use one name",
            )
        return declare(state, call, ids.name(call.path["project"], "project"), call.body)

    def list_declarations(call: Call) -> list[RawDataset]:
        return raw.all_declared(state, ids.name(call.path["project"], "project"))

    def put_batch(call: Call) -> Ingested:
        project, dataset = ids.name(call.path["project"], "project"), ids.name(call.path["dataset"], "data set")
        partition = delivery.partition_key(call.path["partition"])
        return ingest(state, call, project, dataset, partition, delivered(state, call, project, dataset))

    def list_batches(call: Call) -> list[Batch]:
        where = "project = :p AND seq > :after"
        where += " AND dataset = :d" if call.query.get("dataset") else ""
        where += " AND superseded_by = ''" if call.query.get("current", "true") != "false" else ""
        where += " AND substr(partition_key, 1, :n) = :prefix" if call.query.get("prefix") else ""
        values = {"p": call.required("project"), "d": call.query.get("dataset", ""), "after": call.number("cursor", 0)}
        prefix, limit = call.query.get("prefix", ""), call.limit(100, 1000)
        found = raw.select(state, where, limit, **values, prefix=prefix, n=len(prefix))
        if len(found) == limit:
            call.next_page(found[-1].seq)
        return found

    def get_batch(call: Call) -> Batch:
        batch = get(state, call.path["batch"])
        call.enter(batch.project)
        return batch

    def get_rejected(call: Call) -> bytes:
        batch = get_batch(call)
        if not batch.rejected:
            return parquet(pl.DataFrame(schema={"_reason": pl.String}), call)
        rows = tables.read(state.quarantine(batch.project, batch.dataset), [batch.id])
        return parquet(schema.complete(rows, batch.columns).drop("_row"), call)

    def get_rows(call: Call) -> bytes:
        project, dataset = call.path["project"], call.path["dataset"]
        chosen = None
        if call.query.get("batch"):
            chosen = [ids.check(call.query["batch"], "bat")]
        elif call.query.get("as_of"):
            chosen = [batch.id for batch in known_at(state, project, dataset, call.query["as_of"])]
        rows = raw_rows(state, project, dataset, chosen)
        limit = call.number("limit", -1)
        return parquet(rows if limit < 0 else rows.head(limit), call)

    return [
        Route("PUT", "/api/v1/raw/{project}/{dataset}", put_declaration, scope="data:write", body=RawDataset, answer=RawDataset, doc="Say what a raw data set is."),
        Route("GET", "/api/v1/raw/{project}", list_declarations, scope="data:read", answer=list[RawDataset], doc="The raw data sets of a project."),
        Route("PUT", "/api/v1/batches/{project}/{dataset}/{partition}", put_batch, scope="data:write", body=bytes, answer=Ingested, doc="Ingest a file (parquet, or text/csv, application/x-ndjson…) as the batch of a partition."),
        Route("POST", "/api/v1/batches/{project}/{dataset}/{partition}", put_batch, scope="data:write", body=bytes, answer=Ingested, doc="The same, for senders that only post; CSV, TSV and JSON lines by content type, gzip too."),
        Route("GET", "/api/v1/batches", list_batches, scope="data:read", answer=list[Batch], doc="Batches of a project, oldest first."),
        Route("GET", "/api/v1/batches/{batch}", get_batch, scope="data:read", answer=Batch, doc="One batch."),
        Route("GET", "/api/v1/batches/{batch}/rejected", get_rejected, scope="data:read", answer=bytes, doc="Its rows in quarantine, as parquet."),
        Route("GET", "/api/v1/rows/{project}/{dataset}", get_rows, scope="data:read", answer=bytes, doc="Readable rows, as parquet."),
    ]  # fmt: skip
