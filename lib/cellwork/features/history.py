"""Point-in-time join: each observation with the values that were known at its time, once each, in the order given.

A value is known from the later of its event and its arrival. Of the values known, the newest by (event, created, value
hash) counts, even if it is empty or expired: an older one never stands in for it. The join writes nothing, so whatever ends
it early (an exception of `progress`, an interrupt) leaves nothing behind. Views are joined one after the other, each in as
many partitions of its entities as the memory allowed asks for; the result does not depend on their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cellwork import clock
from cellwork.features import asof, estimate
from cellwork.features.asked import GROUP, PER_SECOND, Asked, ask, finest, instants
from cellwork.features.row import BATCH, CREATED, EVENT, require, require_time, value_hash
from cellwork.wire.datasets import Coverage, Late
from cellwork.wire.features import View

if TYPE_CHECKING:
    import polars as pl

SOURCE = "_source"
"""Number of a row in a lazy frame."""


@dataclass(frozen=True)
class JoinView:
    """What is joined of one view."""

    view: View
    keys: Mapping[str, str]
    """Join key -> column of the observations."""
    fields: Sequence[str]
    """Features to add, as columns ``view__feature``."""
    rows: pl.DataFrame | pl.LazyFrame
    """All feature rows of the view, `_batch` if they have one. A lazy frame is read once a partition, in the same order each
    time, and only the columns that are needed."""


@dataclass(frozen=True)
class Progress:
    """How far a join is: `done` of `steps`, the next of which is of `view`."""

    done: int
    steps: int
    view: str


def join(
    observations: pl.DataFrame,
    *,
    at: str,
    views: Sequence[JoinView],
    arrival: bool = True,
    memory: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[pl.DataFrame, list[Coverage]]:
    """Return `observations` with the features of `views`, and how many of them found a value.

    Each view adds ``view__feature`` for its fields, ``view__event_timestamp`` and ``view___batch``. All are null where the
    entity is unknown, a key or the time is null, nothing was known yet, or the value is older than the view's ttl.

    Parameters
    ----------
    at : column of `observations`, a time with a zone.
    arrival : False takes a value as known from its event on, whenever it arrived. Right only where arrival times mean nothing.
    memory : bytes the join may take beside `observations` and the frames it is given; default no limit.
    progress : called before each step; what it raises ends the join.

    Raises
    ------
    BadInput
        A column is missing, a time has no zone, or a key is of another type than the view's.
    TooLarge
        The result alone takes more than `memory`.
    """
    require_time("observations", observations, at)
    parts = [estimate.parts(view, observations, views, memory) for view in views]
    joined, coverage, questions, done = observations, [], Questions(observations, at), 0
    for view, count in zip(views, parts, strict=True):
        asked = questions.of(view)
        frames = []
        for part in asked.parts(count):
            if progress:
                progress(Progress(done, sum(parts), view.view.name))
            frames.append(answered(view, part, arrival=arrival, whole=count == 1))
            done += 1
        columns, found = gathered(observations.get_column(at), view, asked, frames)
        coverage.append(found)
        joined = joined.hstack(columns)
    if progress:
        progress(Progress(done, done, ""))
    return joined, coverage


def check(observations: pl.DataFrame, *, at: str, views: Sequence[JoinView]) -> None:
    """Raise BadInput for what `join` of the same would refuse; joins nothing."""
    require_time("observations", observations, at)
    questions = Questions(observations.head(0), at)
    for view in views:
        questions.of(view)


def late(observations: pl.DataFrame, *, at: str, views: Sequence[JoinView], memory: int | None = None) -> list[Late]:
    """Return, per view, how many observations a join that ignores arrival would have given a value that came too late.

    `memory` is that of `join`.
    """
    import polars as pl

    require_time("observations", observations, at)
    reports, questions = [], Questions(observations, at)
    for view in views:
        asked, count = questions.of(view), estimate.parts(view, observations, views, memory)
        behind = pl.concat([_behind(view, part, whole=count == 1) for part in asked.parts(count)])
        seconds = {"median_seconds": behind.median(), "most_seconds": behind.max()} if len(behind) else {}
        reports.append(Late(view=view.view.name, observations=len(behind), **seconds))  # type: ignore[arg-type]
    return reports


def _behind(view: JoinView, asked: Asked, *, whole: bool) -> pl.Series:
    """Return how many seconds too late the values came that a join without arrival would have taken."""
    import polars as pl

    frame = _collected(view, None if whole else asked.groups)
    known, careless = (_answers(frame, view, asked, arrival=arrival)[0] for arrival in (True, False))
    wrong = (careless != known) & (careless >= 0)
    arrived = frame.select(instants(pl.col(CREATED), frame.schema[CREATED], asked.unit).gather(careless[wrong]))
    return (arrived.to_series() - pl.Series(asked.at[wrong], dtype=pl.Int64)) / PER_SECOND[asked.unit]


class Questions:
    """The questions to each view; views with the same keys get the same ones."""

    def __init__(self, observations: pl.DataFrame, at: str) -> None:
        self.observations, self.at = observations, at
        self._made: dict[Any, Asked] = {}

    def of(self, view: JoinView) -> Asked:
        kept, subject = view.rows.collect_schema().to_frame(), f"rows of view {view.view.name!r}"
        require(subject, kept, [*view.keys, *view.fields])
        for column in (EVENT, CREATED):
            require_time(subject, kept, column)
        unit = finest([self.observations.schema[self.at], kept.schema[EVENT], kept.schema[CREATED]])
        same = (unit, *((key, column, str(kept.schema[key])) for key, column in view.keys.items()))
        if same not in self._made:
            self._made[same] = ask(self.observations, self.at, view.keys, kept.schema, unit, view=view.view.name)
        return self._made[same]


@dataclass(frozen=True)
class Part:
    """What one partition found: observations that got a row, the number of it in `rows`, and the groups that have rows."""

    place: Any
    row: Any
    rows: pl.DataFrame
    groups: Any


def answered(view: JoinView, asked: Asked, *, arrival: bool, whole: bool) -> Part:
    import numpy as np
    import polars as pl

    frame = _collected(view, None if whole else asked.groups)
    row, groups = _answers(frame, view, asked, arrival=arrival)
    hit = row >= 0
    place, row = asked.place[hit], row[hit]
    values = frame.select(*dict.fromkeys([*view.fields, EVENT, *([BATCH] if BATCH in frame.columns else [])]))
    if whole:
        return Part(place, row, values, groups)
    return Part(place, np.arange(len(row)), values.select(pl.all().gather(row)), groups)


def _collected(view: JoinView, groups: pl.DataFrame | None) -> pl.DataFrame:
    """Return the rows of `view`, all or those of some entities; of a lazy frame with `SOURCE`, and only what is needed."""
    import polars as pl

    rows, keys = view.rows, list(view.keys)
    if isinstance(rows, pl.LazyFrame):
        there = rows.collect_schema().names()
        wanted = dict.fromkeys([*keys, *view.fields, EVENT, CREATED, *([BATCH] if BATCH in there else [])])
        rows = rows.with_row_index(SOURCE).select(SOURCE, *wanted)
    if groups is not None:
        rows = rows.lazy().join(groups.lazy(), on=keys, how="semi", maintain_order="left")
    return rows.lazy().collect()


def _answers(frame: pl.DataFrame, view: JoinView, asked: Asked, *, arrival: bool) -> tuple[Any, Any]:
    """Return the row of `frame` that answers each question (-1: none), and the groups that have rows at all."""
    import numpy as np
    import polars as pl

    keys, none = list(view.keys), np.full(len(asked.place), -1, dtype=np.int64)
    times = [instants(pl.col(name), frame.schema[name], asked.unit).alias(name) for name in (EVENT, CREATED)]
    rows = frame.lazy().select(*keys, *times).with_row_index("_row")
    whole = (
        rows if not any(frame.get_column(name).null_count() for name in (*keys, EVENT, CREATED)) else rows.drop_nulls()
    )
    got = whole.join(asked.groups.lazy(), on=keys, how="inner").drop(keys).collect()
    there = got.get_column(GROUP).unique().to_numpy()
    if not got.height or not len(asked.place):
        return none, there
    number, group, event, created = (
        got.get_column(name).cast(pl.Int64).to_numpy() for name in ("_row", GROUP, EVENT, CREATED)
    )
    seen = np.maximum(event, created) if arrival else event
    useful = seen <= asked.at.max()
    if useful.mean() < 0.5:
        number, group, event, created = (each[useful] for each in (number, group, event, created))
        seen = np.maximum(event, created) if arrival else event
    if not len(number):
        return none, there
    scale = asof.scale_of(int(asked.groups.item(-1, GROUP)) + 1, event, seen)
    track = asof.track(group, event, created, seen, scale, lambda few: _rank(view, frame, number[few]))
    row = asof.search(track, asked.group, asked.at)
    return np.where(row >= 0, number[np.maximum(row, 0)], -1), there


def _rank(view: JoinView, frame: pl.DataFrame, rows: Any) -> Any:
    """Return what puts the `rows` of `frame` in order by their value hash (of all values, also of those not asked for)."""
    import numpy as np
    import polars as pl

    few = frame.select(pl.all().gather(rows))
    if isinstance(view.rows, pl.LazyFrame):
        source = few.get_column(SOURCE)
        found = view.rows.with_row_index(SOURCE).filter(pl.col(SOURCE).is_in(source.implode())).collect()
        few = few.select(SOURCE).join(found, on=SOURCE, how="left", maintain_order="left").drop(SOURCE)
    values = few.drop(*view.keys, EVENT, CREATED, BATCH, strict=False)
    batches = few.get_column(BATCH).to_list() if BATCH in few.columns else [""] * few.height
    order = [(value_hash(row), batch) for row, batch in zip(values.iter_rows(named=True), batches, strict=True)]
    rank = np.empty(len(order), dtype=np.int64)
    rank[sorted(range(len(order)), key=lambda place: (order[place][0], order[place][1] or ""))] = range(len(order))
    return rank


def gathered(at: pl.Series, view: JoinView, asked: Asked, parts: Sequence[Part]) -> tuple[pl.DataFrame, Coverage]:
    """Return the columns that `view` adds to the observations, and its coverage."""
    import numpy as np
    import polars as pl

    index, there, taken = np.full(asked.total, -1, dtype=np.int64), np.zeros(asked.groups.height, dtype=bool), 0
    for part in parts:
        there[part.groups] = True
        index[part.place] = part.row + taken
        taken += part.rows.height
    values = pl.concat([part.rows for part in parts])
    found = values.select(pl.all().gather(pl.Series(index).replace(-1, None)))
    age = at.dt.convert_time_zone("UTC") - found.get_column(EVENT).dt.convert_time_zone("UTC")
    columns = found.rename({name: f"{view.view.name}__{name}" for name in found.columns})
    expired = pl.repeat(False, len(at), eager=True)
    if view.view.ttl:
        expired = (age > clock.duration(view.view.ttl)).fill_null(False)
        columns = columns.select(pl.when(~expired).then(pl.col(name)).alias(name) for name in columns.columns)
    strangers = int((~there[asked.group]).sum())
    return columns, _coverage(view, age, expired, no_key=asked.total - len(asked.place), unknown=strangers)


def _coverage(view: JoinView, age: pl.Series, expired: pl.Series, *, no_key: int, unknown: int) -> Coverage:
    """Return the coverage from the age of each observation's value (null: none) and whether it is expired."""
    seconds = age.filter(age.is_not_null() & ~expired).dt.total_microseconds() / 1e6
    return Coverage(
        view=view.view.name,
        rows=len(age),
        found=len(seconds),
        expired=int(expired.sum()),
        no_key=no_key,
        unknown=unknown,
        early=age.null_count() - no_key - unknown,
        median_age_seconds=seconds.median(),  # type: ignore[arg-type]
        p95_age_seconds=seconds.quantile(0.95),
        most_age_seconds=seconds.max(),  # type: ignore[arg-type]
    )
