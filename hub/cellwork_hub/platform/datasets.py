"""Datasets: frames of observations with features. Built here, stored whole, never changed.

The folder of a dataset holds `data.parquet` and, written last, `manifest.json`; it counts once the database knows it, with
its event, its audit and its edges. `cellwork_hub.platform.observed` says what the columns are.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import anyio.to_thread
import msgspec
import polars as pl
from sqlalchemy import Connection, text

from cellwork import clock, files, ids
from cellwork.content import frame_sha256
from cellwork.errors import BadInput, Conflict, NotFound, near_miss
from cellwork.features import references
from cellwork.wire.datasets import Coverage, Dataset, DatasetRequest
from cellwork_hub import records
from cellwork_hub.platform import batches, feature_queue, feature_tables, observed
from cellwork_hub.platform.background import Tell
from cellwork_hub.platform.batches import PARQUET
from cellwork_hub.platform.observed import Plan
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

MIGRATION = (
    "CREATE TABLE datasets (seq {serial}, id TEXT UNIQUE NOT NULL, project TEXT NOT NULL, name TEXT NOT NULL, record {json} NOT NULL)",
    "CREATE TABLE dataset_builds (key TEXT PRIMARY KEY, dataset TEXT NOT NULL)",
)


PIECE = 1 << 20
"""Bytes of a dataset that are read and sent at a time."""


@dataclass(frozen=True)
class Build:
    """A dataset that is asked for: `stored` if it is there, else what it will be made of."""

    request: DatasetRequest
    plan: Plan
    key: str
    stored: Dataset | None
    since: int
    """`feature_tables.outdated` before anything was read."""


def build(state: State, call: Call, request: DatasetRequest) -> Dataset:
    """Return the dataset of `request`: the stored one where nothing it depends on has changed, else a new one.

    Raises
    ------
    BadInput
        A name is unknown, the time is empty, or no observation lies in it.
    Conflict
        Feature pipelines of its views have not finished, so values would be missing; or a subject was erased meanwhile.
    """
    asked = planned(state, request)
    return asked.stored or make(state, call, asked, observations(state, asked))


def planned(state: State, request: DatasetRequest) -> Build:
    """Return what `request` means now. Raises what `build` does, but for a time without observations."""
    request = _checked(request)
    since = feature_tables.outdated(state, request.project)
    made = observed.plan(state, request.project, request.observations, request.features)
    made = _narrowed(state, made, request)
    _refuse_unfinished(state, made)
    key = _key(state, made, request)
    return Build(request, made, key, _built_before(state, key), since)


def observations(state: State, asked: Build) -> pl.DataFrame:
    """Return the observations that lie in the time asked for; there is at least one. What lies outside is let go batch by batch."""
    about, request = asked.plan.observations, asked.request
    rows = observed.rows(state, asked.plan, between=(request.start, request.end))
    if not rows.height:
        when = f"{request.start.isoformat()} to {request.end.isoformat()}"
        raise BadInput(
            f"time of observations {about.name!r}", when, "has no rows", "choose another time, or ingest its batches"
        )
    return rows


def make(
    state: State, call: Call, asked: Build, rows: pl.DataFrame, *, memory: int | None = None,
    tell: Tell | None = None, storing: Callable[[], None] | None = None,
) -> Dataset:  # fmt: skip
    """Join `rows` and store the dataset, as the last deed; what `tell` or `storing` raises leaves nothing behind.

    Parameters
    ----------
    memory : bytes that the join may take beside `rows`; default no limit.
    tell : called before each step of the join.
    storing : called right before the dataset is stored.
    """
    started = time.perf_counter()
    frame, coverage = observed.joined(state, asked.plan, rows, memory=memory, progress=tell)
    sources = _sources(state, asked.plan, frame)
    record = _described(call, asked.request, asked.plan, frame, coverage)
    record.batches = sources.batches
    record.seconds = time.perf_counter() - started
    if storing:
        storing()
    return _store(state, call, asked, record, frame, sources)


def _checked(request: DatasetRequest) -> DatasetRequest:
    ids.name(request.project, "project")
    ids.name(request.name, "dataset")
    start, end = clock.utc(request.start), clock.utc(request.end)
    if start >= end:
        raise BadInput(
            "end of the dataset", end.isoformat(), f"is not after its start {start.isoformat()}", "swap them"
        )
    return msgspec.structs.replace(request, start=start, end=end)


def _narrowed(state: State, made: Plan, request: DatasetRequest) -> Plan:
    """Return the plan for what the request leaves out: labels, or all batches but one."""
    about, taken = made.observations, made.batches
    if request.label:
        made = observed.labelled(state, made, request.label)
        about = made.observations
    if not request.labels:
        about = msgspec.structs.replace(about, label="", label_known="")
    if request.batch:
        taken = [batches.get(state, request.batch)]
        source = references.prepared_of(made.definitions, about.rows).sources[0]
        if (taken[0].project, taken[0].dataset) != (request.project, source):
            raise BadInput(
                "batch",
                request.batch,
                f"is not of data set '{request.project}/{source}'",
                "look at: cellwork batch list",
            )
    return replace(made, observations=about, batches=taken)


def _refuse_unfinished(state: State, made: Plan) -> None:
    """Raise Conflict while rows of the plan's views are still to be made: their values would be missing."""
    project = made.definitions.project
    for view, _ in made.views:
        for stage in ("failed", "queued", "running"):
            chosen = {"view": view.name, "state": stage}
            runs = feature_queue.listing(state, project, after=0, limit=1, chosen=chosen)
            for _, run in runs:
                verdict = f"has a pipeline run that is {stage}" + (f" ({run.error})" if run.error else "")
                way_out = (
                    "mend its definition and apply it again"
                    if stage == "failed"
                    else "wait: cellwork feature runs --wait"
                )
                raise Conflict(f"feature view {view.name!r}", run.batch, verdict, way_out)


