"""Feature values by entity id: the platform's online store, read directly and read-only. The platform alone writes it."""

from __future__ import annotations

import threading

from cellwork.features.online import OnlineStore, entity_key, value
from cellwork.home import Home
from cellwork.serving.plan import Key
from cellwork.wire.features import OnlineValue


class Lookup:
    """Reads the stores under `home`, one statement a view and turn. Threads share it."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._stores: dict[str, OnlineStore] = {}
        self._opening = threading.Lock()

    def __call__(self, project: str, needed: dict[str, list[Key]]) -> dict[str, dict[Key, OnlineValue]]:
        """Return view -> key -> its newest values, without the keys that have none; keys are in order of their names.

        Raises
        ------
        Unavailable
            The store is not there, or can't be read.
        """
        store = self._store(project)
        found: dict[str, dict[Key, OnlineValue]] = {}
        for view, keys in needed.items():
            records = store.packed(view, [entity_key(key) for key in keys])
            found[view] = {key: value(record) for key, record in zip(keys, records, strict=True) if record is not None}
        return found

    def _store(self, project: str) -> OnlineStore:
        with self._opening:
            if project not in self._stores:
                self._stores[project] = OnlineStore(self.home.online(project), read_only=True)
            return self._stores[project]
