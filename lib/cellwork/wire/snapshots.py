"""What dashboards show: the answer to one question, computed once for everybody who looks, with the time at which it was true."""

from __future__ import annotations

from datetime import datetime

import msgspec

from cellwork.wire import Struct


class Snapshot(Struct):
    """A part of a page. With `error` and `as_of` it is what was last good; without `as_of` it never was."""

    part: str
    of: str = ""
    """The thing in the project that it is about, by its short name; empty for the project."""
    as_of: datetime | None = None
    value: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))
    """JSON, in the type that the part's own route answers."""
    error: str = ""
    """Why it could not be computed when it was last tried."""
    traceback: str = ""
    """For those who may see it."""
    owner: bool = False
    """Whether the caller is one of those."""
