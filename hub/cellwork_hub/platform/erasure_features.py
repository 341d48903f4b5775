"""The part of an erasure that is about features: rows taken out by their key or made anew, online values forgotten."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import polars as pl
from deltalake import DeltaTable
from sqlalchemy import text

from cellwork.data import erase, prepare
from cellwork.errors import CellworkError
from cellwork.features import packed, references
from cellwork.features.row import BATCH
from cellwork.wire.batches import RawDataset
from cellwork.wire.features import Definitions, Prepared, Rolling, View
from cellwork_hub.platform import feature_definitions, feature_online, feature_worker, raw
from cellwork_hub.platform.feature_queue import Claim
from cellwork_hub.platform.state import State

log = logging.getLogger("cellwork.erasure")


def changed(
    state: State, project: str, value: str, known: Definitions, declared: Sequence[RawDataset]
) -> dict[str, list[str]]:
    """Return the views in which rows of the subject may have another key than it, as their Prepared says, with those keys as text.

    There are none where they can't be told. To be asked before raw rows go: what tells it are the subject's own, of corrected
    and sealed batches too.
    """
    subjects = {each.name: each.subject for each in declared if each.subject}
    columns, made, found = set(subjects.values()), dict[str, pl.DataFrame | None](), dict[str, list[str]]()
    for view in known.views:
        keys = references.join_keys(known, view)
        if not (own := columns & set(keys)):
            continue
        prepared = references.prepared_of(known, view.pipeline.rows)
        if prepared.name not in made:
            made[prepared.name] = _own_rows(state, project, value, prepared, subjects)
        rows = made[prepared.name]
        if rows is None or (rows.height and not own <= set(rows.columns)):
            found[view.name] = []
        elif rows.height:
            texts = rows.drop_nulls(sorted(own)).select(pl.col(key).cast(pl.String) for key in sorted(own))
            if not texts.select(pl.any_horizontal(pl.all() == value).all()).item():
                found[view.name] = sorted(set(texts.to_series()) - {value}) if len(own) == 1 else []
    return found


def _own_rows(
    state: State, project: str, value: str, prepared: Prepared, subjects: dict[str, str]
) -> pl.DataFrame | None:
    """Return the prepared rows that the subject's raw rows give; None if that can't be told."""
    driving, none = prepared.sources[0], pl.DataFrame()
    held = {source: _own_batches(state, project, value, source, subjects) for source in prepared.sources}
    if driving not in subjects:
        return None if any(held.values()) else none
    if not held[driving]:
        return none
    try:
        rows = raw.raw_rows(state, project, driving, held[driving], sealed=True)
        rows = rows.filter(pl.col(subjects[driving]).cast(pl.String) == value)
        others = {source: raw.raw_rows(state, project, source) for source in prepared.sources[1:]}
        return prepare.run(prepared, _plain(rows), {source: _plain(other) for source, other in others.items()})
    except CellworkError as error:
        log.warning("what prepared %s makes of an erased subject can't be told: %s", prepared.name, error)
        return None


def _alone(state: State, project: str, prepared: Prepared, column: str, keys: Sequence[str]) -> set[str]:
    """Return those of `keys` that no row has that is left, in whatever batch: they were the subject's alone."""
    driving, left = prepared.sources[0], set[str]()
    try:
        others = {source: _plain(raw.raw_rows(state, project, source)) for source in prepared.sources[1:]}
        for batch in raw.holdouts(state, project, driving):
            rows = _plain(raw.raw_rows(state, project, driving, [batch], sealed=True))
            left |= set(prepare.run(prepared, rows, others).get_column(column).cast(pl.String)) & set(keys)
    except CellworkError as error:
        log.warning("whose keys prepared %s makes can't be told: %s", prepared.name, error)
        return set()
    return set(keys) - left


def _own_batches(state: State, project: str, value: str, source: str, subjects: dict[str, str]) -> list[str]:
    """Return the batches of a data set that hold rows of the subject."""
    if source not in subjects:
        return []
    types = {column.name: column.type for column in raw.pinned(state, project, source)}
    typed = erase.typed(value, types.get(subjects[source], "string"), subjects[source])
    rows = erase.rows_of(state.raw_table(project, source), subjects[source], typed)
    known = raw.holdouts(state, project, source)
    return [batch for batch in rows.get_column("_batch").unique().sort() if batch in known]


def _plain(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(name for name in rows.columns if not name.startswith("_"))


def from_views(
    state: State, project: str, value: str, found: dict[str, dict[str, int]], known: Definitions, columns: set[str],
    keyed: Mapping[str, Sequence[str]], touched: list[str], keep: Callable[[], None],
) -> list[str]:  # fmt: skip
    """Take the subject out of the views; return those in which others' rows stay that may count its own.

    Parameters
    ----------
    found : raw data set -> batch -> rows of the subject.
    columns : of raw data that name subjects.
    keyed : views in which it may have another key than itself, with those keys, as `changed` told.
    touched : gets the views of which rows go or are made anew; `keep` is called before they do.
    """
    aggregates: list[str] = []
    hit = {name for name, batches in found.items() if batches}

    def touch(name: str) -> None:
        if name not in touched:
            touched.append(name)
            keep()
        shutil.rmtree(state.home.sketches(project, "features", name), ignore_errors=True)

    for view in known.views:
        keys = references.join_keys(known, view)
        sources = references.prepared_of(known, view.pipeline.rows).sources
        own = sorted(columns & set(keys))
        for column in own:
            _by_key(state, project, value, view, keys, column, touch)
        if (own and view.name not in keyed) or not hit & set(sources):
            continue
        if isinstance(view.pipeline, Rolling):
            others = keyed.get(view.name, ())
            prepared = references.prepared_of(known, view.pipeline.rows)
            alone = _alone(state, project, prepared, own[0], others) if others else set()
            for key in sorted(alone):
                _by_key(state, project, key, view, keys, own[0], touch)
            if not others or len(alone) < len(others):
                aggregates.append(view.name)
            continue
        touch(view.name)
        _anew(state, project, view, keys, None if hit & set(sources[1:]) else set(found[sources[0]]))
    return aggregates


def _tables(state: State, project: str, view: str) -> list[Path]:
    """Return the tables of a view: of every revision, readable and sealed."""
    folders = (state.home.feature_table(project, view), state.home.sealed(project) / "features" / view)
    return [
        path for folder in folders for path in sorted(folder.glob("revision-*")) if DeltaTable.is_deltatable(str(path))
    ]


def _by_key(
    state: State, project: str, value: str, view: View, keys: list[str], column: str, touch: Callable[[str], None]
) -> None:
    for path in _tables(state, project, view.name):
        rows = pl.scan_delta(str(path))
        typed = _typed(value, rows.collect_schema()[column])
        if typed is None:
            continue
        entities = rows.filter(pl.col(column) == typed).select(keys).unique().collect()
        if entities.height:
            touch(view.name)
        _forget(state, project, view, keys, entities)
        erase.from_table(path, column, typed)


def _typed(value: str, dtype: pl.DataType) -> str | int | None:
    """Return the subject as a value of a key of type `dtype`; None if it is none of that type, and so no key there."""
    if not dtype.is_integer():
        return value if dtype == pl.String else None
    try:
        number = int(value)
    except ValueError:
        return None
    return number if -(2**63) <= number < 2**63 else None


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
