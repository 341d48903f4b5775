"""What is known of a raw data set or a feature view from the sketches of its batches."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from cellwork.wire import Struct
from cellwork.wire.batches import ColumnStatistics


class Description(Struct):
    """Statistics of all batches asked for, merged; nothing in it was read from rows again."""

    project: str
    kind: Literal["raw", "features"]
    name: str
    rows: int
    batches: int
    columns: list[ColumnStatistics]
    bytes: int
    """Of the table's files that hold these batches."""
    newest: datetime | None = None
    """When the last batch arrived."""
    owner: str = ""
    description: str = ""
    tags: dict[str, str] = {}
    used_by: list[str] = []
    """Who reads it: views, feature services, models, jobs and endpoints, ``view:weather`` and so on."""
