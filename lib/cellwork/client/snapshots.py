"""Parts of dashboards over HTTP."""

from __future__ import annotations

from collections.abc import Sequence

from cellwork.client.base import Connection
from cellwork.wire.snapshots import Snapshot


class Snapshots:
    def __init__(self, connection: Connection) -> None:
        self._to = connection

    def get(self, project: str, parts: Sequence[str], of: str = "") -> list[Snapshot]:
        """Return parts about `of` in `project`, each as it is now, or, while it can't be computed, as it last was."""
        path = f"/api/v1/snapshots/{project}"
        return self._to.call("cellwork", "GET", path, list[Snapshot], parts=",".join(parts), of=of)
