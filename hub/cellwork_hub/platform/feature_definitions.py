"""Definitions by revision: checked against each other and against the raw data, then kept. Nothing of an old revision changes."""

from __future__ import annotations

import base64
import binascii
import logging
import threading
from collections.abc import Iterable
from contextlib import closing

import msgspec
import polars as pl
from sqlalchemy import Connection, text

from cellwork import clock, files, ids
from cellwork.data import prepare, schema
from cellwork.errors import BadInput, NotFound
from cellwork.features import define, references
from cellwork.features import online as stores
from cellwork.features.row import polars_type, require, require_time
from cellwork.wire.features import Applied, Definitions, Prepared, Rolling, View
from cellwork_hub import records
from cellwork_hub.platform import batches, feature_queue, feature_seals
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call

log = logging.getLogger("cellwork.features")
applying = threading.Lock()
"""Held from the moment that definitions are kept until their views' runs are queued, and by who asks whether there are any."""
KINDS = {
    "prepared": "prepared",
    "entity": "entities",
    "view": "views",
    "service": "services",
    "observations": "observations",
    "label": "labels",
}
"""A definition's kind -> the field of `Definitions` that lists it."""


def definitions(state: State, project: str, revision: int | None = None) -> tuple[Definitions, int]:
    """Return the definitions of a project at `revision` (default the newest), and that revision.

    Raises
    ------
    NotFound
        Nothing was applied, or there is no such revision.
    """
    query = "SELECT body, revision FROM definitions WHERE project = :p AND (:r = 0 OR revision = :r) ORDER BY revision DESC LIMIT 1"
    with state.engine.connect() as db:
        row = db.execute(text(query), {"p": ids.name(project, "project"), "r": revision or 0}).first()
    if row is None:
        what = f"revision {revision} of project" if revision else "features of project"
        raise NotFound(what, project, "were never applied", "apply them with: cellwork feature apply")
    return msgspec.json.decode(row.body, type=Definitions), row.revision


def apply(state: State, call: Call, wanted: Definitions) -> Applied:
    """Make `wanted` the definitions of its project; what is new or changed is filled from all current batches.

    What was pushed to a view stays with the definition it was pushed under; a view that nothing fills begins anew, online too.

    Raises
    ------
    BadInput, NotFound
        A name, a column or a statement is wrong; nothing is changed.
    Refused
        A view could tell a sealed value.
    """
    check(state, wanted)
    with applying:
        return _apply(state, call, wanted)


def _apply(state: State, call: Call, wanted: Definitions) -> Applied:
    project = wanted.project
    with state.engine.begin() as db:
        row = db.execute(
            text("SELECT body, revision FROM definitions WHERE project = :p ORDER BY revision DESC LIMIT 1"),
            {"p": project},
        ).first()
        before = msgspec.json.decode(row.body, type=Definitions) if row else Definitions(project=project)
        revision = row.revision if row else 0
        changed, removed = difference(before, wanted)
        if changed or removed:
            revision += 1
            body = {
                "p": project,
                "r": revision,
                "b": msgspec.json.encode(wanted).decode(),
                "at": records.micros(clock.now()),
            }
            db.execute(text("INSERT INTO definitions VALUES (:p, :r, :b, :at)"), body)
            _keep_views(db, wanted, revision)
            after = {"revision": revision, "changed": changed, "removed": removed}
            records.audit(db, call, "features.apply", project, before={"revision": revision - 1}, after=after)
        for view, since in _holding(db, project):
            feature_queue.retry(db, p=project, v=view, r=since)
    _keep_registry(state, wanted)
    feature_queue.fill(state, project)
    _serve_unfilled(state, wanted)
    return Applied(project=project, revision=revision, changed=changed, removed=removed)


def difference(before: Definitions, after: Definitions) -> tuple[list[str], list[str]]:
    """Return the names that are new or changed and the ones that are gone, each ``kind:name``."""
    old, new = _by_name(before), _by_name(after)
    return [name for name in new if old.get(name) != new[name]], [name for name in old if name not in new]


def _by_name(wanted: Definitions) -> dict[str, object]:
    return {f"{kind}:{each.name}": each for kind, field in KINDS.items() for each in getattr(wanted, field)}


def _keep_views(db: Connection, wanted: Definitions, revision: int) -> None:
    """Give each view whose content changed the new revision, and drop what its old one had still to do; the others keep theirs."""
    held = {
        row.view: row.sha256
        for row in db.execute(
            text("SELECT view, sha256 FROM view_revisions WHERE project = :p AND holds = 1"), {"p": wanted.project}
        )
    }
    content = {view.name: references.content_sha256(wanted, view) for view in wanted.views}
    end = text("UPDATE view_revisions SET holds = 0 WHERE project = :p AND view = :v")
    for name in held:
        if content.get(name) != held[name]:
            db.execute(end, {"p": wanted.project, "v": name})
            feature_queue.drop(db, wanted.project, name)
    start = text("INSERT INTO view_revisions VALUES (:p, :v, :r, :s, :d, 1)")
    for view in wanted.views:
        if held.get(view.name) != content[view.name]:
            driving = references.prepared_of(wanted, view.pipeline.rows).sources[0]
            values = {"p": wanted.project, "v": view.name, "r": revision, "s": content[view.name], "d": driving}
            db.execute(start, values)


