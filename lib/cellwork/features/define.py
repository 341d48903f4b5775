"""From an author's definition files to data: runs them in the author's process, collects their top-level objects, checks their names.

The only module of the library that imports Feast's core. The platform never runs an author's Python; it gets `Definitions`.
"""

from __future__ import annotations

import base64
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from cellwork import clock, ids
from cellwork.errors import BadInput, NotFound, near_miss
from cellwork.project import Project
from cellwork.wire import features as wire
from cellwork.wire.batches import RawDataset

T = TypeVar("T")


def load(project: Project) -> tuple[list[RawDataset], wire.Definitions]:
    """Return the raw data sets and the definitions that the files of `project` hold.

    Raises
    ------
    NotFound
        A file is not there.
    BadInput
        A file fails, defines a name twice, or names something that it does not define.
    """
    load_feast()
    objects = [value for path in project.definitions for value in _objects(path, project.name)]
    datasets = _named(objects, RawDataset)
    definitions = wire.Definitions(
        project=project.name,
        prepared=_named(objects, wire.Prepared),
        entities=[entity(each) for each in _feast(objects, "Entity")],
        views=[view(each, project) for each in _feast(objects, "FeatureView")],
        services=[service(each) for each in _feast(objects, "FeatureService")],
        observations=_named(objects, wire.Observations),
        labels=_named(objects, wire.Label),
    )
    check(datasets, definitions)
    definitions.feast_registry = _registry(objects, project.name)
    return datasets, definitions


def load_feast() -> None:
    """Import Feast without typeguard's rewriting of its classes, which is nearly half of the seconds it takes."""
    if "feast" in sys.modules:
        return
    import typeguard

    checked = typeguard.typechecked
    typeguard.typechecked = lambda target=None, **_: target if target is not None else (lambda found: found)  # type: ignore[assignment]
    try:
        import feast  # noqa: F401
    finally:
        typeguard.typechecked = checked


def _objects(path: Path, project: str) -> list[Any]:
    """Return the distinct top-level values of the file `path`, in the order of their first definition."""
    if not path.is_file():
        raise NotFound("definitions file", path, "is not there", "name it in cellwork.toml: [features] paths = […]")
    name = f"cellwork_definitions_{project}_{path.stem}".replace("-", "_")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _importable(path.parent, name, module):
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # whatever an author's file raises is the author's to read, with its line
            raise BadInput("definitions file", path, _where(error, path), "mend that line") from error
    return list({id(value): value for value in vars(module).values()}.values())


@contextmanager
def _importable(folder: Path, name: str, module: ModuleType) -> Iterator[None]:
    """While a file runs it may import its neighbours; both are read anew the next time, for a kernel lives on after an edit."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    sys.modules[name] = module
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for other in set(sys.modules) - before:
            if other == name or Path(getattr(sys.modules[other], "__file__", None) or "/").parent == folder:
                del sys.modules[other]


def _where(error: Exception, path: Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
    return f"fails at line {line} with {type(error).__name__}: {error}"


def _named(objects: Iterable[Any], kind: type[T]) -> list[T]:
    """Return the objects of `kind`; each must have a valid name of its own."""
    found = [value for value in objects if isinstance(value, kind)]
    for position, value in enumerate(found):
        name = ids.name(value.name, f"name of {kind.__name__}")  # type: ignore[attr-defined]
        if any(other.name == name for other in found[:position]):  # type: ignore[attr-defined]
            raise BadInput(kind.__name__, name, "is defined twice", "give one of them another name")
    return found


def _feast(objects: Iterable[Any], kind: str) -> list[Any]:
    import feast

    return _named(objects, getattr(feast, kind))


def entity(one: Any) -> wire.Entity:
    """Return what one of Feast's entities says."""
    return wire.Entity(name=one.name, join_keys=[one.join_key], description=one.description)


def view(one: Any, project: Project) -> wire.View:
    """Return what one of Feast's feature views says. Raises BadInput unless its source is ours."""
    from cellwork.features.feast import PipelineSource

    source = one.batch_source
    if not isinstance(source, PipelineSource):
        raise BadInput(
            f"view {one.name!r}", type(source).__name__, "is not a source of ours", "write source=PipelineSource(…)"
        )
    return wire.View(
        name=one.name,
        entities=list(one.entities),
        fields=[_field(field) for field in one.features],
        pipeline=source.pipeline,
        ttl=_duration(one.ttl),
        owner=one.owner or project.owner,
        description=one.description,
        tags=dict(one.tags),
        online=one.online,
        schedule=source.schedule,
    )


def _field(field: Any) -> wire.Field:
    import msgspec

    default = field.tags.get("default")
    return wire.Field(
        name=field.name,
        type=str(field.dtype),
        description=field.description,
        default=None if default is None else msgspec.json.decode(default),
    )


def _duration(ttl: timedelta | None) -> str:
    """Return Feast's time to live in `clock`'s words; its zero means for ever."""
    seconds = int(ttl.total_seconds()) if ttl else 0
    unit, size = next((u, s) for u, s in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)) if seconds % s == 0)
    return f"{seconds // size}{unit}" if seconds else ""


