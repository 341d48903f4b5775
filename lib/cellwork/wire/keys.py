"""API keys of endpoints: credentials for programs that no person of the hub stands behind."""

from __future__ import annotations

from datetime import datetime

import msgspec

from cellwork.wire import Struct

SCOPES = ("endpoints:predict", "endpoints:read", "monitors:read")
"""What a key may have: it asks and looks, and changes nothing."""


class KeyWish(Struct):
    project: str
    name: str
    scopes: list[str] = msgspec.field(default_factory=lambda: ["endpoints:predict"])
    days: int = 90
    """How long it is good for; 0: until it is revoked."""


class Key(Struct):
    """A key as it is kept: the platform has a hash of it and can't say it again."""

    id: str
    project: str
    name: str
    scopes: list[str]
    by: str
    at: datetime
    expires: datetime | None = None
    revoked: datetime | None = None


class MadeKey(Struct):
    key: Key
    token: str
    """Shown this once."""
