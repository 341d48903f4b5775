"""Events, audit and lineage over HTTP; each service keeps its own."""

from __future__ import annotations

from collections.abc import Iterator

from cellwork.client.base import Connection
from cellwork.wire.records import AuditRow, Edge, Event

SERVICES = ("cellwork", "inference", "jobs")


class Records:
    def __init__(self, connection: Connection) -> None:
        self._to = connection

    def events(self, *, service: str = "cellwork", after: int = 0, name: str = "", limit: int = 1000) -> list[Event]:
        """Events of one service with `seq` > `after`, in order."""
        return self._to.call(service, "GET", "/api/v1/events", list[Event], after=after, name=name, limit=limit)

    def audit(self, *, service: str = "cellwork", after: int = 0, limit: int = 1000) -> list[AuditRow]:
        return self._to.call(service, "GET", "/api/v1/audit", list[AuditRow], after=after, limit=limit)

    def edges(self, subject: str) -> Iterator[Edge]:
        """Every edge from or to `subject`, of every service."""
        for service in SERVICES:
            yield from self._to.call(service, "GET", "/api/v1/lineage", list[Edge], subject=subject)
