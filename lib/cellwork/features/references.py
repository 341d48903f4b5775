"""What names of features mean under given definitions: services, ``view`` and ``view:feature``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from cellwork.errors import BadInput, NotFound, near_miss
from cellwork.wire.features import Definitions, Label, Prepared, Rolling, View


def chosen(definitions: Definitions, wanted: Sequence[str]) -> list[tuple[View, list[str]]]:
    """Return views with their features, in the order they were first named, each feature once.

    Raises
    ------
    BadInput
        A service, view or feature is not defined; with the near miss.
    """
    services = {service.name: service.features for service in definitions.services}
    views = {view.name: view for view in definitions.views}
    asked: dict[str, list[str]] = {}
    for name in (each for item in wanted for each in services.get(item, [item])):
        view, _, feature = name.partition(":")
        if view not in views:
            raise BadInput("feature service or view", view, "is not defined", near_miss(view, [*services, *views]))
        fields = [field.name for field in views[view].fields]
        if feature and feature not in fields:
            raise BadInput(f"feature of view {view!r}", feature, "is not defined", near_miss(feature, fields))
        there = asked.setdefault(view, [])
        there += [field for field in ([feature] if feature else fields) if field not in there]
    return [(views[name], fields) for name, fields in asked.items()]


def join_keys(definitions: Definitions, view: View) -> list[str]:
    """Return the join keys of the entities of `view`, in their order."""
    entities = {entity.name: entity.join_keys for entity in definitions.entities}
    return [key for entity in view.entities for key in entities[entity]]


def view_of(definitions: Definitions, name: str) -> View:
    views = {view.name: view for view in definitions.views}
    if name not in views:
        raise NotFound(f"view of project {definitions.project!r}", name, "is not defined", near_miss(name, views))
    return views[name]


def label_of(definitions: Definitions, name: str) -> Label:
    labels = {label.name: label for label in definitions.labels}
    if name not in labels:
        raise BadInput(f"label of project {definitions.project!r}", name, "is not defined", near_miss(name, labels))
    return labels[name]


def prepared_of(definitions: Definitions, name: str) -> Prepared:
    prepared = {each.name: each for each in definitions.prepared}
    if name not in prepared:
        raise NotFound(
            f"prepared of project {definitions.project!r}", name, "is not defined", near_miss(name, prepared)
        )
    return prepared[name]


def until_column(definitions: Definitions, view: View) -> str:
    """Return the column that says how far a batch of a rolling view goes: see `Rolling.until`."""
    if not isinstance(view.pipeline, Rolling):
        return ""
    observed = [about.at for about in definitions.observations if about.rows == view.pipeline.rows]
    return view.pipeline.until or min(observed, default=view.pipeline.event)


def content_sha256(definitions: Definitions, view: View) -> str:
    """Return the hash of all that the rows of `view` depend on besides the data; words about it and its ttl do not count."""
    prepared = prepared_of(definitions, view.pipeline.rows)
    fields = [(field.name, field.type) for field in view.fields]
    parts = (
        view.name,
        join_keys(definitions, view),
        fields,
        view.pipeline,
        view.online,
        prepared.sources,
        prepared.sql,
    )
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()
