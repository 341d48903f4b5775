"""The part of an erasure that is about features: rows taken out by their key or made anew, online values forgotten.

Every revision of every view that there ever was is looked at, with the definitions and the keys of that revision: rows of changed and of removed
views stay readable. Whoever changes a table of theirs here holds `feature_tables.writing`: a push that writes meanwhile would lose its file.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
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
from cellwork_hub.platform import feature_definitions, feature_online, feature_tables, feature_worker, raw
from cellwork_hub.platform.feature_queue import Claim
from cellwork_hub.platform.state import State

log = logging.getLogger("cellwork.erasure")


@dataclass(frozen=True)
class _Revision:
    """A view as it was defined at a revision of its rows."""

    known: Definitions
    view: View
    number: int
    holds: bool

    @property
    def name(self) -> str:
        """Return what it is called where its number matters."""
        return f"{self.view.name}@{self.number}"

    @property
    def keys(self) -> list[str]:
        return references.join_keys(self.known, self.view)

    @property
    def prepared(self) -> Prepared:
        return references.prepared_of(self.known, self.view.pipeline.rows)


def _revisions(state: State, project: str) -> list[_Revision]:
    """Return the revisions of views of which there are or will be rows, by view, oldest first."""
    query = "SELECT view, revision, holds FROM view_revisions WHERE project = :p ORDER BY view, revision"
    with state.engine.connect() as db:
        rows = db.execute(text(query), {"p": project}).all()
    found, known = [], dict[int, Definitions]()
    for name, number, holds in rows:
        if not holds and not _tables(state, project, name, number):
            continue
        if number not in known:
            known[number] = feature_definitions.definitions(state, project, number)[0]
        found.append(_Revision(known[number], references.view_of(known[number], name), number, bool(holds)))
    return found


def online(state: State, project: str, views: Collection[str]) -> list[str]:
    """Return those of `views` that are, or were, online."""
    found = {each.view.name for each in _revisions(state, project) if each.view.online}
    return sorted(found & set(views))


def changed(state: State, project: str, value: str, declared: Sequence[RawDataset]) -> dict[str, list[str]]:
    """Return the revisions of views in which rows of the subject may have another key than it, as their Prepared says, with those keys as text.

    There are none where they can't be told. To be asked before raw rows go: what tells it are the subject's own, of corrected
    and sealed batches too.
    """
    subjects = {each.name: each.subject for each in declared if each.subject}
    columns, made, found = set(subjects.values()), dict[tuple[str, ...], pl.DataFrame | None](), dict[str, list[str]]()
    for each in _revisions(state, project):
        if not (own := columns & set(each.keys)):
            continue
        prepared = each.prepared
        statement = (prepared.sql, *prepared.sources)
        if statement not in made:
            made[statement] = _own_rows(state, project, value, prepared, subjects)
        rows = made[statement]
        if rows is None or (rows.height and not own <= set(rows.columns)):
            found[each.name] = []
        elif rows.height:
            texts = rows.drop_nulls(sorted(own)).select(pl.col(key).cast(pl.String) for key in sorted(own))
            if not texts.select(pl.any_horizontal(pl.all() == value).all()).item():
                found[each.name] = sorted(set(texts.to_series()) - {value}) if len(own) == 1 else []
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
    typed = erase.typed(value, types.get(subjects[source], "string"))
    if typed is None:
        return []
    rows = erase.rows_of(state.raw_table(project, source), subjects[source], typed)
    known = raw.holdouts(state, project, source)
    return [batch for batch in rows.get_column("_batch").unique().sort() if batch in known]


def _plain(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(name for name in rows.columns if not name.startswith("_"))


def from_views(
    state: State, project: str, value: str, found: dict[str, dict[str, int]], columns: set[str],
    keyed: Mapping[str, Sequence[str]], touched: list[str], keep: Callable[[], None],
) -> list[str]:  # fmt: skip
    """Take the subject out of the views; return those in which others' rows stay that may count its own, old revisions as ``view@number``.

    Parameters
    ----------
    found : raw data set -> batch -> rows of the subject.
    columns : of raw data that name subjects.
    keyed : revisions of views in which it may have another key than itself, with those keys, as `changed` told.
    touched : gets the views of which rows go or are made anew; `keep` is called before they do.
    """
    aggregates: list[str] = []
    hit = {name for name, batches in found.items() if batches}

    def touch(name: str) -> None:
        if name not in touched:
            touched.append(name)
            keep()
        shutil.rmtree(state.home.sketches(project, "features", name), ignore_errors=True)

    for each in _revisions(state, project):
        sources = each.prepared.sources
        own = sorted(columns & set(each.keys))
        for column in own:
            _by_key(state, project, value, each, column, touch)
        if (own and each.name not in keyed) or not hit & set(sources):
            continue
        if isinstance(each.view.pipeline, Rolling):
            others = keyed.get(each.name, ())
            alone = _alone(state, project, each.prepared, own[0], others) if others else set()
            for key in sorted(alone):
                _by_key(state, project, key, each, own[0], touch)
            if not others or len(alone) < len(others):
                aggregates.append(each.view.name if each.holds else each.name)
            continue
        touch(each.view.name)
        every = raw.holdouts(state, project, sources[0])
        _anew(state, project, each, set(every if hit & set(sources[1:]) else found[sources[0]]))
    return aggregates


def _tables(state: State, project: str, view: str, revision: int | None = None) -> list[Path]:
    """Return the tables of a view, readable and sealed: of one revision, or of every one."""
    folders = (state.home.feature_table(project, view), state.home.sealed(project) / "features" / view)
    chosen = "revision-*" if revision is None else f"revision-{revision}"
    return [path for folder in folders for path in sorted(folder.glob(chosen)) if DeltaTable.is_deltatable(str(path))]


def _by_key(state: State, project: str, value: str, of: _Revision, column: str, touch: Callable[[str], None]) -> None:
    for path in _tables(state, project, of.view.name, of.number):
        with feature_tables.writing:
            rows = pl.scan_delta(str(path))
            typed = _typed(value, rows.collect_schema()[column])
            if typed is None:
                continue
            entities = rows.filter(pl.col(column) == typed).select(of.keys).unique().collect()
            if entities.height:
                touch(of.view.name)
            _forget(state, project, of, entities)
            erase.from_table(path, column, typed)


def _typed(value: str, dtype: pl.DataType) -> str | int | None:
    """Return the subject as a value of a key of type `dtype`; None if it is none of that type, and so no key there."""
    if dtype.is_integer():
        return erase.number(value)
    return value if dtype == pl.String else None


def _forget(state: State, project: str, of: _Revision, entities: pl.DataFrame) -> None:
    if of.view.online and entities.height:
        with feature_online.opened(state, project) as store:
            columns = [entities.get_column(key).to_list() for key in sorted(of.keys)]
            store.forget(of.view.name, packed.entity_keys(columns))


def _anew(state: State, project: str, of: _Revision, caused_by: set[str]) -> None:
    """Make the rows of a Select view again that the batches `caused_by` caused; where no run that holds made them, they just go."""
    name, tables = of.view.name, _tables(state, project, of.view.name, of.number)
    runs = _succeeded(state, project, of, caused_by) if of.holds else {}
    before = [_entities(path, of.keys, caused_by) for path in tables]
    for batch, run in runs.items():
        feature_worker.execute(state, Claim(run, project, name, of.number, batch))
    unmade = caused_by - set(runs)
    for path in tables:
        with feature_tables.writing:
            table = DeltaTable(path)
            for batch in {part[BATCH] for part in table.partitions()} & unmade:
                table.delete(f"{BATCH} = '{batch}'")
            erase.purge(path)
    if before:
        _renew(state, project, of, pl.concat(before).unique())


def _succeeded(state: State, project: str, of: _Revision, caused_by: set[str]) -> dict[str, str]:
    """Return batch -> run of the revision, of those batches whose run succeeded."""
    query = "SELECT batch, id FROM pipeline_runs WHERE project = :p AND view = :v AND revision = :r AND state = 'succeeded' ORDER BY seq"
    with state.engine.connect() as db:
        rows = db.execute(text(query), {"p": project, "v": of.view.name, "r": of.number})
        return {row.batch: row.id for row in rows if row.batch in caused_by}


def _entities(path: Path, keys: list[str], caused_by: set[str]) -> pl.DataFrame:
    rows = pl.scan_delta(str(path)).filter(pl.col(BATCH).is_in(list(caused_by)))
    return rows.select(keys).unique().collect()


def _renew(state: State, project: str, of: _Revision, entities: pl.DataFrame) -> None:
    """Let the online store say of `entities` what the rows say that are left, under the revisions that readers see or will see."""
    if not of.view.online or not entities.height:
        return
    _forget(state, project, of, entities)
    with feature_online.opened(state, project) as store:
        active = store.active(of.view.name) or 0
        for each in _revisions(state, project):
            if each.view.name == of.view.name and each.view.online and each.number >= active:
                for path in _tables(state, project, each.view.name, each.number):
                    left = _rows_of(path, of.keys, entities)
                    if left.height:
                        store.write(each.view.name, each.number, each.keys, left)


def _rows_of(path: Path, keys: list[str], entities: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of `entities`; none where the table has other keys."""
    rows = pl.scan_delta(str(path))
    types = rows.collect_schema()
    if any(types.get(key) != entities.schema[key] for key in keys):
        return pl.DataFrame()
    return rows.join(entities.lazy(), on=keys, how="semi", nulls_equal=True).collect()