def service(one: Any) -> wire.FeatureService:
    """Return what one of Feast's feature services says."""
    features = [name for name in one._features if isinstance(name, str)]
    for projection in one.feature_view_projections:
        features += [f"{projection.name}:{field.name}" for field in projection.features]
    return wire.FeatureService(name=one.name, features=features, description=one.description, owner=one.owner)


def check(datasets: list[RawDataset], definitions: wire.Definitions) -> None:
    """Raise BadInput for the first name that nothing defines; columns are checked by the platform, against the data."""
    sources = {dataset.name for dataset in datasets}
    for prepared in definitions.prepared:
        _known(f"source of prepared {prepared.name!r}", prepared.sources, sources)
        if not prepared.sources:
            raise BadInput("prepared", prepared.name, "has no source", "name at least one raw data set in sources=[…]")
    check_references(definitions)


def check_references(definitions: wire.Definitions) -> None:
    """Raise BadInput for the first view, service or observation that names something these definitions lack."""
    prepared = {p.name for p in definitions.prepared}
    entities = {e.name: e for e in definitions.entities}
    join_keys = {key for entity in definitions.entities for key in entity.join_keys}
    views = {view.name: {field.name for field in view.fields} for view in definitions.views}
    for view in definitions.views:
        subject = f"view {view.name!r}"
        _known(f"entity of {subject}", view.entities, entities)
        _known(f"rows of {subject}", [view.pipeline.rows], prepared)
        if view.schedule:
            clock.next_due(view.schedule, clock.now())
        if not view.fields:
            raise BadInput(subject, "", "has no fields", "write schema=[Field(…)]")
        if isinstance(view.pipeline, wire.Rolling):
            _known(f"field of {subject} (its aggregates)", views[view.name], view.pipeline.aggregates)
            _check_rolling(view, view.pipeline)
    for service in definitions.services:
        for reference in service.features:
            name, _, feature = reference.partition(":")
            _known(f"view of service {service.name!r}", [name], views)
            if feature:
                _known(f"feature of service {service.name!r} in view {name!r}", [feature], views[name])
    for observations in definitions.observations:
        _known(f"rows of observations {observations.name!r}", [observations.rows], prepared)
        _known(f"join key of observations {observations.name!r}", observations.keys, join_keys)
    for label in definitions.labels:
        _known(f"rows of label {label.name!r}", [label.rows], prepared)


def _check_rolling(view: wire.View, pipeline: wire.Rolling) -> None:
    """Raise BadInput for durations and types that make no sense; a row holds until the next one, which may be a window later."""
    window, every = clock.duration(pipeline.window), clock.duration(pipeline.every)
    if view.ttl and clock.duration(view.ttl) < window + every:
        raise BadInput(
            f"ttl of view {view.name!r}",
            view.ttl,
            f"is shorter than window and grid ({pipeline.window} and {pipeline.every}), so values that still hold would expire",
            "leave it out, or make it longer",
        )
    types = {field.name: field.type for field in view.fields}
    for name, aggregate in pipeline.aggregates.items():
        if aggregate.function == "mean" and types.get(name, "Float64") not in ("Float32", "Float64"):
            raise BadInput(
                f"aggregate {name!r} of view {view.name!r}",
                "mean",
                f"is cut in a field of {types[name]}",
                "make it Float64",
            )
        if not aggregate.column and aggregate.function != "count":
            raise BadInput(
                f"aggregate {name!r} of view {view.name!r}",
                aggregate.function,
                "has no column",
                "name its numeric column",
            )


def _known(subject: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in set(known):
            raise BadInput(subject, name, "is not defined", near_miss(name, known))


def _registry(objects: list[Any], project: str) -> str:
    """Return Feast's own registry of the same objects, so that `feast` and its clients can read it."""
    from feast.protos.feast.core.Registry_pb2 import Registry

    registry = Registry(registry_schema_version="1")
    entities = {entity.name: entity for entity in _feast(objects, "Entity")}
    views = {view.name: view for view in _feast(objects, "FeatureView")}
    for view in views.values():
        view.entity_columns = view.entity_columns or [_key_field(entities[name]) for name in view.entities]
    for service in _feast(objects, "FeatureService"):
        service.resolve_pending_refs(project, None, views)
        _add(registry.feature_services, service, project)
    for entity in entities.values():
        _add(registry.entities, entity, project)
    sources = {view.batch_source.name: view.batch_source for view in views.values()}
    for source in sources.values():
        proto = source.to_proto()
        proto.project = project
        registry.data_sources.append(proto)
    for view in views.values():
        _add(registry.feature_views, view, project)
    return base64.b64encode(registry.SerializeToString(deterministic=True)).decode()


def _key_field(entity: Any) -> Any:
    from feast import Field, ValueType
    from feast.types import String, from_value_type

    known = entity.value_type != ValueType.UNKNOWN
    return Field(name=entity.join_key, dtype=from_value_type(entity.value_type) if known else String)


def _add(collection: Any, value: Any, project: str) -> None:
    proto = value.to_proto()
    proto.spec.project = project
    collection.append(proto)
