"""Feast's online store on our packed values: an older value never replaces a newer one, whoever writes and when.

`feature_store.yaml`, beside the platform (it alone writes; reads and pushes go to it over HTTP)::

    online_store:
      type: cellwork.features.feast.OnlineStore

and on a store of one's own, a file or a Redis: ``path: online.sqlite`` or ``url: redis://127.0.0.1:6379/0``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from feast import Entity, FeatureView
from feast.infra.online_stores import online_store as feasts
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel, RepoConfig

from cellwork import clock
from cellwork.features import packed
from cellwork.features.feast import values
from cellwork.features.online import OnlineStore as Store
from cellwork.features.online import open_store
from cellwork.features.row import CREATED, EVENT, value_hash
from cellwork.wire.features import PushRequest

REVISION = 1
Row = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
Found = tuple[datetime | None, dict[str, Value] | None]


class OnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    type: Literal["cellwork.features.feast.OnlineStore"] = "cellwork.features.feast.OnlineStore"
    path: str = ""
    """A SQLite file of one's own."""
    url: str = ""
    """A Redis of one's own. Without this and `path`: the platform's store."""


class OnlineStore(feasts.OnlineStore):  # type: ignore[misc]
    """Reads and writes by Feast's interface."""

    def __init__(self) -> None:
        self._stores: dict[str, Store] = {}

    def online_write_batch(
        self, config: RepoConfig, table: FeatureView, data: list[Row], progress: Callable[[int], Any] | None
    ) -> None:
        """Take values of entities; those that are older than what is there change nothing."""
        if _of_platform(config):
            _push(config.project, table.name, data)
        else:
            store = self._store(config)
            fields = [field.name for field in table.features]
            store.keep_fields(fields)
            store.put(table.name, REVISION, _records(fields, data))
        if progress:
            progress(len(data))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[Found]:
        """Return event and values of each entity, (None, None) where there is none."""
        kinds = {field.name: values.from_ours(field.dtype.to_value_type()) for field in table.features}
        wanted = [name for name in requested_features or kinds if name in kinds]
        if _of_platform(config):
            return _read_platform(config.project, table.name, entity_keys, wanted, kinds)
        store = self._store(config)
        keys = [packed.entity_key(values.entity(key)) for key in entity_keys]
        found = store.packed(table.name, keys)
        told = iter(packed.unpack([record for record in found if record is not None]))
        makers = [(name, kinds[name]) for name in wanted]
        return [(None, None) if record is None else _answer(store, record, next(told), makers) for record in found]

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        return SupportedAsyncMethods(read=True, write=True)

    async def online_write_batch_async(
        self, config: RepoConfig, table: FeatureView, data: list[Row], progress: Callable[[int], Any] | None
    ) -> None:
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[Found]:
        return await asyncio.to_thread(self.online_read, config, table, entity_keys, requested_features)

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Make views readable, and drop what is kept of those that are gone. The platform does both itself."""
        if _of_platform(config):
            return
        store = self._store(config)
        for table in tables_to_keep:
            if store.active(table.name) is None:
                store.activate(table.name, REVISION)
        for table in tables_to_delete:
            store.activate(table.name, None)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Drop what is kept of `tables`."""
        self.update(config, tables, [], entities, [], partial=False)

    def _store(self, config: RepoConfig) -> Store:
        own = config.online_store
        place = f"{config.project}|{own.path}|{own.url}"
        if place not in self._stores:
            path = Path(own.path or f"{config.project}.sqlite")
            if config.repo_path and not path.is_absolute():
                path = Path(config.repo_path) / path
            self._stores[place] = open_store(path.with_stem(config.project) if own.url else path, own.url)
        return self._stores[place]


def _of_platform(config: RepoConfig) -> bool:
    return not (config.online_store.path or config.online_store.url)


def _micros(at: datetime) -> int:
    return clock.micros(at if at.tzinfo else at.replace(tzinfo=UTC))


def _records(fields: Sequence[str], data: Sequence[Row]) -> Iterator[tuple[bytes, bytes]]:
    number = packed.fields_number(fields)
    for key, said, event, created in data:
        row = {name: values.to_ours(said[name]) if name in said else None for name in fields}
        at = _micros(event)
        yield (
            packed.entity_key(values.entity(key)),
            packed.pack(number, list(row.values()), event=at, created=at if created is None else _micros(created), hashed=value_hash(row), batch=""),
        )  # fmt: skip


def _answer(store: Store, record: bytes, told: list[Any], makers: list[tuple[str, Callable[[Any], Value]]]) -> Found:
    there = dict(zip(store.fields(told[0]), told[2:], strict=True))
    return clock.moment(packed.times(record)[0]), {name: made(there.get(name)) for name, made in makers}


def _push(project: str, view: str, data: Sequence[Row]) -> None:
    from cellwork.client import connect

    rows = []
    for key, said, event, created in data:
        keys = dict(zip(key.join_keys, map(values.to_ours, key.entity_values), strict=True))
        row = {**keys, **{name: values.to_ours(value) for name, value in said.items()}, EVENT: _text(event)}
        rows.append({**row, CREATED: _text(created)} if created else row)
    connect().features.push(view, PushRequest(project=project, rows=rows))


def _text(at: datetime) -> str:
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).isoformat()


def _read_platform(
    project: str, view: str, keys: Sequence[EntityKey], wanted: list[str], kinds: dict[str, Callable[[Any], Value]]
) -> list[Found]:
    from cellwork.client import connect

    columns: dict[str, list[Any]] = {}
    for key in keys:
        for name, value in zip(key.join_keys, key.entity_values, strict=True):
            columns.setdefault(name, []).append(values.to_ours(value))
    found = connect().features.online(project, [f"{view}:{name}" for name in wanted], columns).views[view]
    return [
        (None, None)
        if value.event is None
        else (value.event, {name: kinds[name](value.values.get(name)) for name in wanted})
        for value in found
    ]
