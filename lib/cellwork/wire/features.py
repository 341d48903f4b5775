"""Feature definitions as data: what an author's Feast objects and pipelines say, without their code."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from cellwork.wire import Struct
from cellwork.wire.batches import Batch
from cellwork.wire.datasets import Coverage, Estimate, Late
from cellwork.wire.origin import Origin


class Prepared(Struct):
    """Rows made from raw rows by one read-only SELECT (DuckDB's SQL): at most one output row per row of `sources[0]`.

    It runs batch by batch of `sources[0]`; the other sources are whole (their current batches).
    """

    name: str
    sources: list[str]
    sql: str
    description: str = ""


class Select(Struct, tag="select"):
    """One feature row per prepared row."""

    rows: str
    """Name of the Prepared it reads."""
    event: str
    """Column (UTC) from when on the values are true."""
    known: str
    """Column (UTC) of when they arrived; never before that are they seen."""


class Aggregate(Struct):
    function: Literal["count", "sum", "mean"]
    column: str = ""
    """The numeric column; null values are left out. Empty for `count`."""


class Rolling(Struct, tag="rolling"):
    """Aggregates over the rows of a key whose `event` lies in (g - window, g] and which are `known` by g, at each grid time g.

    Grid times are multiples of `every` since 1970 (UTC). A row is written where a value changes, and at the first grid
    time of a batch. So a value asked for at t is exact for the last grid time at or before t.
    """

    rows: str
    event: str
    known: str
    window: str
    every: str
    aggregates: dict[str, Aggregate]
    until: str = ""
    """Column (UTC) whose greatest value in a batch says how far that batch's grid times go.

    Default: the `at` of observations on the same rows, else `event`. The grid times after it are the next batch's.
    """


class Entity(Struct):
    name: str
    join_keys: list[str]
    description: str = ""


class Field(Struct):
    name: str
    type: str
    """Feast's value type name, e.g. ``Float32``, ``Int64``, ``String``."""
    description: str = ""
    default: Any = None


class View(Struct):
    name: str
    entities: list[str]
    fields: list[Field]
    pipeline: Select | Rolling
    ttl: str = ""
    """After this long a value is too old to be used; empty: never."""
    owner: str = ""
    description: str = ""
    tags: dict[str, str] = {}
    online: bool = True
    schedule: str = ""
    """When batches that came become its rows: a duration (``6h``: at multiples of it since 1970) or five cron fields in UTC. Empty: as they come."""


class FeatureService(Struct):
    name: str
    features: list[str]
    """``view:feature`` each, or ``view`` for all of its features."""
    description: str = ""
    owner: str = ""


class Observations(Struct):
    """What is predicted: one row an observation, with the time at which the prediction is made and, later, its truth."""

    name: str
    rows: str
    """Name of the Prepared it reads."""
    id: str
    """Column that identifies an observation for people and outcomes (not a feature)."""
    at: str
    """Column (UTC): the time of the prediction; no later knowledge is joined."""
    keys: dict[str, str]
    """Join key -> column."""
    inputs: list[str]
    """Columns known at that time that come with the request: features without a store."""
    label: str = ""
    label_known: str = ""
    """Column (UTC) of when the label was known."""
    description: str = ""


class Label(Struct):
    """A truth by name: what came of an observation, found and shared like a feature; `dataset.build(labels="…")` takes it.

    Of several rows of an observation the one known last counts; a value that is not known yet is none.
    """

    name: str
    rows: str
    """Name of the Prepared it reads."""
    id: str
    """Column that says which observation it is of: the values of `Observations.id`."""
    value: str
    """Column of the truth."""
    known: str
    """Column (UTC) of when it was known."""
    owner: str = ""
    description: str = ""
    tags: dict[str, str] = {}


class Definitions(Struct):
    project: str
    prepared: list[Prepared] = []
    entities: list[Entity] = []
    views: list[View] = []
    services: list[FeatureService] = []
    observations: list[Observations] = []
    labels: list[Label] = []
    feast_registry: str = ""
    """Feast's own registry of the same objects, base64 of its protobuf."""


class Applied(Struct):
    project: str
    revision: int
    changed: list[str]
    """Names made new or changed, ``view:weather`` and so on; empty if nothing changed."""
    removed: list[str] = []
    proposal: str = ""
    """Id of the proposal that waits for somebody with `features:apply`; empty if it was applied at once."""


class Proposal(Struct):
    """Definitions that an author wants applied."""

    id: str
    project: str
    by: str
    at: datetime
    state: Literal["open", "accepted", "rejected"]
    changed: list[str] = []
    """Against what was applied when it was made."""
    removed: list[str] = []
    decided_by: str = ""
    base: int = 0
    """The revision it was made against; 0: there was none, or the platform did not keep it yet."""


class PipelineRun(Struct):
    id: str
    project: str
    view: str
    batch: str
    """The batch that caused it."""
    state: Literal["scheduled", "queued", "running", "waiting", "succeeded", "failed"]
    """`scheduled`: its view's schedule is not due yet. `waiting`: one of its sources has no batch yet, `error` says which; its first batch lets the run go on."""
    feature_set: str = ""
    """``fset_…``: content id of definition and input batches."""
    inputs: list[str] = []
    rows: int = 0
    seconds: float = 0.0
    error: str = ""
    at: datetime | None = None


class OnlineRequest(Struct):
    project: str
    features: list[str]
    entities: dict[str, list[Any]]
    """Join key -> one value an entity row, all of one length."""


class OnlineValue(Struct):
    """The newest values of one view for one entity; all None if there is none."""

    values: dict[str, Any]
    event: datetime | None = None
    created: datetime | None = None
    batch: str = ""


class OnlineAnswer(Struct):
    views: dict[str, list[OnlineValue]]
    """View -> one value an entity row, in the order asked."""


class MaterializeRequest(Struct):
    """Write online what feature rows with start < event <= end say; a view of which the store has nothing is written whole."""

    project: str
    views: list[str] = []
    """Default: all that are online."""
    start: datetime | None = None
    """Default: where the last one ended; at the first, the beginning."""
    end: datetime | None = None
    """Default now; never in the future."""


class Materialized(Struct):
    view: str
    start: datetime | None
    end: datetime
    rows: int
    """Feature rows of that time."""
    entities: int
    written: int
    """Values that were newer than what was online; the rest was there already."""


class PushRequest(Struct):
    """Rows for a view, past its pipeline: join keys, features, event_timestamp and (default now) created_timestamp."""

    project: str
    rows: list[dict[str, Any]]
    origin: Origin = Origin()
    distinct: bool = False
    """Leave out rows that the view has already, and rows sent twice; what a stream delivers again changes nothing."""


class Streamed(Struct):
    """What became of events that were pushed to a raw data set."""

    batch: Batch
    new: bool
    """False: the same events were there under that name."""
    online: dict[str, int] = {}
    """View -> values that are newer than what was online."""
    behind: dict[str, str] = {}
    """View -> why its values come only with its pipeline run."""


class HistoryStatus(Struct):
    """How far a point-in-time join of somebody's own rows is."""

    id: str
    state: Literal["running", "done", "failed", "cancelled"]
    estimate: Estimate
    done: int = 0
    steps: int = 0
    view: str = ""
    """The view that is being joined."""
    coverage: list[Coverage] = []
    late: list[Late] = []
    seconds: float = 0.0
    error: str = ""
