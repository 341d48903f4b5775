"""Feast's registry, kept by the platform: what `feast apply` changes becomes definitions there, at once or as a proposal.

`feature_store.yaml` (see `cellwork feature store`)::

    registry:
      registry_store_type: cellwork.features.feast.registry.PlatformRegistryStore
      path: cellwork://project

Feast writes the whole registry on every change. Definitions that changed are applied (by somebody who may, else they wait as a
proposal); a registry that only moved, such as by a materialization, is kept as it is.
"""

from __future__ import annotations

import base64
from pathlib import Path

from feast import Entity, FeatureService, FeatureView
from feast.infra.registry.registry_store import RegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.repo_config import RegistryConfig

from cellwork import project as projects
from cellwork.client import connect
from cellwork.errors import NotFound
from cellwork.features import define
from cellwork.project import Project
from cellwork.wire.features import Definitions

SCHEME = "cellwork://"


class PlatformRegistryStore(RegistryStore):  # type: ignore[misc]
    """The registry of the project that the path names."""

    def __init__(self, config: RegistryConfig, repo_path: Path | None) -> None:
        self.project = config.path.removeprefix(SCHEME)
        self.folder = repo_path or Path.cwd()
        self._empty: Registry | None = None
        """What Feast wrote before there was a definition: the platform keeps no project without one."""

    def get_registry_proto(self) -> Registry:
        """Return the registry; raises FileNotFoundError where nothing was applied, as Feast wants it."""
        registry = Registry()
        try:
            found = connect().features.registry(self.project)
        except NotFound:
            if self._empty is None:
                raise FileNotFoundError(self.project) from None
            return self._empty
        registry.ParseFromString(found)
        return registry

    def update_registry_proto(self, registry_proto: Registry) -> None:
        """Apply what the registry defines, or propose it; prepared rows and observations are those of the folder's files."""
        client, registry = connect(), base64.b64encode(registry_proto.SerializeToString(deterministic=True)).decode()
        before, home = self._applied(), self._home()
        after = definitions(home or Project(self.project, self.folder), registry_proto, self._beside(home, before))
        after.feast_registry = registry
        if before is not None and _same(before, after):
            client.features.keep_registry(self.project, registry_proto.SerializeToString(deterministic=True))
            return
        if before is None and not (after.views or after.entities):
            self._empty = registry_proto
        else:
            applied = client.features.apply(after)
            if applied.proposal:
                print(
                    f"proposed as {applied.proposal}: somebody with features:apply accepts it"
                )  # Feast's command shows this

    def teardown(self) -> None:
        """Leave it: the platform's definitions end by being applied without them."""

    def _applied(self) -> Definitions | None:
        try:
            return connect().features.definitions(self.project)
        except NotFound:
            return None

    def _home(self) -> Project | None:
        """Return the project whose folder this is in."""
        try:
            return projects.find(self.folder)
        except NotFound:
            return None

    def _beside(self, home: Project | None, before: Definitions | None) -> Definitions:
        """Return what Feast has no word for: that of the project's files, else what is applied."""
        if home is None:
            return before or Definitions(project=self.project)
        datasets, written = define.load(home)
        for dataset in datasets:
            connect().batches.declare(home.name, dataset)
        return written


def definitions(home: Project, registry: Registry, beside: Definitions) -> Definitions:
    """Return what a registry of Feast defines, with the prepared rows and observations of `beside`."""
    made = Definitions(
        project=home.name,
        prepared=beside.prepared,
        observations=beside.observations,
        entities=[define.entity(each) for each in map(Entity.from_proto, registry.entities) if each.name != "__dummy"],
        views=[define.view(FeatureView.from_proto(each), home) for each in registry.feature_views],
        services=[define.service(FeatureService.from_proto(each)) for each in registry.feature_services],
    )
    define.check_references(made)
    return made


def _same(before: Definitions, after: Definitions) -> bool:
    names = ("prepared", "entities", "views", "services", "observations")
    return all(_by_name(getattr(before, name)) == _by_name(getattr(after, name)) for name in names)


def _by_name(each: list[object]) -> dict[str, object]:
    return {one.name: one for one in each}  # type: ignore[attr-defined]
