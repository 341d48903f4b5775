"""Training frames: observations joined point in time with features, their recipe and content hash."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

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
    label: str = ""
    """Name of a label in place of the observations' own."""


class Coverage(Struct):
    """How many observations found a value in a view, why the others did not, and how old the values were.

    `found`, `expired`, `no_key`, `unknown` and `early` add up to `rows`.
    """

    view: str
    rows: int
    found: int
    expired: int
    """The newest value was older than the view's ttl."""
    no_key: int = 0
    """A key or the time is null."""
    unknown: int = 0
    """The view has no row of that entity at all."""
    early: int = 0
    """The entity's first value was known only later."""
    median_age_seconds: float | None = None
    p95_age_seconds: float | None = None
    most_age_seconds: float | None = None


class Late(Struct):
    """How many observations would get a value of a view that arrived after them, if a join ignored arrival, and how much after."""

    view: str
    observations: int
    median_seconds: float | None = None
    most_seconds: float | None = None


class Estimate(Struct):
    """What a join will take, before it is made."""

    observations: int
    feature_rows: int
    result_bytes: int
    work_bytes: int
    """The most it takes at a time beside the result, in as many partitions as it will be made in."""
    partitions: int
    seconds: float
    """Within a factor of three on a machine that is not busy otherwise."""


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
    label_name: str = ""
    """The label it was asked for by name."""
    erased: int = 0
    """Rows that were emptied since, because their subject was erased; `content_sha256` is of the frame as it was built."""


class BuildStatus(Struct):
    """How far a build of a dataset is."""

    id: str
    project: str
    state: Literal["running", "done", "failed", "cancelled"]
    estimate: Estimate | None = None
    """None where the dataset was there before."""
    done: int = 0
    steps: int = 0
    view: str = ""
    """The view that is being joined."""
    dataset: Dataset | None = None
    seconds: float = 0.0
    error: str = ""


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
