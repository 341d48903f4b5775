"""Descriptions of raw data sets and feature views, merged from the sketches of their batches.

A raw batch's sketch is written when the batch is; a view's when somebody first asks after a batch was added, once, under
the names of the files that hold its rows, so a rewritten piece gets a new one. A sketch that is missing is made again from the rows.
Only readable rows are sketched.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable

from cellwork import files
from cellwork.data import aside, sketches, statistics
from cellwork.data.sketches import Sketch
from cellwork.errors import BadInput, NotFound
from cellwork.features import references
from cellwork.features.row import BATCH
from cellwork.wire.batches import Batch, Decision, Held, Ingested
from cellwork.wire.features import Definitions
from cellwork.wire.statistics import Description
from cellwork_hub import records
from cellwork_hub.platform import batches, feature_definitions, raw
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

__all__ = ["MIGRATION", "describe_raw", "describe_view", "of_raw", "of_view", "routes"]

MIGRATION: tuple[str, ...] = ()


def chosen(state: State, project: str, dataset: str, query: dict[str, str]) -> list[Batch]:
    """Return the batches that `batch`, `as_of` or, without either, the present time name."""
    raw.pinned(state, project, dataset)
    if query.get("batch"):
        return [raw.of_dataset(state, project, dataset, query["batch"])]
    if query.get("as_of"):
        return raw.known_at(state, project, dataset, query["as_of"])
    return raw.current(state, project, dataset)


def of_raw(state: State, project: str, dataset: str, wanted: Sequence[Batch]) -> Sketch:
    """Return the merged sketch of the readable rows of `wanted`, with all columns of the data set."""
    columns = raw.pinned(state, project, dataset)
    nothing = Sketch(0, {column.name: sketches.Column("null", 0) for column in columns})
    return sketches.merge([nothing, *(_of_batch(state, batch) for batch in wanted)])


def _of_batch(state: State, batch: Batch) -> Sketch:
    path = state.home.sketches(batch.project, "raw", batch.dataset) / batch.id

    def rows() -> pl.DataFrame:
        return raw.raw_rows(state, batch.project, batch.dataset, [batch.id]).drop(BATCH)

    return _kept(path, rows)


def _kept(path: Path, rows: Callable[[], pl.DataFrame]) -> Sketch:
    """Return the sketch in `path`; if it is not there, or was cut off, that of `rows()`, which is kept there."""
    try:
        return sketches.unpack(path.read_bytes())
    except (FileNotFoundError, BadInput):
        made = sketches.of(rows())
    files.write(path, sketches.pack(made), mode=0o600, sync=False)
    return made


def of_view(state: State, project: str, view: str) -> tuple[Sketch, int, int]:
    """Return the merged sketch of the readable rows of a view as it holds, how many batches caused them, and their bytes."""
    revision = feature_definitions.view_revision(state, project, view)
    path = state.home.feature_table(project, view) / f"revision-{revision}"
    folder = state.home.sketches(project, "features", view)
    if not DeltaTable.is_deltatable(str(path)):
        return Sketch(0, {}), 0, 0
    pieces = _pieces(DeltaTable(path))
    parts = []
    for batch, (names, _) in pieces.items():
        key = hashlib.sha256("\n".join([str(revision), *sorted(names)]).encode()).hexdigest()[:26]
        parts.append(_kept(folder / key, functools.partial(_rows, path, batch)))
    merged = sketches.merge(parts) if parts else Sketch(0, {})
    return merged, len(pieces), sum(size for _, size in pieces.values())


def _rows(path: Path, batch: str) -> pl.DataFrame:
    return pl.scan_delta(str(path)).filter(pl.col(BATCH) == batch).drop(BATCH).collect()


def _pieces(table: DeltaTable) -> dict[str, tuple[list[str], int]]:
    """Return batch -> (its files, their bytes) of a table."""
    found: dict[str, tuple[list[str], int]] = {}
    actions = pl.DataFrame(pl.from_arrow(pa.table(table.get_add_actions(flatten=True))))
    for row in actions.select("path", "size_bytes", f"partition.{BATCH}").iter_rows():
        names, size = found.get(row[2], ([], 0))
        found[row[2]] = ([*names, row[0]], size + row[1])
    return found


def describe_raw(state: State, project: str, dataset: str, wanted: Sequence[Batch]) -> Description:
    declared, columns = raw.declaration(state, project, dataset)
    sketch = of_raw(state, project, dataset, wanted)
    where = state.raw_table(project, dataset)
    sizes = _pieces(where.table()) if where.exists() else {}
    return Description(
        project=project, kind="raw", name=dataset, rows=sketch.rows, batches=len(wanted),
        columns=statistics.said(sketch, dates=[c.name for c in columns if c.type == "date32[day]"]),
        bytes=sum(sizes[b.id][1] for b in wanted if b.id in sizes), newest=max((b.at for b in wanted), default=None),
        owner=declared.owner if declared else "", description=declared.description if declared else "",
        tags=declared.tags if declared else {}, used_by=readers(state, project, dataset),
    )  # fmt: skip


def readers(state: State, project: str, dataset: str) -> list[str]:
    """Return the views and observations that read a raw data set."""
    known = defined(state, project)
    prepared = {p.name for p in known.prepared if dataset in p.sources}
    found = [f"view:{view.name}" for view in known.views if view.pipeline.rows in prepared]
    return found + [f"observations:{each.name}" for each in known.observations if each.rows in prepared]


def defined(state: State, project: str) -> Definitions:
    """Return the definitions of a project; none if nothing was applied."""
    try:
        return feature_definitions.definitions(state, project)[0]
    except NotFound:
        return Definitions(project=project)


def describe_view(state: State, project: str, name: str) -> Description:
    view = references.view_of(feature_definitions.definitions(state, project)[0], name)
    sketch, pieces, size = of_view(state, project, name)
    return Description(
        project=project, kind="features", name=name, rows=sketch.rows, batches=pieces, columns=statistics.said(sketch),
        bytes=size, owner=view.owner, description=view.description, tags=view.tags,
    )  # fmt: skip


def release(state: State, call: Call, delivery: str) -> Ingested:
    """Publish what a check held back, whole, for the reason given; whoever does is in the audit."""
    project, dataset = call.path["project"], call.path["dataset"]
    reason = _reason(call.body, "release")
    record, rows = aside.get(state.home.held(project, dataset), delivery)
    return batches.ingest(state, call, project, dataset, record.partition, rows, waived=reason)


def discard(state: State, call: Call, delivery: str) -> Held:
    project, dataset = call.path["project"], call.path["dataset"]
    reason = _reason(call.body, "discard")
    record, _ = aside.get(state.home.held(project, dataset), delivery)
    with state.engine.begin() as db:
        subject = f"{project}/{dataset}/{record.partition}"
        records.audit(db, call, "batch.discard", subject, before={"held": delivery}, reason=reason)
    aside.drop(state.home.held(project, dataset), delivery)
    return record


def _reason(decision: Decision, verb: str) -> str:
    if not decision.reason.strip():
        raise BadInput(f"reason to {verb} the delivery", "", "is missing", "say why; it goes into the audit")
    return decision.reason.strip()


def routes(state: State) -> list[Route]:
    def get_raw(call: Call) -> Description:
        project, dataset = call.path["project"], call.path["dataset"]
        return describe_raw(state, project, dataset, chosen(state, project, dataset, call.query))

    def get_raw_sketch(call: Call) -> bytes:
        project, dataset = call.path["project"], call.path["dataset"]
        call.media_type = "application/octet-stream"
        return sketches.pack(of_raw(state, project, dataset, chosen(state, project, dataset, call.query)))

    def get_view(call: Call) -> Description:
        return describe_view(state, call.path["project"], call.path["view"])

    def get_view_sketch(call: Call) -> bytes:
        call.media_type = "application/octet-stream"
        return sketches.pack(of_view(state, call.path["project"], call.path["view"])[0])

    def get_held(call: Call) -> list[Held]:
        return aside.listing(state.home.held(call.path["project"], call.path["dataset"]))

    def post_release(call: Call) -> Ingested:
        return release(state, call, call.path["delivery"])

    def post_discard(call: Call) -> Held:
        return discard(state, call, call.path["delivery"])

    return [
        Route("GET", "/api/v1/statistics/{project}/raw/{dataset}", get_raw, scope="data:read", answer=Description, doc="Statistics of a raw data set: all current batches, ?batch= or ?as_of=."),
        Route("GET", "/api/v1/statistics/{project}/features/{view}", get_view, scope="features:read", answer=Description, doc="Statistics of a feature view."),
        Route("GET", "/api/v1/sketches/{project}/raw/{dataset}", get_raw_sketch, scope="data:read", answer=bytes, doc="The merged sketch of a raw data set, packed."),
        Route("GET", "/api/v1/sketches/{project}/features/{view}", get_view_sketch, scope="features:read", answer=bytes, doc="The merged sketch of a feature view, packed."),
        Route("GET", "/api/v1/held/{project}/{dataset}", get_held, scope="data:read", answer=list[Held], doc="Deliveries that a check held back."),
        Route("POST", "/api/v1/held/{project}/{dataset}/{delivery}/release", post_release, scope="data:write", body=Decision, answer=Ingested, doc="Publish a held delivery as it is, for a reason."),
        Route("POST", "/api/v1/held/{project}/{dataset}/{delivery}/discard", post_discard, scope="data:write", body=Decision, answer=Held, doc="Drop a held delivery, for a reason."),
    ]  # fmt: skip
