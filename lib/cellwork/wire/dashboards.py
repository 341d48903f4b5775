"""Dashboards that users publish: a notebook, kept as it was, that runs as its owner for the group it is shared with."""

from __future__ import annotations

import hashlib
import re
from datetime import datetime

from cellwork.wire import Struct

SERVERS = "page-"
"""How the names of servers begin that are published dashboards, and only theirs."""


class PublishRequest(Struct):
    """Publish a notebook; saying it again publishes what it is now."""

    notebook: str
    """The file's name."""
    content: str
    """The notebook as JSON text."""
    files: dict[str, str] = {}
    """Text files that belong beside it, by relative path."""
    group: str = ""
    """Who may look beside its owner, as the hub names it: ``project:flights``, ``group:analysts``; empty: nobody."""
    profile: str = ""
    """How large its server is, by the menu of servers; empty: the first that its owner may have."""


class Published(Struct):
    project: str
    name: str
    owner: str
    """As whom it runs, whoever looks."""
    group: str
    notebook: str
    sha256: str
    at: datetime
    profile: str = ""

    @property
    def server(self) -> str:
        """The name of the server it runs in; no other server's name begins so. The hub takes 30 of a-z, 0-9 and single dashes."""
        readable = "-".join(part for part in re.split(r"[_-]+", f"{self.project}-{self.name}") if part)[:16].strip("-")
        return f"{SERVERS}{readable}-{hashlib.sha256(f'{self.project}/{self.name}'.encode()).hexdigest()[:8]}"

    @property
    def path(self) -> str:
        return f"/user/{self.owner}/{self.server}/"


class PublishedContent(Struct):
    about: Published
    content: str
    files: dict[str, str]
