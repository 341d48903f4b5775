"""Observations with their features: what a request means under the definitions of now, and the frame it gives.

Every observation comes out exactly once, in the order of its batch. The columns are: the id, the time, the keys, the
inputs, `view__feature` of each feature, `view__event_timestamp` and `view___batch` of each view (the time and the raw batch
of the value that was found: lineage), the label and when it was known, and `_batch`, the observation's own raw batch. A
label that is sealed, or was never known, is null; with `sealed=True`, for the evaluator alone, the sealed values are there.
Of a label by name these are the ones that are sealed for the same holdout, and nothing else: what can be read is no secret.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import msgspec
import polars as pl

from cellwork.errors import BadInput, Refused, near_miss
from cellwork.features import history, references
from cellwork.wire.batches import Batch
from cellwork.wire.datasets import Coverage
from cellwork.wire.features import Definitions, Label, Observations, View
from cellwork_hub.platform import batches, feature_definitions, feature_tables, joining
from cellwork_hub.platform.state import State


@dataclass(frozen=True)
class Plan:
    """What a request means under the definitions that hold now."""

    definitions: Definitions
    revision: int
    observations: Observations
    views: list[tuple[View, list[str]]]
    """Views with the features asked of each, in the order they were first named."""
    batches: list[Batch]
    """Batches whose observations are taken."""
    others: list[Batch]
    """Batches of the other sources that the observations are prepared with, and of those of the label."""
    label: Label | None = None
    """In place of the observations' own."""


def plan(state: State, project: str, observations: str, wanted: Sequence[str]) -> Plan:
    """Return the plan of all current observations.

    Raises
    ------
    BadInput
        A name is unknown (with the near miss), or a view needs a key that the observations do not have.
    """
    definitions, revision = feature_definitions.definitions(state, project)
    known = {each.name: each for each in definitions.observations}
    if observations not in known:
        raise BadInput(
            f"observations of project {project!r}", observations, "are not defined", near_miss(observations, known)
        )
    found, views = known[observations], references.chosen(definitions, wanted)
    for view, _ in views:
        for key in references.join_keys(definitions, view):
            if key not in found.keys:
                verdict = f"is needed by view {view.name!r} and not among the keys of observations {observations!r}"
                raise BadInput("join key", key, verdict, near_miss(key, found.keys))
    first, *rest = references.prepared_of(definitions, found.rows).sources
    others = [batch for source in rest for batch in batches.current(state, project, source)]
    return Plan(definitions, revision, found, views, batches.current(state, project, first), others)


def labelled(state: State, made: Plan, name: str) -> Plan:
    """Return the plan with the label `name` in place of the observations' own.

    Raises
    ------
    BadInput
        It is not defined (with the near miss), or bears the name of a column that a model gets.
    """
    label, about = references.label_of(made.definitions, name), made.observations
    if name in (about.id, about.at, *about.keys.values(), *about.inputs):
        raise BadInput(
            f"label of observations {about.name!r}",
            name,
            "is the name of one of their columns too",
            "rename one of both",
        )
    sources = references.prepared_of(made.definitions, label.rows).sources
    more = [batch for source in sources for batch in batches.current(state, made.definitions.project, source)]
    there = {batch.id for batch in [*made.batches, *made.others]}
    about = msgspec.structs.replace(about, label=name, label_known=f"{name}_known")
    others = [*made.others, *(batch for batch in more if batch.id not in there)]
    return replace(made, observations=about, others=others, label=label)


def joined(
    state: State, made: Plan, rows: pl.DataFrame, *, sealed: bool = False, memory: int | None = None,
    progress: Callable[[history.Progress], None] | None = None,
) -> tuple[pl.DataFrame, list[Coverage]]:  # fmt: skip
    """Return the observations `rows` with their features, in the columns of a dataset, and the coverage of each view.

    `memory` and `progress` are those of `history.join`; `memory` has no effect on sealed rows, which are few.
    """
    views = join_views(state, made, sealed=sealed, lazy=joining.lazily(state, memory))
    frame, coverage = joining.join(state, rows, at=made.observations.at, views=views, memory=memory, progress=progress)
    if frame.height != rows.height:
        raise AssertionError(f"the join made {frame.height} rows of {rows.height}")
    return frame.select(columns(made)), coverage


