"""Executes pipeline runs: one background thread, batch after batch.

A run is: read prepared rows, make feature rows, write them to the table (one commit, a repetition replaces it), offer them to the online
store (which keeps the newest), and last record it, with its event and its edges, in one transaction. So a crash at any
point leaves a run that is executed again with the same result. Pipelines see sealed values, since an endpoint needs
the features of now: values that sealed batches cause go online, where only single newest values are read (`feature_seals` says
of which views), but their rows are kept from every reader of the feature table.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from datetime import datetime

import polars as pl

from cellwork import errors, ids
from cellwork.features import pipeline, references
from cellwork.features.pipeline import Step
from cellwork.features.row import BATCH, EVENT
from cellwork.wire.batches import Batch
from cellwork.wire.features import Definitions, Rolling
from cellwork_hub import records
from cellwork_hub.loop import Loop
from cellwork_hub.platform import batches, feature_online, feature_queue, feature_seals, feature_tables
from cellwork_hub.platform.feature_definitions import definitions
from cellwork_hub.platform.feature_queue import Claim, Done, Rests
from cellwork_hub.platform.state import State

log = logging.getLogger("cellwork.features")
working = threading.Lock()
"""Held while a run is executed; an erasure holds it to be alone with the feature rows."""
IDLE_SECONDS = 0.2
DUE_SECONDS = 1.0
"""How often schedules are looked at."""


class Worker(Loop):
    """The thread that executes what is queued, run after run."""

    def __init__(self, state: State) -> None:
        super().__init__("feature-pipelines", self._next, idle=IDLE_SECONDS, after_error=IDLE_SECONDS)
        self.state, self._looked, self._rests = state, 0.0, Rests()

    def prepare(self) -> None:
        feature_queue.recover(self.state)

    def warm(self) -> None:
        feature_online.prewarm(self.state)

    def _next(self) -> bool:
        if time.monotonic() - self._looked >= DUE_SECONDS:
            feature_queue.queue_due(self.state)
            self._looked = time.monotonic()
        return step(self.state, self._rests)


def step(state: State, rests: Rests | None = None) -> bool:
    """Execute the next run; False if there is none. A failure is recorded with the run.

    A run that waits for a store or a file that does not answer lets its project rest, so that the others go on; without
    `rests` nothing does, and the answer is False.
    """
    run = feature_queue.claim(state, rests.resting() if rests else ())
    if run is None:
        return False
    try:
        with working:
            execute(state, run)
    except errors.Unavailable as error:
        log.warning("pipeline run %s waits: %s", run.id, error)
        feature_queue.put_back(state, run, str(error))
        if rests:
            rests.begin(run.project)
        return rests is not None
    except errors.CellworkError as error:
        feature_queue.fail(state, run, str(error))
    except Exception as error:  # a run must not stop the ones behind it; what it was stands in the log and with the run
        log.exception("pipeline run %s failed", run.id)
        feature_queue.fail(state, run, f"{type(error).__name__}: {error}")
    if rests:
        rests.end(run.project)
    return True


def execute(state: State, run: Claim) -> None:
    """Make the feature rows that the batch of `run` causes, and everything that follows from them; without all its sources it waits.

    Raises
    ------
    Conflict
        An earlier run of a rolling view failed, so that values would be wrong.
    Refused
        The batch is sealed, and the view could tell a sealed value.
    """
    started = time.perf_counter()
    known = definitions(state, run.project, run.revision)[0]
    made = _Made(state, known, run)
    view = made.view
    if feature_queue.hold(state, run, made.others):
        return
    if isinstance(view.pipeline, Rolling):
        if failed := feature_queue.blocked_by(state, run):
            raise errors.Conflict(
                f"batch {failed}", "", "failed before, and later values build on it", "mend that one first"
            )
        rows, done = made.rolling()
    else:
        rows, done = made.select(), None
    if made.batch.sealed:
        feature_seals.check(state, known, view)
        feature_seals.check_rows(known, view, made.prepared([made.batch]), made.batch.id)
    _publish(state, run, made, rows)
    inputs = [*made.inputs, *(b.id for source in made.others for b in batches.current(state, run.project, source))]
    feature_set = ids.of_content("fset", references.content_sha256(known, view), *sorted(inputs))
    with state.engine.begin() as db:
        seconds = time.perf_counter() - started
        feature_queue.succeed(
            db, run, feature_set=feature_set, inputs=inputs, rows=rows.height, seconds=seconds, done=done
        )
        name = f"view:{run.project}/{run.view}@{run.revision}"
        records.edge(db, feature_set, "made_by", name)
        for source in inputs:
            records.edge(db, feature_set, "built_from", source)
        told = {"view": run.view, "batch": run.batch, "rows": rows.height, "revision": run.revision}
        records.event(db, "features.ready", run.project, feature_set, **told)


def again(state: State, run: Claim) -> pl.DataFrame:
    """Return the feature rows that a run which succeeded has made, made anew from raw batches; nothing is kept or written.

    Other sources than the view's first are read as they are now.
    """
    past = [*itertools.takewhile(lambda done: done.step.batch != run.batch, feature_queue.done(state, run))]
    made = _Made(state, definitions(state, run.project, run.revision)[0], run, past)
    return made.rolling()[0] if isinstance(made.view.pipeline, Rolling) else made.select()


class _Made:
    """What one run reads and makes; with `past` what it would have made after those runs, from raw rows only."""

    def __init__(self, state: State, known: Definitions, run: Claim, past: list[Done] | None = None) -> None:
        self.state, self.known, self.revision = state, known, run.revision
        self.view, self.batch = references.view_of(known, run.view), batches.get(state, run.batch)
        self.cached = past is None
        self.past = feature_queue.done(state, run) if past is None else past
        self.keys = references.join_keys(known, self.view)
        self.others = references.prepared_of(known, self.view.pipeline.rows).sources[1:]
        self.corrects = any(done.step.batch == self.batch.supersedes for done in self.past)
        self.inputs = [self.batch.id]

    def prepared(self, wanted: list[Batch]) -> pl.DataFrame:
        return feature_tables.prepared_rows(
            self.state, self.known, self.view.pipeline.rows, batches=wanted, sealed=True, cached=self.cached
        )

    def select(self) -> pl.DataFrame:
        rows = self.prepared([self.batch])
        if not self.corrects:
            return pipeline.select_rows(self.view, self.keys, rows)
        old = self.prepared([batches.get(self.state, self.batch.supersedes)])
        return pipeline.corrected_select_rows(
            self.view, self.keys, old, rows, arrived=self.batch.at, batch=self.batch.id
        )

    def rolling(self) -> tuple[pl.DataFrame, Done]:
        assert isinstance(self.view.pipeline, Rolling)
        own = self.prepared([self.batch])
        reached = max((d.step.until for d in self.past if d.step.until), default=None)
        column = references.until_column(self.known, self.view)
        until = pipeline.step_until(self.view, own, self.batch.at, reached, column=column)
        after = next((d.step.after for d in self.past if d.step.batch == self.batch.supersedes), reached)
        near = self._near(after)
        rows = (
            pl.concat(
                [self.prepared([batches.get(self.state, d.step.batch) for d in near]), own], how="vertical_relaxed"
            )
            if near
            else own
        )
        steps = [*(d.step for d in near), Step(self.batch.id, after, reached if self.corrects else until)]
        made = pipeline.rolling_rows(self.view, self.keys, rows, steps, emit=[Step(self.batch.id, reached, until)])
        if self.corrects:
            made = pl.concat([self._corrected(rows, steps), made])
        self.inputs = [*(d.step.batch for d in near), self.batch.id]
        newest: datetime | None = own.get_column(self.view.pipeline.event).max()  # type: ignore[assignment]
        return made, Done(Step(self.batch.id, after, until), newest, self.batch.supersedes, bool(self.batch.sealed))

    def _near(self, after: datetime | None) -> list[Done]:
        """Return the batches that hold and whose rows may count after `after`."""
        replaced = {d.supersedes for d in self.past} | {self.batch.supersedes}
        reach = pipeline.reach(self.view)
        return [
            d for d in self.past
            if d.step.batch not in replaced and d.newest is not None and (after is None or d.newest + reach > after)
        ]  # fmt: skip

    def _corrected(self, rows: pl.DataFrame, steps: list[Step]) -> pl.DataFrame:
        written = feature_tables.read(self.state, self.batch.project, self.view, self.revision, sealed=True)
        written = written.filter(pl.col(BATCH) != self.batch.id)
        return pipeline.corrected_rolling_rows(
            self.view, self.keys, rows, steps, written, corrected=steps[-1], arrived=self.batch.at
        )

    def hidden(self, rows: pl.DataFrame) -> pl.Series:
        """Return which rows are kept from readers: all of a sealed batch; of a correction those of a sealed batch's grid times."""
        if self.batch.sealed:
            return pl.Series([True] * rows.height, dtype=pl.Boolean)
        steps = [d.step for d in self.past if d.sealed and d.step.until] if self.corrects else []
        within = [
            (pl.col(EVENT) <= step.until) & (pl.lit(True) if step.after is None else pl.col(EVENT) > step.after)
            for step in steps
        ]
        return rows.select(pl.any_horizontal(pl.lit(False), *within).alias("hidden")).get_column("hidden")


def _publish(state: State, run: Claim, made: _Made, rows: pl.DataFrame) -> None:
    hidden = made.hidden(rows)
    feature_tables.write(state, run, rows.filter(~hidden), sealed=False)
    feature_tables.write(state, run, rows.filter(hidden), sealed=True)
    if made.view.online:
        with feature_online.opened(state, run.project) as store:
            store.write(run.view, run.revision, made.keys, rows)
            feature_online.serve(state, store, run, made.view, made.keys)
