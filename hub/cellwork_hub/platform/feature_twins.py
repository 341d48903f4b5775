"""Pushed events: ingested as a batch, and at once counted by the real-time twins of the views they feed, whose values go online.

Order of a push: the batch is published (durable, its pipeline runs queued), then each twin takes the batches it has not taken, in the order of
their runs, and offers what changed to the online store. A crash in between loses nothing: the pipeline run writes the same values
(same event, creation and value, so whichever comes second changes nothing) and the offline rows. A push of the same events
under the same name is the same batch.

A twin is memory only. It is made from what the pipeline recorded of its batches (`feature_queue.done`), and made anew where
it can not go on: after a correction, a failed run, an erasure, a loss of the online store, a change of the view or of a source that its rows
are joined with. Where it can not be made (a sealed batch, a run that failed or waits, a first filling that is not done), the pipeline alone
serves the view, and the answer says so. Each twin has one lock; batches of a data set come one at a time. A batch of a joined source that
arrives between a push and its pipeline run is seen by the run alone.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import polars as pl
from sqlalchemy import text

from cellwork import errors, ids
from cellwork.content import frame_sha256
from cellwork.data.delivery import partition_key
from cellwork.features import pipeline, references
from cellwork.features.realtime import Key, Twin
from cellwork.features.row import BATCH, CREATED, EVENT, schema
from cellwork.wire.batches import Batch
from cellwork.wire.features import Definitions, Rolling, Streamed, View
from cellwork_hub.platform import (
    batches,
    feature_definitions,
    feature_online,
    feature_queue,
    feature_tables,
)
from cellwork_hub.platform.feature_online import opened
from cellwork_hub.platform.feature_queue import Claim
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

MIGRATION: tuple[str, ...] = ()
TIME = pl.Datetime("us", "UTC")
MOST = 100
"""Batches that a twin catches up with in a push."""
_live: dict[tuple[str, str, str], _Live] = {}
_locks: defaultdict[tuple[str, str, str], threading.Lock] = defaultdict(threading.Lock)


def push(state: State, call: Call, project: str, dataset: str, rows: pl.DataFrame, delivery: str) -> Streamed:
    """Ingest events and offer online what the views they feed say then. Raises what `batches.ingest` does.

    Parameters
    ----------
    delivery : the name of the batch; default one made from the rows, so that the same rows again change nothing.
    """
    partition = partition_key(delivery or f"push-{frame_sha256(rows)[:32]}")
    ingested = batches.ingest(state, call, project, dataset, partition, rows)
    online: dict[str, int] = {}
    behind: dict[str, str] = {}
    for view, revision in _driven(state, project, dataset):
        try:
            online[view] = _offer(state, project, view, revision, ingested.batch)
        except _Behind as reason:
            behind[view] = str(reason)
        except errors.CellworkError as error:  # the batch is published: its pipeline run meets the same, and tells
            behind[view] = str(error)
    return Streamed(batch=ingested.batch, new=ingested.new, online=online, behind=behind)


def _driven(state: State, project: str, dataset: str) -> list[tuple[str, int]]:
    query = "SELECT view, revision FROM view_revisions WHERE project = :p AND dataset = :d AND holds = 1 ORDER BY view"
    with state.engine.connect() as db:
        return [(row.view, row.revision) for row in db.execute(text(query), {"p": project, "d": dataset})]


def _offer(state: State, project: str, name: str, revision: int, batch: Batch) -> int:
    """Offer online what a view says after `batch`; returns how many values were newer."""
    known, _ = feature_definitions.definitions(state, project, revision)
    view = references.view_of(known, name)
    if not view.online:
        return 0
    keys = references.join_keys(known, view)
    with opened(state, project) as store:
        active = store.active(name)
        if active not in (None, revision):
            raise _Behind("a changed definition is still being filled")
        if isinstance(view.pipeline, Rolling):
            rows = _followed(state, known, view, revision, anew=active is None)
        elif batch.sealed or batch.supersedes:
            raise _Behind("it is a correction, or sealed")
        else:
            prepared = feature_tables.prepared_rows(state, known, view.pipeline.rows, batches=[batch])
            rows = pipeline.select_rows(view, keys, prepared)
        written = store.write(name, revision, keys, rows) if rows.height else 0
        if active is None:
            with feature_tables.writing:
                feature_online.serve(state, store, Claim("", project, name, revision, ""), view, keys)
    return written


def _followed(state: State, known: Definitions, view: View, revision: int, *, anew: bool) -> pl.DataFrame:
    """Return what the view's twin says after the batches that came; made `anew`, after all that are not in the table yet."""
    key = (str(state.home.root), known.project, view.name)
    with _locks[key]:
        live = _live.pop(key, None)  # whatever fails from here on leaves none, and the next push makes it anew
        if anew or live is None or live.revision != revision or live.others != live.joined_with():
            live = _Live(state, known, view, revision)
        rows = live.follow()
        _live[key] = live
        return rows


def drop(state: State, project: str) -> None:
    """Forget the twins of a project; the next push makes them anew from what there is then."""
    for key in [key for key in _live if key[:2] == (str(state.home.root), project)]:
        with _locks[key]:
            _live.pop(key, None)


class _Behind(Exception):
    """The twin can't tell; the pipeline will. Its words are for the answer."""


