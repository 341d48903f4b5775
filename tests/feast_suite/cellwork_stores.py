"""Names our store classes to Feast's own universal tests: FULL_REPO_CONFIGS_MODULE=cellwork_stores; see run.py beside it.

Feast's generated sources say that every value was created now, years after the entity rows; so its tests run with
`arrival: false`, and ours (tests/lib) with the default.
"""

from __future__ import annotations

import os
from typing import Any

from tests.universal.feature_repos.universal.data_sources.file import DeltaFileSourceCreator, FileDataSourceCreator
from tests.universal.feature_repos.universal.online_store_creator import OnlineStoreCreator

from cellwork.features.feast import OfflineStoreConfig

ONLINE = {"type": "cellwork.features.feast.OnlineStore"}


class CellworkFiles(FileDataSourceCreator):  # type: ignore[misc]
    def create_offline_store_config(self) -> OfflineStoreConfig:
        return OfflineStoreConfig(arrival=False)


class CellworkDelta(DeltaFileSourceCreator):  # type: ignore[misc]
    def create_offline_store_config(self) -> OfflineStoreConfig:
        return OfflineStoreConfig(arrival=False)


class CellworkFile(OnlineStoreCreator):  # type: ignore[misc]
    def create_online_store(self) -> dict[str, Any]:
        return {**ONLINE, "path": "online.sqlite"}

    def teardown(self) -> None:
        """Nothing: each test has a folder of its own."""


class CellworkRedis(OnlineStoreCreator):  # type: ignore[misc]
    def create_online_store(self) -> dict[str, Any]:
        return {**ONLINE, "url": os.environ["CELLWORK_TEST_REDIS"]}

    def teardown(self) -> None:
        """Nothing: each test has a project of its own."""


# Feast chooses tests by the names of its own stores; under them ours get the same ones.
AVAILABLE_OFFLINE_STORES = [("local", CellworkFiles), ("local", CellworkDelta)]
AVAILABLE_ONLINE_STORES: dict[str, Any] = {"sqlite": ({**ONLINE, "path": "online.sqlite"}, CellworkFile)}
if os.environ.get("CELLWORK_TEST_REDIS"):
    AVAILABLE_ONLINE_STORES["redis"] = ({**ONLINE, "url": os.environ["CELLWORK_TEST_REDIS"]}, CellworkRedis)
