"""From a model's columns and its project's definitions to a plan. A column ``view__feature`` comes from that view."""

from __future__ import annotations

from collections.abc import Sequence

from cellwork import clock
from cellwork.errors import Refused
from cellwork.features import references
from cellwork.models import columns as models
from cellwork.serving.plan import OWN, Column, Plan, Source
from cellwork.wire.features import Definitions, Field, View


def plan(project: str, columns: Sequence[models.Column], definitions: Definitions | None = None) -> Plan:
    """Return the plan of a model with `columns`, in the model's order; without definitions nothing is looked up.

    Raises
    ------
    Refused
        A column has a name that the statistics of predictions use.
    """
    if taken := next((column.name for column in columns if column.name in OWN), ""):
        raise Refused("column of the model", taken, "has a name of the platform's own", "rename it, and train again")
    views = {view.name: view for view in definitions.views} if definitions else {}
    made = [_column(column, views) for column in columns]
    used = [view for view in views.values() if any(column.view == view.name for column in made)]
    return Plan(project=project, columns=made, sources=[_source(view, definitions) for view in used if definitions])


def _column(column: models.Column, views: dict[str, View]) -> Column:
    found = _field(column.name, views)
    if found is None:
        return Column(name=column.name, kind=column.kind)
    view, field = found
    return Column(name=column.name, kind=column.kind, default=field.default, view=view, feature=field.name)


def _field(name: str, views: dict[str, View]) -> tuple[str, Field] | None:
    for view in views.values():
        for field in view.fields:
            if name == f"{view.name}__{field.name}":
                return view.name, field
    return None


def _source(view: View, definitions: Definitions) -> Source:
    ttl = clock.duration(view.ttl).total_seconds() if view.ttl else None
    return Source(view=view.name, join_keys=sorted(references.join_keys(definitions, view)), ttl_seconds=ttl)
