"""Point-in-time join: each observation with the values that were known at its time, once each, in the order given.

A value is known from the later of its event and its arrival. Of the values known, the newest by (event, created, value
hash) counts, even if it is empty or expired: an older one never stands in for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cellwork import clock
from cellwork.errors import BadInput
from cellwork.features.row import BATCH, CREATED, EVENT, require, require_time, value_hash
from cellwork.wire.datasets import Coverage
from cellwork.wire.features import View

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class JoinView:
    """What is joined of one view."""

    view: View
    keys: Mapping[str, str]
    """Join key -> column of the observations."""
    fields: Sequence[str]
    """Features to add, as columns ``view__feature``."""
    rows: pl.DataFrame
    """All feature rows of the view."""


def join(observations: pl.DataFrame, *, at: str, views: Sequence[JoinView]) -> tuple[pl.DataFrame, list[Coverage]]:
    """Return `observations` with the features of `views`, and how many of them found a value.

    Each view adds ``view__feature`` for its fields, ``view__event_timestamp`` and ``view___batch``. All are null where the
    entity is unknown, a key or the time is null, nothing was known yet, or the value is older than the view's ttl.

    Parameters
    ----------
    at : column of `observations`, a time with a zone.

    Raises
    ------
    BadInput
        A column is missing, a time has no zone, or a key is of another type than the view's.
    """
    require_time("observations", observations, at)
    joined, coverage = observations, []
    for view in views:
        found = _found(observations, at, view)
        coverage.append(_coverage(view, found))
        joined = joined.hstack(_columns(view, found))
    return joined, coverage


def newest_known(rows: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Return the rows that were the newest of their entity at some time, with the time `known` from which on they were, by `known`."""
    import polars as pl

    ranked = _without_ties(rows.drop_nulls([*keys, EVENT, CREATED]), keys)
    order = pl.struct(EVENT, CREATED).rank("dense").over(keys) if ranked.height else pl.lit(0)
    known = ranked.with_columns(pl.max_horizontal(EVENT, CREATED).alias("known"))
    known = known.sort("known", EVENT, CREATED).with_columns(order.alias("rank"))
    return known.filter(pl.col("rank") == pl.col("rank").cum_max().over(keys)).drop("rank")


def _without_ties(rows: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Return one row per entity, event and arrival: the one with the greatest value hash."""
    import polars as pl

    identity = [*keys, EVENT, CREATED]
    tied = rows.select(identity).is_duplicated()
    if not tied.any():
        return rows
    values = [name for name in rows.columns if name not in (*identity, BATCH)]
    hashes = [value_hash(row) for row in rows.filter(tied).select(values).iter_rows(named=True)]
    ties = rows.filter(tied).with_columns(pl.Series("hash", hashes, pl.Int64)).sort("hash", BATCH)
    return pl.concat([rows.filter(~tied), ties.unique(identity, keep="last", maintain_order=True).drop("hash")])


def _found(observations: pl.DataFrame, at: str, view: JoinView) -> pl.DataFrame:
    """Return, per observation, the fields, both times, `_batch` and whether the value is expired."""
    import polars as pl

    keys, fields = list(view.keys), list(view.fields)
    require("observations", observations, list(view.keys.values()))
    require(f"rows of view {view.view.name!r}", view.rows, [*keys, *fields, EVENT, CREATED, BATCH])
    rows = view.rows
    if not rows.height:
        rows = rows.with_columns(
            pl.lit(None, observations.schema[column]).alias(key) for key, column in view.keys.items()
        )
    values = newest_known(rows, keys).select(*keys, "known", *fields, EVENT, BATCH)
    asked = _asked(observations, at, view, rows)
    matched = (
        asked.drop_nulls()
        .sort("at")
        .join_asof(values, left_on="at", right_on="known", by=keys, strategy="backward", check_sortedness=False)
    )
    found = asked.select("row").join(matched.drop(keys), on="row", how="left", maintain_order="left")
    expired = pl.lit(False)
    if view.view.ttl:
        expired = (pl.col("at") - pl.col(EVENT) > clock.duration(view.view.ttl)).fill_null(False)
    return found.with_columns(expired.alias("expired"))


def _asked(observations: pl.DataFrame, at: str, view: JoinView, rows: pl.DataFrame) -> pl.DataFrame:
    """Return row number, time and keys of each observation, the keys in the types of the view's rows."""
    import polars as pl

    casts = []
    for key, column in view.keys.items():
        asked, kept = observations.schema[column], rows.schema[key]
        if asked != kept and not (asked.is_integer() and kept.is_integer()) and asked != pl.Null:
            raise BadInput(
                f"column {column!r} of the observations", asked, f"is not {kept}, as the key {key!r} of view {view.view.name!r} is",
                "cast one of them in the SQL of its rows",
            )  # fmt: skip
        casts.append(pl.col(column).cast(kept, strict=False).alias(key))
    time = pl.col(at).dt.convert_time_zone("UTC").dt.cast_time_unit("us").alias("at")
    return observations.select(pl.int_range(pl.len()).alias("row"), time, *casts)


def _columns(view: JoinView, found: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    fresh = pl.when(~pl.col("expired"))
    return found.select(
        fresh.then(pl.col(name)).alias(f"{view.view.name}__{name}") for name in (*view.fields, EVENT, BATCH)
    )


def _coverage(view: JoinView, found: pl.DataFrame) -> Coverage:
    import polars as pl

    there = found.filter(pl.col(EVENT).is_not_null() & ~pl.col("expired"))
    age = (
        there.select((pl.col("at") - pl.col(EVENT)).dt.total_microseconds().median() / 1e6).item()
        if there.height
        else None
    )
    return Coverage(
        view=view.view.name,
        rows=found.height,
        found=there.height,
        expired=int(found.get_column("expired").sum()),
        median_age_seconds=age,
    )
