"""Feature values by entity id: the platform's online store, read directly and read-only. The platform alone writes it."""

from __future__ import annotations

import threading

from cellwork.features.online import OnlineStore, open_store
from cellwork.features.packed import entity_key
from cellwork.home import Home
from cellwork.serving.plan import Key
from cellwork.wire.features import OnlineValue


class Lookup:
    """Reads the stores under `home`, one statement a view and turn. Threads share it."""

    def __init__(self, home: Home, url: str = "") -> None:
        self.home, self.url = home, url
        self.quick = not url
        """A read from the file takes microseconds: it may be made in the event loop."""
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
            values = store.values(view, [entity_key(key) for key in keys])
            found[view] = {key: value for key, value in zip(keys, values, strict=True) if value is not None}
        return found

    def _store(self, project: str) -> OnlineStore:
        with self._opening:
            if project not in self._stores:
                self._stores[project] = open_store(self.home.online(project), self.url, read_only=True)
            return self._stores[project]
