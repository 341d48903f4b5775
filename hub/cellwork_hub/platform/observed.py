"""Observations with their features: what a request means under the definitions of now, and the frame it gives.

Every observation comes out exactly once, in the order of its batch. The columns are: the id, the time, the keys, the
inputs, `view__feature` of each feature, `view__event_timestamp` and `view___batch` of each view (the time and the raw batch
of the value that was found: lineage), the label and when it was known, and `_batch`, the observation's own raw batch. A
label that is sealed, or was never known, is null; with `sealed=True`, for the evaluator alone, the sealed values are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from cellwork.errors import BadInput, near_miss
from cellwork.features import history, references
from cellwork.wire.batches import Batch
from cellwork.wire.datasets import Coverage
from cellwork.wire.features import Definitions, Observations, View
from cellwork_hub.platform import batches, feature_definitions, feature_tables
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
    """Batches of the other sources that the observations are prepared with."""


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


def joined(
    state: State, made: Plan, rows: pl.DataFrame, *, sealed: bool = False
) -> tuple[pl.DataFrame, list[Coverage]]:
    """Return the observations `rows` with their features, in the columns of a dataset, and the coverage of each view."""
    about, definitions = made.observations, made.definitions
    views = [
        history.JoinView(
            view=view,
            keys={key: about.keys[key] for key in references.join_keys(definitions, view)},
            fields=fields,
            rows=feature_tables.view_rows(state, definitions.project, view, sealed=sealed),
        )
        for view, fields in made.views
    ]
    frame, coverage = history.join(rows, at=about.at, views=views)
    if frame.height != rows.height:
        raise AssertionError(f"the join made {frame.height} rows of {rows.height}")
    return frame.select(columns(made)), coverage


def columns(made: Plan) -> list[str]:
    about = made.observations
    found = [f"{view.name}__{column}" for view, fields in made.views for column in fields]
    traces = [f"{view.name}__{column}" for view, _ in made.views for column in ("event_timestamp", "_batch")]
    truth = [column for column in (about.label, about.label_known) if column]
    return list(
        dict.fromkeys([about.id, about.at, *about.keys.values(), *about.inputs, *found, *traces, *truth, "_batch"])
    )


def rows(state: State, made: Plan, *, sealed: bool = False) -> pl.DataFrame:
    """Return the observations of the plan's batches; the label is null unless it became known."""
    about = made.observations
    found = feature_tables.prepared_rows(state, made.definitions, about.rows, batches=made.batches, sealed=sealed)
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
