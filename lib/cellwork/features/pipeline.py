"""Pipelines: from prepared rows to feature rows. `Select` is a row each; `Rolling` is an aggregate on a grid of times.

Rules of `Rolling`. A source row counts at grid time g if its event lies in (g - window, g] and it is known by g: it enters at
the first grid time that is neither before its event nor before it was known, and leaves at the first one with
g - window >= event. Every batch has a step (after, until]: the grid times whose rows it causes. `until` is the batch's
newest event, but no later than its arrival (so that one wrong date does not close the future), and `after` is the
furthest `until` of the batches before it. Rows that are written are never changed: a row that comes with a later batch enters no
earlier than at the first grid time after the `until` that held then. So the rows of many batches at once and those of batch
after batch are the same. Only a correction (a batch in place of another) writes new rows for old grid times, and these
are created when the correction arrived.

Sums are taken over whole numbers (of 2**-40 for floats), so they do not depend on the order or the history of the rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cellwork import clock
from cellwork.errors import BadInput
from cellwork.features.rows import BATCH, CREATED, EVENT, require, require_time, shaped
from cellwork.wire.features import Rolling, Select, View

if TYPE_CHECKING:
    import polars as pl

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SCALE = 2.0**40
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
    """Return the feature rows that a corrected batch adds: what it changed or added, and empty values for what it took away.

    All are created when the correction `arrived`; before that the old values remain what was known.

    Parameters
    ----------
    old, new : prepared rows of the batch that is corrected and of the one in its place.
    """
    import polars as pl

    before, now = select_rows(view, keys, old), select_rows(view, keys, new)
    features = [field.name for field in view.fields]
    changed = now.join(before, on=[*keys, EVENT, CREATED, *features], how="anti", nulls_equal=True)
    gone = before.join(now, on=[*keys, EVENT], how="anti").with_columns(
        pl.lit(None, dtype=before.schema[name]).alias(name) for name in features
    )
    stamp = pl.lit(arrived).dt.cast_time_unit("us")
    return pl.concat([changed, gone]).with_columns(pl.max_horizontal(CREATED, stamp), pl.lit(batch).alias(BATCH))


def step_until(view: View, rows: pl.DataFrame, arrived: datetime, after: datetime | None) -> datetime | None:
    """Return how far the step of a batch goes that brings `rows` and `arrived` then, if the ones before went to `after`."""
    assert isinstance(view.pipeline, Rolling)
    _check_times(view, rows)
    newest: datetime | None = rows.get_column(view.pipeline.event).max()  # type: ignore[assignment]
    ends = [end for end in (after, min(newest, arrived) if newest else None) if end is not None]
    return max(ends, default=None)


def rolling_rows(
    view: View, keys: Sequence[str], rows: pl.DataFrame, steps: Sequence[Step], *, emit: Collection[str] | None = None
) -> pl.DataFrame:
    """Return the feature rows of the steps of the batches `emit` (default all).

    A row is there for each grid time at which a value of the key changes, and for the first grid time of a step if the key has
    rows in the window; it is created at its grid time.

    Parameters
    ----------
    rows : prepared rows with `_batch`, of all batches whose rows may still count in the steps asked for.
    steps : a step for each batch of `rows`, in order.
    """
    asked = [step for step in steps if emit is None or step.batch in emit]
    totals = _totals(view, keys, rows, steps)
    points = _first_points(totals, keys, asked, _every(view), values(view))
    return _finish(view, keys, _changes(totals, asked), points)


def corrected_rolling_rows(
    view: View,
    keys: Sequence[str],
    old: tuple[pl.DataFrame, Sequence[Step]],
    new: tuple[pl.DataFrame, Sequence[Step]],
    *,
    arrived: datetime,
    batch: str,
) -> pl.DataFrame:
    """Return rows for the grid times at which `new` differs from `old`, and the first after each such stretch.

    They are created when the correction `arrived`, and caused by `batch`.

    Parameters
    ----------
    old, new : rows and steps (as in `rolling_rows`) before and after the correction; neither goes further than the other.
    """
    import polars as pl

    columns = values(view)
    ends = [step.until for step in (*old[1], *new[1]) if step.until is not None]
    before, now = _totals(view, keys, *old), _totals(view, keys, *new)
    grid = pl.concat([before, now]).select(*keys, "g").unique()
    if ends:
        grid = grid.filter(pl.col("g") <= _micros(max(ends)))
    both = _at(grid, now, keys, columns).join(
        _at(grid, before, keys, columns), on=[*keys, "g"], suffix="_before", nulls_equal=True
    )
    differs = pl.any_horizontal(pl.col(name) != pl.col(f"{name}_before") for name in columns)
    marked = both.sort("g").with_columns(differs.alias("differs"))
    stretch = pl.col("differs") | pl.col("differs").shift(1, fill_value=False).over(keys)
    rows = marked.filter(stretch).select(*keys, "g", *columns).with_columns(pl.lit(batch).alias(BATCH))
    stamp = pl.lit(arrived).dt.cast_time_unit("us")
    return _finish(view, keys, rows).with_columns(pl.max_horizontal(CREATED, stamp))


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


def _micros(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1)


def _check_times(view: View, rows: pl.DataFrame) -> None:
    for column in (view.pipeline.event, view.pipeline.known):
        require_time(f"rows {view.pipeline.rows!r} of view {view.name!r}", rows, column)


def _totals(view: View, keys: Sequence[str], rows: pl.DataFrame, steps: Sequence[Step]) -> pl.DataFrame:
    """Return keys, g and the running totals from grid time g on, for each g at which one of them changes."""
    import polars as pl

    columns = values(view)
    spans = _spans(view, keys, rows, steps)
    signed = [
        spans.select(*keys, pl.col(side).alias("g"), *(sign * pl.col(name) for name in columns))
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
    closed = {step.batch: _micros(step.after) // every * every + every if step.after else -NEVER for step in steps}
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
        if not (dtype.is_numeric() or dtype == pl.Boolean):
            raise BadInput(subject, column, f"is of type {dtype}, which has no sum", "use count, or a numeric column")
        value = pl.col(column)
        if dtype.is_float():
            largest = rows.get_column(column).cast(pl.Float64).replace([float("inf"), -float("inf")], None).fill_nan(None)
            if (largest.abs().max() or 0.0) > LARGEST:  # type: ignore[operator]
                raise BadInput(subject, column, f"has a value beyond {LARGEST:.0e}", "scale the column")
            finite = pl.when(value.is_finite()).then(value.cast(pl.Float64))
            added.append((finite * SCALE).round().cast(pl.Int128).fill_null(0).alias(f"sum:{column}"))
            added.append(finite.is_not_null().cast(pl.Int128).alias(f"values:{column}"))
        else:
            added.append(value.cast(pl.Int128).fill_null(0).alias(f"sum:{column}"))
            added.append(value.is_not_null().cast(pl.Int128).alias(f"values:{column}"))
    return added
