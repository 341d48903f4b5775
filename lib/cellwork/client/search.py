"""Search and near-duplicates over HTTP."""

from __future__ import annotations

from cellwork.client.base import Connection
from cellwork.wire.search import Found, Twin


class Search:
    def __init__(self, connection: Connection) -> None:
        self._to = connection

    def find(self, question: str, *, project: str = "", kind: str = "", limit: int = 50) -> list[Found]:
        return self._to.call(
            "cellwork", "GET", "/api/v1/search", list[Found], q=question, project=project, kind=kind, limit=limit
        )

    def twins(self, project: str, view: str) -> list[Twin]:
        return self._to.call("cellwork", "GET", f"/api/v1/twins/{project}/{view}", list[Twin])
