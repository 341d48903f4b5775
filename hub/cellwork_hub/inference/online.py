"""Feature values by entity id: the platform's online store, read directly and read-only. The platform alone writes it."""

from __future__ import annotations

from cellwork.home import Home
from cellwork.serving.plan import Key
from cellwork.wire.features import OnlineValue


class Lookup:
    def __init__(self, home: Home) -> None:
        self.home = home

    def __call__(self, project: str, needed: dict[str, list[Key]]) -> dict[str, dict[Key, OnlineValue]]:
        return {}
