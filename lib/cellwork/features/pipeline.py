"""Pipelines: from prepared rows to feature rows. `Select` is a row each; `Rolling` is an aggregate on a grid of times.

Rules of `Rolling`. A source row counts at grid time g if its event lies in (g - window, g] and it is known by g: it enters at
the first grid time that is neither before its event nor before it was known, and leaves at the first one with
g - window >= event. Every batch has a step (after, until]: the grid times whose rows it causes. `until` is the greatest value of
`Rolling.until` in the batch, but no later than its arrival (so that one wrong date does not close the future), and `after` is the
furthest `until` of the batches before it. What becomes known after `until` enters in the step of the next batch. Rows that
are written are never changed: a row that comes with a later batch enters no earlier than at the first grid time after the
`until` that held then. So the rows of many batches at once and those of batch
after batch are the same. Only a correction (a batch in place of another) writes new rows for old grid times, and these
are created when the correction arrived.

Sums are taken over whole numbers (of 2**-40 for floats), so they do not depend on the order or the history of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cellwork import clock
from cellwork.errors import BadInput
from cellwork.features.row import BATCH, CREATED, EVENT, require, require_time, schema, shaped, value_hash
from cellwork.wire.features import Rolling, Select, View

if TYPE_CHECKING:
    import polars as pl

SCALE = 2**40
LARGEST = 2.0**80
NEVER = 2**62


@dataclass(frozen=True)
class Step:
    """The grid times in (after, until] belong to `batch`; None is before all times."""

    batch: str
    after: datetime | None
    until: datetime | None


def select_rows(view: View, keys: Sequence[str], rows: pl.DataFrame) -> pl.DataFrame:
    """Return one feature row per prepared row that has keys, event and arrival.

    Parameters
    ----------
    keys : join keys of the view; columns of `rows`.
    rows : prepared rows with `_batch`.
    """
    import polars as pl

    assert isinstance(view.pipeline, Select)
    _check_times(view, rows)
    named = rows.with_columns(pl.col(view.pipeline.event).alias(EVENT), pl.col(view.pipeline.known).alias(CREATED))
    return shaped(view, keys, named)


def corrected_select_rows(
    view: View, keys: Sequence[str], old: pl.DataFrame, new: pl.DataFrame, *, arrived: datetime, batch: str
) -> pl.DataFrame:
    """Return the feature rows that a corrected batch adds: the newest values that it changed or added, and empty ones for what it took away.

    With them the newest value of an entity and event is that of the corrected batch alone. All are created when the correction
    `arrived`, or right after the value that they replace if that is known later; before that the old values remain what was known.

    Parameters
    ----------
    old, new : prepared rows of the batch that is corrected and of the one in its place.
    """
    import polars as pl

    place, features = [*keys, EVENT], [field.name for field in view.fields]
    before, now = (_newest(select_rows(view, keys, rows), place, features) for rows in (old, new))
    changed = now.join(before, on=[*place, *features], how="anti", nulls_equal=True)
    gone = before.join(now, on=place, how="anti").with_columns(
        pl.lit(None, dtype=before.schema[name]).alias(name) for name in features
    )
    replaced = before.select(*place, (pl.col(CREATED) + pl.duration(microseconds=1)).alias("_after"))
    stamp = pl.lit(arrived).dt.cast_time_unit("us")
    added = pl.concat([changed, gone]).join(replaced, on=place, how="left", maintain_order="left")
    created = pl.max_horizontal(CREATED, stamp, "_after").alias(CREATED)
    return added.with_columns(created, pl.lit(batch).alias(BATCH)).drop("_after")


def _newest(rows: pl.DataFrame, place: Sequence[str], features: Sequence[str]) -> pl.DataFrame:
    """Return of each `place` (keys and event) the row that counts: the last by (created, value hash)."""
    import polars as pl

    newest = rows.filter(pl.col(CREATED) == pl.col(CREATED).max().over(place))
    tied = pl.struct(place).is_duplicated()
    several = newest.filter(tied)
    hashes = pl.Series([value_hash(row) for row in several.select(features).iter_rows(named=True)], dtype=pl.Int64)
    return pl.concat([newest.filter(~tied), several[hashes.arg_sort()].unique(place, keep="last", maintain_order=True)])


def step_until(
    view: View, rows: pl.DataFrame, arrived: datetime, after: datetime | None, *, column: str = ""
) -> datetime | None:
    """Return how far the step of a batch goes.

    Parameters
    ----------
    rows : prepared rows of the batch.
    arrived : when the batch came.
    after : how far the batches before it went.
    column : `Rolling.until` or what stands in for it; default the event.
    """
    assert isinstance(view.pipeline, Rolling)
    column = column or view.pipeline.event
    require_time(f"rows {view.pipeline.rows!r} of view {view.name!r}", rows, column)
    newest: datetime | None = rows.get_column(column).max()  # type: ignore[assignment]
    ends = [end for end in (after, min(newest, arrived) if newest else None) if end is not None]
    return max(ends, default=None)


def rolling_rows(
    view: View,
    keys: Sequence[str],
    rows: pl.DataFrame,
    steps: Sequence[Step],
    *,
    emit: Sequence[Step] | None = None,
) -> pl.DataFrame:
    """Return the feature rows of the steps `emit` (default all).

    A row is there for each grid time at which a value of the key changes, and for the first grid time of a step if the key has
    rows in the window; it is created at its grid time.

    Parameters
    ----------
    rows : prepared rows with `_batch`, of all batches whose rows may still count in `emit`.
    steps : the step of each batch of `rows`, in order.
    """
    import polars as pl

    totals = _totals(view, keys, rows, steps)
    spans = _intervals(steps if emit is None else emit, _every(view))
    points = pl.concat([totals, _at(_first_points(totals, keys, spans), totals, keys).filter(pl.col("rows") > 0)])
    owned = points.unique([*keys, "g"]).sort("g").join_asof(spans, left_on="g", right_on="last", strategy="forward")
    return _finish(view, keys, owned.filter(pl.col("g") > pl.col("after")))


def corrected_rolling_rows(
    view: View,
    keys: Sequence[str],
    rows: pl.DataFrame,
    steps: Sequence[Step],
    written: pl.DataFrame,
    *,
    corrected: Step,
    arrived: datetime,
) -> pl.DataFrame:
    """Return rows for the written grid times whose values a correction changes; they are created when it `arrived`.

    Parameters
    ----------
    rows, steps : as in `rolling_rows`, with the correction in the place of the batch that it corrects.
    written : all feature rows of the view so far.
    corrected : the step of the correction: nothing at or before its `after` can change.
    """
    import polars as pl

    features = [field.name for field in view.fields]
    ends = [step.until for step in steps if step.until is not None]
    totals = _totals(view, keys, rows, steps)
    there = written.select(*keys, pl.col(EVENT).to_physical().alias("g"))
    grid = pl.concat([totals.select(*keys, "g"), there]).unique()
    grid = grid.filter(pl.col("g") <= (clock.micros(max(ends)) if ends else -NEVER))
    if corrected.after is not None:
        grid = grid.filter(pl.col("g") > clock.micros(corrected.after))
    now = _finish(view, keys, _at(grid, totals, keys).with_columns(pl.lit(corrected.batch).alias(BATCH)))
    before = written.sort(EVENT, CREATED).select(
        *(pl.col(key).cast(now.schema[key]) for key in keys),
        EVENT,
        *(pl.col(name).alias(f"{name}_before") for name in features),
    )
    both = now.sort(EVENT).join_asof(before, on=EVENT, by=list(keys), strategy="backward", check_sortedness=False)
    differs = pl.any_horizontal(pl.col(name).ne_missing(pl.col(f"{name}_before")) for name in features)
    marked = both.with_columns(differs.alias("differs"))
    stretch = pl.col("differs") | pl.col("differs").shift(1, fill_value=False).over(keys)
    stamp = pl.lit(arrived).dt.cast_time_unit("us").dt.convert_time_zone("UTC")
    return marked.filter(stretch).select(now.columns).with_columns(pl.max_horizontal(CREATED, stamp))


def values(view: View) -> list[str]:
    """Return the running totals that the aggregates of `view` need: rows, and per column its sum and its values that are not null."""
    assert isinstance(view.pipeline, Rolling)
    columns = sorted({a.column for a in view.pipeline.aggregates.values() if a.column})
    return ["rows", *(f"{kind}:{column}" for column in columns for kind in ("sum", "values"))]


def reach(view: View) -> timedelta:
    """Return how long after its event a source row may still change a value."""
    assert isinstance(view.pipeline, Rolling)
    return clock.duration(view.pipeline.window) + clock.duration(view.pipeline.every)


def _every(view: View) -> int:
    assert isinstance(view.pipeline, Rolling)
    return round(clock.duration(view.pipeline.every).total_seconds() * 1_000_000)


def _check_times(view: View, rows: pl.DataFrame) -> None:
    for column in (view.pipeline.event, view.pipeline.known):
        require_time(f"rows {view.pipeline.rows!r} of view {view.name!r}", rows, column)


def _totals(view: View, keys: Sequence[str], rows: pl.DataFrame, steps: Sequence[Step]) -> pl.DataFrame:
    """Return keys, g and the running totals from grid time g on, for each g at which one of them changes."""
    import polars as pl

    columns = values(view)
    spans = _spans(view, keys, rows, steps)
    signed = [
        spans.select(*keys, pl.col(side).alias("g"), pl.col(columns) * sign)
        for side, sign in (("enter", 1), ("leave", -1))
    ]
    deltas = pl.concat(signed).group_by([*keys, "g"]).agg(pl.col(columns).sum())
    changed = deltas.filter(pl.any_horizontal(pl.col(name) != 0 for name in columns)).sort([*keys, "g"])
    return changed.with_columns(pl.col(columns).cum_sum().over(keys))


def _spans(view: View, keys: Sequence[str], rows: pl.DataFrame, steps: Sequence[Step]) -> pl.DataFrame:
    """Return the source rows that ever count: keys, enter, leave (grid times in microseconds) and what each adds."""
    import polars as pl

    pipeline = view.pipeline
    assert isinstance(pipeline, Rolling)
    _check_times(view, rows)
    require(f"rows {pipeline.rows!r} of view {view.name!r}", rows, [*keys, BATCH])
    every = _every(view)
    window = round(clock.duration(pipeline.window).total_seconds() * 1_000_000)
    closed: dict[str, int] = {}
    for step in steps:
        closed.setdefault(step.batch, clock.micros(step.after) // every * every + every if step.after else -NEVER)
    event, known = (pl.col(name).dt.cast_time_unit("us").to_physical() for name in (pipeline.event, pipeline.known))
    return (
        rows.drop_nulls([*keys, pipeline.event, pipeline.known])
        .select(
            *keys,
            pl.max_horizontal(
                -(-pl.max_horizontal(event, known) // every) * every,
                pl.col(BATCH).replace_strict(closed, return_dtype=pl.Int64),
            ).alias("enter"),
            (-(-(event + window) // every) * every).alias("leave"),
            *_added(view, rows),
        )
        .filter(pl.col("enter") < pl.col("leave"))
    )


def _added(view: View, rows: pl.DataFrame) -> list[pl.Expr]:
    """Return what a row adds to each total; a value that is null or not finite adds nothing."""
    import polars as pl

    assert isinstance(view.pipeline, Rolling)
    added = [pl.lit(1, dtype=pl.Int128).alias("rows")]
    subject = f"rows {view.pipeline.rows!r} of view {view.name!r}"
    for column in sorted({a.column for a in view.pipeline.aggregates.values() if a.column}):
        require(subject, rows, [column])
        dtype = rows.schema[column]
        if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)):
            raise BadInput(subject, column, f"is of type {dtype}, which has no sum", "use count, or a numeric column")
        value = pl.col(column) if dtype != pl.Null else pl.col(column).cast(pl.Float64)  # no value has come yet
        if dtype.is_float():
            value = pl.when(value.is_finite()).then(value.cast(pl.Float64))
            if (rows.select(value.abs().max()).item() or 0.0) > LARGEST:
                raise BadInput(subject, column, f"has a value beyond {LARGEST:.0e}", "scale the column")
            scaled = (value * SCALE).round().cast(pl.Int128)
        else:
            scaled = value.cast(pl.Int128) * SCALE
        added.append(scaled.fill_null(0).alias(f"sum:{column}"))
        added.append(value.is_not_null().cast(pl.Int128).alias(f"values:{column}"))
    return added


def _intervals(steps: Sequence[Step], every: int) -> pl.DataFrame:
    """Return the steps that hold a grid time, in order: `_batch`, after, first and last grid time (microseconds)."""
    import polars as pl

    spans = []
    for step in steps:
        if step.until is not None:
            after = clock.micros(step.after) if step.after else -NEVER
            first, last = (after // every + 1) * every, clock.micros(step.until) // every * every
            if first <= last:
                spans.append((step.batch, after, first, last))
    types = {BATCH: pl.String, "after": pl.Int64, "first": pl.Int64, "last": pl.Int64}
    return pl.DataFrame(spans, types, orient="row").sort("last")


def _first_points(totals: pl.DataFrame, keys: Sequence[str], spans: pl.DataFrame) -> pl.DataFrame:
    """Return every key at the first grid time of every step that goes on from another."""
    import polars as pl

    firsts = spans.filter(pl.col("after") > -NEVER).select(pl.col("first").alias("g"))
    return totals.select(keys).unique().join(firsts, how="cross")


def _at(grid: pl.DataFrame, totals: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Return the totals that hold at each key and grid time of `grid`; 0 before the first."""
    import polars as pl

    columns = [name for name in totals.columns if name not in (*keys, "g")]
    found = grid.sort("g").join_asof(
        totals.sort("g"), on="g", by=list(keys), strategy="backward", check_sortedness=False
    )
    return found.with_columns(pl.col(columns).fill_null(0)).select(totals.columns)


def _finish(view: View, keys: Sequence[str], points: pl.DataFrame) -> pl.DataFrame:
    """Return feature rows from totals at grid times: the mean of no values is null, their sum 0."""
    import polars as pl

    assert isinstance(view.pipeline, Rolling)
    types = schema(view)
    features = []
    for name, aggregate in view.pipeline.aggregates.items():
        if name not in types:
            continue
        total, counted = pl.col(f"sum:{aggregate.column}"), pl.col(f"values:{aggregate.column}")
        if aggregate.function == "count":
            value = counted if aggregate.column else pl.col("rows")
        elif aggregate.function == "sum":
            value = total // SCALE if types[name].is_integer() else total.cast(pl.Float64) / float(SCALE)
        else:
            value = pl.when(counted > 0).then(total.cast(pl.Float64) / counted.cast(pl.Float64) / float(SCALE))
        features.append(value.cast(types[name]).alias(name))
    times = [pl.col("g").cast(pl.Datetime("us", "UTC")).alias(name) for name in (EVENT, CREATED)]
    return shaped(view, keys, points.select(*keys, *features, *times, BATCH))
