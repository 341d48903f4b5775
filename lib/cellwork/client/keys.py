"""API keys over HTTP."""

from __future__ import annotations

import builtins

from cellwork.client.base import Connection
from cellwork.wire.keys import Key, KeyWish, MadeKey


class Keys:
    def __init__(self, connection: Connection) -> None:
        self._to = connection

    def make(self, wish: KeyWish) -> MadeKey:
        return self._to.call("inference", "POST", "/api/v1/keys", MadeKey, wish)

    def list(self, project: str = "") -> builtins.list[Key]:
        return self._to.call("inference", "GET", "/api/v1/keys", builtins.list[Key], project=project)

    def revoke(self, key: str) -> Key:
        return self._to.call("inference", "DELETE", f"/api/v1/keys/{key}", Key)
