"""Which views may be made from sealed values: none by which one of them could be told.

An endpoint needs the features of now, so the newest value of an entity is readable online even where a sealed batch causes it. Hence

- a Select view shows nothing that depends on a sealed column: neither a feature, nor a key, nor a time, nor by its presence. By its
  entity each row's value could be asked for. What depends on what is read from DuckDB's own plan of the statement.
- a Rolling view may aggregate sealed columns (delays that are known by then), but not by what identifies a row: its keys may not be
  made from all key columns of the data set, nor from the observations' id, and rows of a sealed batch share them, two to a key on average.

A newest aggregate still tells something of the few rows of its last window: that is the price of serving in a sealed period,
and the reason why the seal is no protection of single persons. `apply` asks this of the declared seals; a pipeline run of a
sealed batch asks it again, since a seal may be declared later.
"""

from __future__ import annotations

import polars as pl

from cellwork.data import prepare, schema
from cellwork.errors import Refused
from cellwork.features import references
from cellwork.wire.batches import RawDataset
from cellwork.wire.features import Definitions, Prepared, Rolling, View
from cellwork_hub.platform import batches, raw
from cellwork_hub.platform.state import State

LEAST_ROWS_A_KEY = 2.0
LEAST_ROWS = 20
"""A batch of fewer rows tells nothing about how its keys are shared."""


def check(state: State, definitions: Definitions, view: View) -> None:
    """Raise Refused if `view` could tell a sealed value; where a source has no batch yet, its first run asks again."""
    prepared = references.prepared_of(definitions, view.pipeline.rows)
    declared, columns = raw.declaration(state, definitions.project, prepared.sources[0])
    if declared is None or not declared.seals or not columns:
        return
    if isinstance(view.pipeline, Rolling):
        _check_keys(state, definitions, view, declared)
        return
    kept = {column for seal in declared.seals for column in seal.columns}
    shown = [f.name for f in view.fields] + [*references.join_keys(definitions, view)]
    for name in dict.fromkeys([*shown, view.pipeline.event, view.pipeline.known]):
        for column in sorted(kept & _made_from(state, definitions.project, prepared, [name])):
            raise Refused(
                f"column {name!r} of view {view.name!r}", column,
                f"is what it depends on in {declared.name!r}, and is sealed ({_holdouts(declared, column)}): by its entity each value could be read",
                "leave it out, or aggregate what is known by then (Rolling)",
            )  # fmt: skip


def check_rows(definitions: Definitions, view: View, rows: pl.DataFrame, batch: str) -> None:
    """Raise Refused if the keys of a Rolling view tell the `rows` of a sealed batch apart."""
    keys = references.join_keys(definitions, view)
    each = rows.height / max(1, rows.select(pl.struct(keys).n_unique()).item())
    if isinstance(view.pipeline, Rolling) and rows.height >= LEAST_ROWS and each < LEAST_ROWS_A_KEY:
        raise Refused(
            f"keys of view {view.name!r}", ", ".join(keys), f"have {each:.1f} rows each in sealed batch {batch}: an aggregate would be one row's value",
            "aggregate by something that many rows share",
        )  # fmt: skip


def _check_keys(state: State, definitions: Definitions, view: View, declared: RawDataset) -> None:
    prepared = references.prepared_of(definitions, view.pipeline.rows)

    def made_from(*names: str) -> set[str]:
        return _made_from(state, definitions.project, prepared, list(names))

    keys = references.join_keys(definitions, view)
    own, presence = made_from(*keys), made_from()
    ids = [about.id for about in definitions.observations if about.rows == view.pipeline.rows and about.id]
    for identity in [set(declared.key), *map(made_from, ids)]:
        if identity and identity <= own and not identity <= presence:
            raise Refused(
                f"keys of view {view.name!r}", ", ".join(keys),
                f"identify the rows of {declared.name!r}, which has sealed columns: an aggregate would be one row's value",
                "aggregate by something that many rows share",
            )  # fmt: skip


def _made_from(state: State, project: str, prepared: Prepared, names: list[str]) -> set[str]:
    """Return the columns of the first source on which these columns of the prepared rows depend; without names, those that choose the rows."""
    columns = {source: batches.pinned(state, project, source) for source in prepared.sources}
    if not all(columns.values()):
        return set()
    empty = {source: schema.complete(pl.DataFrame(), known) for source, known in columns.items()}
    plain = {source: frame.select(c for c in frame.columns if not c.startswith("_")) for source, frame in empty.items()}
    return prepare.depends(prepared, plain.pop(prepared.sources[0]), plain, names)


def _holdouts(declared: RawDataset, column: str) -> str:
    return ", ".join(sorted({f"holdout {seal.holdout!r}" for seal in declared.seals if column in seal.columns}))
