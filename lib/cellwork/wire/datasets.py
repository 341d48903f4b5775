"""Training frames: observations joined point in time with features, their recipe and content hash."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from cellwork.wire import Struct
from cellwork.wire.origin import Origin


class DatasetRequest(Struct):
    """Build observations with `start` <= time of the prediction < `end`, each with the features known at that time."""

    project: str
    name: str
    observations: str
    features: list[str]
    """Names of feature services, ``view`` or ``view:feature``."""
    start: datetime
    end: datetime
    labels: bool = True
    """Rows without a label (never known, or sealed) are kept; their label is null."""
    batch: str = ""
    """Only observations from this batch."""


class Coverage(Struct):
    """How many observations found a value in a view, how many only an expired one, and how old the values were."""

    view: str
    rows: int
    found: int
    expired: int
    median_age_seconds: float | None = None


class Dataset(Struct):
    id: str
    project: str
    name: str
    rows: int
    observations: str
    id_column: str
    time_column: str
    inputs: list[str]
    features: list[str]
    """Columns of the features, ``view__feature`` each; a model's columns are `inputs` + `features`."""
    label: str
    labelled: int
    start: datetime
    end: datetime
    content_sha256: str
    revision: int
    """Revision of the definitions it was built with."""
    batches: list[str]
    coverage: list[Coverage]
    at: datetime
    origin: Origin
    seconds: float = 0.0
    label_known: str = ""
    """Column of when the label was known, if the observations have one."""


class SplitRequest(Struct):
    """A split of a dataset to be kept: the recipe that replays it, and what it gave."""

    recipe: dict[str, Any]
    digest: str
    """SHA-256 over which rows are in which part; a replay has to give it again."""
    rows: dict[str, int]
    """Part (of folds ``0 train``, ``0 valid``, …) -> its rows."""
    warnings: list[str] = []


class KeptSplit(Struct):
    dataset: str
    recipe: dict[str, Any]
    digest: str
    rows: dict[str, int]
    warnings: list[str]
    at: datetime
    origin: Origin