def _serve_unfilled(state: State, wanted: Definitions) -> None:
    """Let readers see the views that no run will fill. Where the store is away the next push does it."""
    project, online = wanted.project, {view.name for view in wanted.views if view.online}
    with state.engine.connect() as db:
        held = [
            each for each in _holding(db, project) if each[0] in online and not feature_queue.begun(db, project, *each)
        ]
    if not held:
        return
    try:
        with closing(stores.open_store(state.home.online(project), state.context.settings.online_url)) as store:
            for view, revision in held:
                active = store.active(view)
                if active is not None and active < revision:
                    store.activate(view, revision)
    except Exception:  # the definitions are kept, whatever the store meets
        log.exception("project %s: views that nothing fills are not served yet", project)


def _holding(db: Connection, project: str) -> Iterable[tuple[str, int]]:
    rows = db.execute(
        text("SELECT view, revision FROM view_revisions WHERE project = :p AND holds = 1"), {"p": project}
    )
    return [(row.view, row.revision) for row in rows]


def view_revision(state: State, project: str, view: str) -> int:
    """Return the revision under which the rows of `view` are kept now. Raises NotFound if it is not defined."""
    with state.engine.connect() as db:
        held = dict(_holding(db, project))
    if view not in held:
        references.view_of(definitions(state, project)[0], view)
        raise NotFound(f"view of project {project!r}", view, "is not defined any more", "apply it again")
    return held[view]


def _keep_registry(state: State, wanted: Definitions) -> None:
    """Keep Feast's own registry beside ours; it is never read here, only by Feast's clients."""
    if wanted.feast_registry:
        files.write(state.home.feast_registry(wanted.project), base64.b64decode(wanted.feast_registry), mode=0o600)


# What is checked


def check(state: State, wanted: Definitions) -> None:
    """Raise for the first thing wrong with `wanted`, as far as the raw data that is there can tell."""
    ids.name(wanted.project, "project")
    for name, each in _by_name(wanted).items():
        ids.name(each.name, name.partition(":")[0])  # type: ignore[attr-defined]
    if len(_by_name(wanted)) != sum(len(getattr(wanted, field)) for field in KINDS.values()):
        raise BadInput(
            "definitions of project", wanted.project, "have a name twice", "give each of a kind its own name"
        )
    try:
        base64.b64decode(wanted.feast_registry, validate=True)
    except binascii.Error as error:
        raise BadInput(
            "feast_registry", "", f"is not base64: {error}", "let `cellwork feature apply` make it"
        ) from None
    define.check_references(wanted)
    columns = {prepared.name: _columns(state, wanted.project, prepared) for prepared in wanted.prepared}
    for view in wanted.views:
        for field in view.fields:
            polars_type(field.type)
        rows = columns[view.pipeline.rows]
        if rows is not None:
            _check_view(wanted, view, rows)
            feature_seals.check(state, wanted, view)
    for about in wanted.observations:
        rows = columns[about.rows]
        if rows is not None:
            named = (about.id, *about.keys.values(), *about.inputs, about.label, about.label_known)
            require(f"rows {about.rows!r} of observations {about.name!r}", rows, [name for name in named if name])
            require_time(f"rows {about.rows!r} of observations {about.name!r}", rows, about.at)
    for label in wanted.labels:
        rows = columns[label.rows]
        if rows is not None:
            require(f"rows {label.rows!r} of label {label.name!r}", rows, [label.id, label.value])
            require_time(f"rows {label.rows!r} of label {label.name!r}", rows, label.known)


def _columns(state: State, project: str, prepared: Prepared) -> pl.DataFrame | None:
    """Return no rows with the columns that `prepared` makes; None while one of its sources has no batch to know them from."""
    sources = {name: batches.pinned(state, project, name) for name in prepared.sources}
    if not all(sources.values()):
        return None
    empty = {name: schema.complete(pl.DataFrame(), columns) for name, columns in sources.items()}
    plain = {name: frame.select(c for c in frame.columns if not c.startswith("_")) for name, frame in empty.items()}
    driving = plain.pop(prepared.sources[0])
    return prepare.run(prepared, driving, plain)


def _check_view(wanted: Definitions, view: View, rows: pl.DataFrame) -> None:
    subject = f"rows {view.pipeline.rows!r} of view {view.name!r}"
    require(subject, rows, references.join_keys(wanted, view))
    until = references.until_column(wanted, view)
    for column in (view.pipeline.event, view.pipeline.known, *([until] if until else [])):
        require_time(subject, rows, column)
    if isinstance(view.pipeline, Rolling):
        require(subject, rows, [a.column for a in view.pipeline.aggregates.values() if a.column])
    else:
        require(subject, rows, [field.name for field in view.fields])
