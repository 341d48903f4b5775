"""From a model's signature and its project's definitions to a plan. A column ``view__feature`` comes from that view."""

from __future__ import annotations

from collections.abc import Sequence

from cellwork import clock
from cellwork.errors import BadInput
from cellwork.serving.plan import Column, Kind, Plan, Source
from cellwork.wire.features import Definitions, Field, View

KINDS: dict[str, Kind] = {
    "double": "number", "float": "number", "integer": "number", "long": "number", "string": "text", "boolean": "flag",
}  # fmt: skip
"""MLflow's column types, and how a value of them travels."""


def plan(project: str, columns: Sequence[tuple[str, str]], definitions: Definitions | None = None) -> Plan:
    """Return the plan of a model whose columns are (name, MLflow type), in the model's order.

    Raises
    ------
    BadInput
        There are no named columns, or one has a type that no request can carry.
    """
    if not columns:
        raise BadInput("model signature", "", "names no columns", "log the model with a signature made from a frame")
    views = {view.name: view for view in definitions.views} if definitions else {}
    made = [_column(name, type_, views) for name, type_ in columns]
    used = [view for view in views.values() if any(column.view == view.name for column in made)]
    return Plan(project=project, columns=made, sources=[_source(view, definitions) for view in used if definitions])


def _column(name: str, type_: str, views: dict[str, View]) -> Column:
    if type_ not in KINDS:
        known = ", ".join(sorted(KINDS))
        raise BadInput(f"column {name!r} of the model", type_, "is a type no request can carry", f"use one of {known}")
    field = _field(name, views)
    if field is None:
        return Column(name=name, kind=KINDS[type_])
    view, feature = field
    return Column(name=name, kind=KINDS[type_], default=feature.default, view=view, feature=feature.name)


def _field(name: str, views: dict[str, View]) -> tuple[str, Field] | None:
    for view in views.values():
        for field in view.fields:
            if name == f"{view.name}__{field.name}":
                return view.name, field
    return None


def _source(view: View, definitions: Definitions) -> Source:
    entities = {entity.name: entity for entity in definitions.entities}
    keys = [key for name in view.entities if name in entities for key in entities[name].join_keys]
    ttl = clock.duration(view.ttl).total_seconds() if view.ttl else None
    return Source(view=view.name, join_keys=keys, ttl_seconds=ttl)