def _key(state: State, made: Plan, request: DatasetRequest) -> str:
    """Return the hash of all that the content of the dataset depends on."""
    versions = [feature_tables.version(state, request.project, view) for view, _ in made.views]
    inputs = sorted(batch.id for batch in [*made.batches, *made.others])
    return hashlib.sha256(msgspec.json.encode([request, made.revision, inputs, versions])).hexdigest()


def _described(
    call: Call, request: DatasetRequest, made: Plan, frame: pl.DataFrame, coverage: list[Coverage]
) -> Dataset:
    about = made.observations
    content = frame_sha256(frame)
    return Dataset(
        id=ids.of_content("ds", msgspec.json.encode(request, order="sorted"), content),
        project=request.project, name=request.name, rows=frame.height, observations=about.name,
        id_column=about.id, time_column=about.at, inputs=about.inputs,
        features=[f"{view.name}__{field}" for view, fields in made.views for field in fields],
        label=about.label, label_known=about.label_known, labelled=frame.get_column(about.label).count() if about.label else 0,
        start=request.start, end=request.end, content_sha256=content, revision=made.revision,
        batches=[], coverage=coverage, at=clock.now(), origin=call.origin, label_name=request.label,
    )  # fmt: skip


@dataclass(frozen=True)
class Sources:
    """What a frame was made from: raw batches, and the feature sets whose values were found."""

    batches: list[str]
    feature_sets: list[str]


def _sources(state: State, made: Plan, frame: pl.DataFrame) -> Sources:
    """Return the sources of `frame`: of its observations, of what they are prepared with, of the values that were found."""
    found = {batch.id for batch in made.others} | _distinct(frame, "_batch")
    feature_sets: set[str] = set()
    for view, _ in made.views:
        caused_by = _distinct(frame, f"{view.name}___batch")
        found |= caused_by
        chosen = {"view": view.name, "state": "succeeded"}
        for _, run in feature_queue.listing(state, made.definitions.project, after=0, limit=1_000_000, chosen=chosen):
            if run.batch in caused_by:
                feature_sets.add(run.feature_set)
                found.update(run.inputs)
    return Sources(sorted(found), sorted(feature_sets))


def _distinct(frame: pl.DataFrame, column: str) -> set[str]:
    return set(frame.get_column(column).drop_nulls().unique().to_list())


def _store(state: State, call: Call, asked: Build, record: Dataset, frame: pl.DataFrame, sources: Sources) -> Dataset:
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    with feature_tables.keeping:
        if feature_tables.outdated(state, record.project) != asked.since:
            verdict = "was read before a subject was erased, so it may have its rows"
            raise Conflict("dataset", f"{record.project}/{record.name}", verdict, "build it again")
        there = _select(state, "id = :id", id=record.id)
        if not there:
            folder = state.home.dataset(record.id)
            files.write(folder / "data.parquet", buffer.getvalue())
            files.write(folder / "manifest.json", msgspec.json.encode(record))
        with state.engine.begin() as db:
            insert = text("INSERT INTO dataset_builds VALUES (:k, :id) ON CONFLICT DO NOTHING")
            db.execute(insert, {"k": asked.key, "id": record.id})
            if not there:
                _record(db, call, record, sources)
    return there[0] if there else record


