"""Features that nearly repeat others: by definition, or by their values on one sample of entities.

The sample is chosen by a hash of the entity's keys, so that every view, in every project, is judged on the same entities. Values
meet as they would in a training set: of the other feature the one that held at the time of ours. Two features are twins if
they are defined alike, if at least 95 % of the values are equal, or if their order is (rank correlation 0.98 or more), however scaled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cellwork.features.row import EVENT
from cellwork.wire.features import Definitions, Rolling, View

if TYPE_CHECKING:
    import polars as pl

EQUAL, ALIKE = 0.95, 0.98
FEWEST = 30
"""Pairs of values below which nothing is said."""
ENTITIES, ROWS = 500, 4000
"""Of a sample."""


def defined_alike(known: Definitions, view: View, other: Definitions, twin: View) -> list[tuple[str, str]]:
    """Return pairs of fields (of `view`, of `twin`) that say the same of the same rows under other names."""
    one, two = _source(known, view), _source(other, twin)
    if one is None or one != two:
        return []
    return [(f.name, g.name) for f in view.fields for g in twin.fields if _rule(view, f.name) == _rule(twin, g.name)]


def _source(known: Definitions, view: View) -> Any:
    """Return what the rows of `view` are made from, without names that mean nothing to the values."""
    prepared = next((p for p in known.prepared if p.name == view.pipeline.rows), None)
    if prepared is None:
        return None
    keys = [key for entity in known.entities if entity.name in view.entities for key in entity.join_keys]
    sql = re.sub(r"\s+", " ", prepared.sql).strip().rstrip(";").lower()
    pipeline = view.pipeline
    grid = (pipeline.window, pipeline.every) if isinstance(pipeline, Rolling) else ()
    return sorted(prepared.sources), sql, sorted(keys), pipeline.event, pipeline.known, grid


def _rule(view: View, field: str) -> Any:
    if isinstance(view.pipeline, Rolling):
        aggregate = view.pipeline.aggregates[field]
        return aggregate.function, aggregate.column
    return field


def sample(rows: pl.LazyFrame, keys: Sequence[str], fields: Sequence[str]) -> pl.DataFrame:
    """Return rows of `ENTITIES` entities, the ones with the smallest hashes: `_entity`, the event time and `fields`."""
    import polars as pl

    from cellwork.content import hash_texts

    named = [entity(keys).alias("_entity"), EVENT, *fields]
    entities = rows.select(entity(keys).alias("_entity")).unique().collect().get_column("_entity").drop_nulls()
    chosen = entities.gather(pl.Series(hash_texts(entities)).arg_sort().head(ENTITIES))
    found = rows.select(named).filter(pl.col("_entity").is_in(chosen.implode())).collect()
    if found.height > ROWS:
        found = found.sort("_entity", EVENT).gather_every(found.height // ROWS + 1)
    return found


def entity(keys: Sequence[str]) -> pl.Expr:
    """Return the text that stands for an entity, whatever its keys are called and whether they are numbers or text."""
    import polars as pl

    return pl.concat_str([pl.col(key).cast(pl.String) for key in keys], separator="\x1f")


def compare(
    ours: pl.DataFrame, theirs: pl.DataFrame, fields: Sequence[str], others: Sequence[str]
) -> list[tuple[str, str, str, float]]:
    """Return (our field, their field, reason, strength) of each pair that is nearly the same on the samples."""
    import polars as pl

    renamed = theirs.rename({name: f"their {name}" for name in others}).sort(EVENT)
    joined = ours.sort(EVENT).join_asof(renamed, on=EVENT, by="_entity", check_sortedness=False)
    found = []
    for field in fields:
        pairs = [
            (other, _alike(joined.select(pl.col(field).alias("a"), pl.col(f"their {other}").alias("b"))))
            for other in others
        ]
        found += [(field, other, *verdict) for other, verdict in pairs if verdict]
    return found


def _alike(pairs: pl.DataFrame) -> tuple[str, float] | None:
    import polars as pl

    there = pairs.drop_nulls()
    numbers = all(dtype.is_numeric() or dtype == pl.Boolean for dtype in there.dtypes)
    if there.height < FEWEST or (not numbers and there.dtypes[0] != there.dtypes[1]):
        return None
    if there["a"].n_unique() < 2 or there["b"].n_unique() < 2:
        return None  # a constant is like every constant
    if numbers:
        there = there.cast(pl.Float64)
        same = (pl.col("a") - pl.col("b")).abs() <= 1e-6 * pl.max_horizontal(
            pl.col("a").abs(), pl.col("b").abs(), 1e-12
        )
    else:
        same = pl.col("a") == pl.col("b")
    equal = float(there.select(same.mean()).item())
    if equal >= EQUAL:
        return f"{equal:.0%} of {there.height:,} values are equal", equal
    order = abs(float(there.select(pl.corr("a", "b", method="spearman")).item())) if numbers else 0.0
    return (f"rank correlation {order:.3f} over {there.height:,} values", order) if order >= ALIKE else None
