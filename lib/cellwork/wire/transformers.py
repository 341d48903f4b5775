"""Fitted steps as plain numbers and texts: what they do is all in here, and the id is a hash of it."""

from __future__ import annotations

from datetime import datetime

from cellwork.wire import Struct
from cellwork.wire.origin import Origin


class Filled(Struct, tag="filled"):
    """A missing value becomes `value`."""

    column: str
    value: float | str


class Clipped(Struct, tag="clipped"):
    column: str
    least: float
    greatest: float


class Scaled(Struct, tag="scaled"):
    """(x - mean) / deviation; a constant column has deviation 1."""

    column: str
    mean: float
    deviation: float


class Coded(Struct, tag="coded"):
    """A column of texts becomes a column of 0 and 1 for each category, ``column=category``; others and missing ones are all 0."""

    column: str
    categories: list[str]


class Kept(Struct, tag="kept"):
    """Only these columns go on; `scores` says why, of every column that was judged."""

    columns: list[str]
    by: str
    scores: dict[str, float]


Step = Filled | Clipped | Scaled | Coded | Kept


class Transformer(Struct):
    """Immutable: other steps have another id."""

    inputs: list[str]
    steps: list[Step]
    id: str = ""
    """``tf_…`` of inputs and steps; given by the platform, or by whoever fitted."""
    name: str = ""
    project: str = ""
    dataset: str = ""
    """The dataset it was fitted on, if it was one."""
    at: datetime | None = None
    origin: Origin = Origin()