def join_views(state: State, made: Plan, *, sealed: bool = False, lazy: bool = False) -> list[history.JoinView]:
    """Return the views of the plan as they are joined; `lazy` leaves their open rows unread."""
    definitions = made.definitions

    def read(view: View) -> pl.DataFrame | pl.LazyFrame:
        if lazy and not sealed:
            return feature_tables.view_scan(state, definitions.project, view)
        return feature_tables.view_rows(state, definitions.project, view, sealed=sealed)

    return [
        history.JoinView(
            view=view,
            keys={key: made.observations.keys[key] for key in references.join_keys(definitions, view)},
            fields=fields,
            rows=read(view),
        )
        for view, fields in made.views
    ]


def columns(made: Plan) -> list[str]:
    about = made.observations
    found = [f"{view.name}__{column}" for view, fields in made.views for column in fields]
    traces = [f"{view.name}__{column}" for view, _ in made.views for column in ("event_timestamp", "_batch")]
    truth = [column for column in (about.label, about.label_known) if column]
    return list(
        dict.fromkeys([about.id, about.at, *about.keys.values(), *about.inputs, *found, *traces, *truth, "_batch"])
    )


def _values(
    state: State, made: Plan, label: Label, taken: list[Batch] | None = None, *, sealed: bool = False
) -> pl.DataFrame:
    """Return `_id`, the label and when it was known (of several values of an id the one known last), of all batches or those taken."""
    rows = feature_tables.prepared_rows(state, made.definitions, label.rows, batches=taken, sealed=sealed)
    known = f"{label.name}_known"
    columns = (pl.col(label.id).alias("_id"), pl.col(label.value).alias(label.name), pl.col(label.known).alias(known))
    return rows.select(*columns).drop_nulls(["_id", known]).sort(known, maintain_order=True).unique("_id", keep="last")


def _sealed_values(state: State, made: Plan, label: Label) -> pl.DataFrame:
    """Return what `_values` does, of what is sealed for the holdout of the plan's batches and can't be read."""
    source = references.prepared_of(made.definitions, label.rows).sources[0]
    holdouts = {batch.sealed for batch in made.batches}
    kept = [batch for batch in batches.current(state, made.definitions.project, source) if batch.sealed in holdouts]
    readable = _values(state, made, label).drop_nulls(label.name)
    try:
        hidden = _values(state, made, label, kept, sealed=True)
    except BadInput:  # DuckDB quotes what it can't read
        verdict = "can't be made of the sealed rows; what is wrong there is told to nobody"
        raise Refused("label", label.name, verdict, "write its SQL so that it takes any row") from None
    return hidden.join(readable, on="_id", how="anti")


def _with_label(state: State, made: Plan, label: Label, found: pl.DataFrame, *, sealed: bool) -> pl.DataFrame:
    """Return the observations with the readable values of `label`, or with its sealed ones, by their id."""
    truth = _sealed_values(state, made, label) if sealed else _values(state, made, label)
    plain = found.drop(label.name, f"{label.name}_known", strict=False)
    dtype = found.schema[made.observations.id]
    try:
        return plain.join(
            truth.with_columns(pl.col("_id").cast(dtype)), left_on=made.observations.id, right_on="_id", how="left",
            maintain_order="left",
        )  # fmt: skip
    except pl.exceptions.InvalidOperationError as error:
        raise BadInput(
            f"id of label {label.name!r}", label.id, f"is not of the type of the observations' {made.observations.id!r}: {error}",
            "cast one of them in the SQL of its rows",
        ) from None  # fmt: skip


def rows(
    state: State, made: Plan, *, sealed: bool = False, between: tuple[datetime, datetime] | None = None
) -> pl.DataFrame:
    """Return the observations of the plan's batches; the label is null unless it became known.

    Parameters
    ----------
    between : only those from the first time on and before the second; besides them one batch at a time is in memory.
    """
    about = made.observations

    def inside(batch: pl.DataFrame) -> pl.DataFrame:
        if between is None or about.at not in batch.columns:  # a column that is not there is told below
            return batch
        return batch.filter(pl.col(about.at) >= between[0], pl.col(about.at) < between[1])

    found = feature_tables.prepared_rows(
        state, made.definitions, about.rows, batches=made.batches, sealed=sealed, only=inside
    )
    if made.label:
        found = _with_label(state, made, made.label, found, sealed=sealed)
    for column in (about.id, about.at, *about.keys.values(), *about.inputs, about.label, about.label_known):
        if column and column not in found.columns:
            raise BadInput(
                f"column of observations {about.name!r}",
                column,
                f"is not in {about.rows!r}",
                near_miss(column, found.columns),
            )
    if about.label and about.label_known:
        known = pl.when(pl.col(about.label_known).is_not_null()).then(pl.col(about.label))
        found = found.with_columns(known.alias(about.label))
    return found