class _Live:
    """The twin of a rolling view at a revision, as far as the runs it has taken."""

    def __init__(self, state: State, known: Definitions, view: View, revision: int) -> None:
        self.state, self.known, self.view, self.revision = state, known, view, revision
        self.keys = references.join_keys(known, view)
        self.twin, self.place = Twin(view, self.keys), (-1, -1)
        self.reached: datetime | None = None
        self.column = references.until_column(known, view)
        self.others = self.joined_with()
        self._past()

    def joined_with(self) -> list[str]:
        """Return the batches of the other sources."""
        sources = references.prepared_of(self.known, self.view.pipeline.rows).sources[1:]
        return [batch.id for source in sources for batch in batches.current(self.state, self.known.project, source)]

    def follow(self) -> pl.DataFrame:
        """Take the batches that came; returns the newest row of each key that has one.

        Raises
        ------
        _Behind
            One of them is nothing for a twin.
        """
        frames = []
        for row in self._runs():
            frames.append(self._take(batches.get(self.state, row.batch)))
            self.place = (row.ordinal, row.seq)
        return pl.concat(frames, how="vertical_relaxed") if frames else pl.DataFrame()

    def _claim(self) -> Claim:
        return Claim("", self.known.project, self.view.name, self.revision, "")

    def _runs(self) -> list[Any]:
        """Return the runs behind those taken, in their order."""
        query = (
            "SELECT batch, supersedes, sealed, state, ordinal, seq FROM pipeline_runs WHERE project = :p AND view = :v AND revision = :r "
            "ORDER BY ordinal, seq"
        )
        with self.state.engine.connect() as db:
            asked = {"p": self.known.project, "v": self.view.name, "r": self.revision}
            rows = db.execute(text(query), asked).all()
        if any(row.state in ("failed", "waiting") for row in rows):
            raise _Behind("a pipeline run of it failed, or waits for a source")
        left = [row for row in rows if (row.ordinal, row.seq) > self.place]
        if any(row.supersedes for row in left):
            raise _Behind("a correction is on its way")
        if any(row.sealed for row in left):
            raise _Behind("a sealed batch is on its way")
        if len(left) > MOST:
            raise _Behind(f"{len(left)} batches are still to become its rows")
        return left

    def _past(self) -> None:
        """Count what the pipeline has done already."""
        done = feature_queue.done(self.state, self._claim())
        self.reached = max((each.step.until for each in done if each.step.until), default=None)
        replaced, reach = {each.supersedes for each in done}, pipeline.reach(self.view)
        for each in done:
            near = each.newest is not None and (self.reached is None or each.newest + reach > self.reached)
            if each.step.batch in replaced or not near:
                continue
            if each.sealed:
                raise _Behind("a sealed batch is in its window")
            rows = self._prepared(batches.get(self.state, each.step.batch))
            self.twin.add(rows.iter_rows(named=True), after=each.step.after)
        if self.reached is not None:
            self.twin.advance(self.reached)
        taken = {each.step.batch for each in done}
        places = [(row.ordinal, row.seq) for row in self._all() if row.batch in taken]
        self.place = max(places, default=self.place)

    def _all(self) -> Sequence[Any]:
        query = "SELECT batch, ordinal, seq FROM pipeline_runs WHERE project = :p AND view = :v AND revision = :r"
        with self.state.engine.connect() as db:
            return db.execute(text(query), {"p": self.known.project, "v": self.view.name, "r": self.revision}).all()

    def _prepared(self, batch: Batch) -> pl.DataFrame:
        return feature_tables.prepared_rows(self.state, self.known, self.view.pipeline.rows, batches=[batch])

    def _take(self, batch: Batch) -> pl.DataFrame:
        rows = self._prepared(batch)
        until = pipeline.step_until(self.view, rows, batch.at, self.reached, column=self.column)
        self.twin.add(rows.iter_rows(named=True))
        moved = self.twin.advance(until) if until is not None else {}
        self.reached = until
        return self._frame(moved, {key: rows.schema[key] for key in self.keys}, batch.id)

    def _frame(self, moved: dict[Key, datetime], keys: dict[str, pl.DataType], batch: str) -> pl.DataFrame:
        """Return the feature rows of the keys that `moved`, as the pipeline writes them."""
        rows = [
            {**dict(zip(self.keys, key, strict=True)), **self.twin.values(key), EVENT: at, CREATED: at, BATCH: batch}
            for key, at in moved.items()
        ]
        types = {**keys, **schema(self.view), EVENT: TIME, CREATED: TIME, BATCH: pl.String()}
        return pl.DataFrame(rows, types)


def routes(state: State) -> list[Route]:
    def post_events(call: Call) -> Streamed:
        project, dataset = ids.name(call.path["project"], "project"), ids.name(call.path["dataset"], "data set")
        rows = batches.delivered(state, call, project, dataset)
        return push(state, call, project, dataset, rows, call.query.get("delivery", ""))

    path = "/api/v1/streams/{project}/{dataset}"
    return [
        Route("POST", path, post_events, scope="data:write", body=bytes, answer=Streamed, doc="Ingest events (application/x-ndjson, text/csv, parquet) and count them online at once; ?delivery= names them."),
    ]  # fmt: skip
