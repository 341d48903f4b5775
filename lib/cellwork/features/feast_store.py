"""The `feature_store.yaml` of a project: with it Feast's own commands and clients work on the platform. Light; loads no Feast."""

from __future__ import annotations

from cellwork import ids

FILE = "feature_store.yaml"


def configuration(project: str) -> str:
    """Return the file for `project`; address and token come from the environment, as for every client."""
    name = ids.name(project, "project")
    return f"""\
# Made by `cellwork feature store`. Feast's commands and clients use the platform through it.
project: {name}
provider: local
registry:
  registry_store_type: cellwork.features.feast.registry.PlatformRegistryStore
  path: cellwork://{name}
  cache_ttl_seconds: 60
offline_store:
  type: cellwork.features.feast.OfflineStore
online_store:
  type: cellwork.features.feast.OnlineStore
entity_key_serialization_version: 3
"""