def _record(db: Connection, call: Call, record: Dataset, sources: Sources) -> None:
    insert = "INSERT INTO datasets (id, project, name, record) VALUES (:id, :p, :n, :record) ON CONFLICT DO NOTHING"
    values = {"id": record.id, "p": record.project, "n": record.name, "record": msgspec.json.encode(record).decode()}
    if not db.execute(text(insert), values).rowcount:
        return
    for source in [*sources.batches, *sources.feature_sets]:
        records.edge(db, record.id, "built_from", source)
    records.event(
        db, "dataset.built", record.project, record.id, dataset=record.name, rows=record.rows, labelled=record.labelled
    )
    after = {"dataset": record.id, "rows": record.rows, "revision": record.revision}
    records.audit(db, call, "dataset.build", f"{record.project}/{record.name}", after=after)


def holdout_frame(
    state: State, project: str, holdout: str, observations: str, wanted: list[str], *, label: str = ""
) -> pl.DataFrame:
    """Return the sealed observations of `holdout` with their labels and features, in the columns of a dataset.

    For the evaluator alone: sealed labels are in it. No route may return it, or a row of it.

    Parameters
    ----------
    label : by name, in place of the observations' own; only what is sealed of it for `holdout`.

    Raises
    ------
    BadInput
        The observations, a feature or the label are not defined.
    NotFound
        No current batch of these observations is sealed for `holdout`.
    """
    made = observed.plan(state, project, observations, wanted)
    if label:
        made = observed.labelled(state, made, label)
    taken = [batch for batch in made.batches if batch.sealed == holdout]
    if not taken:
        known = {batch.sealed for batch in made.batches if batch.sealed}
        raise NotFound(
            f"holdout of observations {observations!r}", holdout, "keeps no batch", near_miss(holdout, known)
        )
    _refuse_unfinished(state, made)
    made = replace(made, batches=taken)
    return observed.joined(state, made, observed.rows(state, made, sealed=True), sealed=True)[0]


def get(state: State, dataset: str) -> Dataset:
    found = _select(state, "id = :id", id=ids.check(dataset, "ds"))
    if not found:
        raise NotFound("dataset", dataset, "does not exist", "look at: cellwork dataset list")
    return found[0]


def _built_before(state: State, key: str) -> Dataset | None:
    found = _select(state, "id = (SELECT dataset FROM dataset_builds WHERE key = :k)", k=key)
    return found[0] if found else None


def _select(state: State, where: str, limit: int = -1, **values: Any) -> list[Dataset]:
    bound = "" if limit < 0 else f" LIMIT {int(limit)}"
    with state.engine.connect() as db:
        rows = db.execute(text(f"SELECT record FROM datasets WHERE {where} ORDER BY seq{bound}"), values)
        return [msgspec.json.decode(row.record, type=Dataset) for row in rows]


async def _pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    """Yield what is in `file` a piece at a time: a dataset may be larger than what is left of memory."""
    with file:
        while piece := await anyio.to_thread.run_sync(file.read, PIECE):
            yield piece


def routes(state: State) -> list[Route]:
    def post_dataset(call: Call) -> Dataset:
        return build(state, call, call.body)

    def list_datasets(call: Call) -> list[Dataset]:
        limit, after = call.limit(100, 1000), call.query.get("cursor", "")
        where = "project = :p AND seq > coalesce((SELECT seq FROM datasets WHERE id = :after), 0)"
        found = _select(state, where, limit, p=call.required("project"), after=after)
        if len(found) == limit:
            call.next_page(found[-1].id)
        return found

    def get_dataset(call: Call) -> Dataset:
        dataset = get(state, call.path["dataset"])
        call.enter(dataset.project)
        return dataset

    def get_data(call: Call) -> AsyncIterator[bytes]:
        path = state.home.dataset(get_dataset(call).id) / "data.parquet"
        call.media_type, call.answer_headers["content-length"] = PARQUET, str(path.stat().st_size)
        return _pieces(path.open("rb"))

    return [
        Route("POST", "/api/v1/datasets", post_dataset, scope="data:write", body=DatasetRequest, answer=Dataset, doc="Build a dataset, or return the one that is there."),
        Route("GET", "/api/v1/datasets", list_datasets, scope="data:read", answer=list[Dataset], doc="Datasets of a project, oldest first."),
        Route("GET", "/api/v1/datasets/{dataset}", get_dataset, scope="data:read", answer=Dataset, doc="The record of one dataset."),
        Route("GET", "/api/v1/datasets/{dataset}/data", get_data, scope="data:read", answer=bytes, doc="Its rows, as parquet, sent as they are read."),
    ]  # fmt: skip
