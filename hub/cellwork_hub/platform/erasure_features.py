"""The part of an erasure that is about features: rows taken out by their key or made anew, online values forgotten."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
from deltalake import DeltaTable
from sqlalchemy import text

from cellwork.data import erase
from cellwork.features import packed, references
from cellwork.features.row import BATCH
from cellwork.wire.features import Definitions, Rolling, View
from cellwork_hub.platform import feature_definitions, feature_online, feature_worker
from cellwork_hub.platform.feature_queue import Claim
from cellwork_hub.platform.state import State


def from_views(
    state: State, project: str, value: str, found: dict[str, dict[str, int]], known: Definitions, columns: set[str]
) -> tuple[list[str], list[str]]:
    """Return the views whose rows were erased or made anew, and those that only counted them.

    Parameters
    ----------
    found : raw data set -> batch -> rows of the subject.
    columns : of raw data that name subjects.
    """
    touched, aggregates = [], []
    hit = {name for name, batches in found.items() if batches}
    for view in known.views:
        keys = references.join_keys(known, view)
        sources = references.prepared_of(known, view.pipeline.rows).sources
        if own := columns & set(keys):
            _by_key(state, project, value, view, keys, min(own))
        elif not hit & set(sources):
            continue
        elif isinstance(view.pipeline, Rolling):
            aggregates.append(view.name)
            continue
        else:
            _anew(state, project, view, keys, None if hit & set(sources[1:]) else set(found[sources[0]]))
        shutil.rmtree(state.home.sketches(project, "features", view.name), ignore_errors=True)
        touched.append(view.name)
    return touched, aggregates


def _tables(state: State, project: str, view: str) -> list[Path]:
    """Return the tables of a view: of every revision, readable and sealed."""
    folders = (state.home.feature_table(project, view), state.home.sealed(project) / "features" / view)
    return [
        path for folder in folders for path in sorted(folder.glob("revision-*")) if DeltaTable.is_deltatable(str(path))
    ]


def _by_key(state: State, project: str, value: str, view: View, keys: list[str], column: str) -> None:
    for path in _tables(state, project, view.name):
        rows = pl.scan_delta(str(path))
        dtype = rows.collect_schema()[column]
        typed = int(value) if dtype.is_integer() else value
        _forget(state, project, view, keys, rows.filter(pl.col(column) == typed).select(keys).unique().collect())
        erase.from_table(path, column, typed)


def _forget(state: State, project: str, view: View, keys: list[str], entities: pl.DataFrame) -> None:
    if view.online and entities.height:
        with feature_online.opened(state, project) as store:
            store.forget(view.name, packed.entity_keys([entities.get_column(key).to_list() for key in sorted(keys)]))


def _anew(state: State, project: str, view: View, keys: list[str], caused_by: set[str] | None) -> None:
    """Make the rows of a Select view again that the batches `caused_by` (None: all) caused; older revisions lose theirs."""
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
    _forget(state, project, view, keys, gone)


def _entities(state: State, project: str, view: View, keys: list[str], caused_by: set[str] | None) -> pl.DataFrame:
    found = []
    for path in _tables(state, project, view.name):
        rows = pl.scan_delta(str(path))
        rows = rows if caused_by is None else rows.filter(pl.col(BATCH).is_in(list(caused_by)))
        found.append(rows.select(keys).unique().collect())
    return pl.concat(found).unique() if found else pl.DataFrame()
