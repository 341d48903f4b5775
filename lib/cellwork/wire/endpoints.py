"""Endpoints: route table, predictions, their log."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from cellwork.wire import Problem, Struct
from cellwork.wire.evaluations import VersionRef
from cellwork.wire.origin import Origin

RouteKind = Literal["live", "canary", "shadow", "fallback", "precomputed", "pinned"]


class Deploy(Struct):
    """Give the endpoint this version. `revision` is what the caller saw (0 for a new endpoint); None takes what is there."""

    version: int
    model: str = ""
    """Full name; empty: the endpoint's own name."""
    revision: int | None = None
    reason: str = ""


class ArmWish(Struct):
    """Put a version beside the live one, or change its place there. Without weight, units and conditions it is pinned: asked only by name.

    `revision` is what the caller saw; None takes what is there.
    """

    model: str = ""
    """Full name; empty: the endpoint's own name."""
    weight: float = 0.0
    """The share of units, from 0 to 1, that it answers."""
    units: list[str] = []
    """It answers these whatever the weight."""
    when: dict[str, list[str]] = {}
    """It answers requests whose entities or features have one of these values, as text, under every name here."""
    shadow: bool = False
    """It is asked too, in the background; its scores are logged and never answered."""
    salt: str | None = None
    """Another salt draws the units anew; None keeps what is there."""
    revision: int | None = None
    reason: str = ""


class Arm(Struct):
    """A version beside the live one; see `ArmWish`."""

    version: VersionRef
    deployment: str
    weight: float = 0.0
    units: list[str] = []
    when: dict[str, list[str]] = {}
    shadow: bool = False


class RolloutWish(Struct):
    """Bring a version to all requests in stages; it goes on, or back, by itself.

    `revision` is what the caller saw; None takes what is there.
    """

    version: int
    model: str = ""
    stages: list[float] = msgspec.field(default_factory=lambda: [0.01, 0.1, 0.5, 1.0])
    """Shares of units, rising; the last is 1."""
    hold_seconds: float = 600.0
    """The least time of a stage."""
    least: int = 200
    """The least number of requests that it must answer in a stage."""
    errors: float = 0.01
    """It may fail this share of requests more than the live version."""
    slower: float = 2.0
    """Its 95th percentile may be this many times the live version's."""
    scores: float = 0.2
    """Its scores' distribution may be this far (KS) from the live version's."""
    revision: int | None = None
    reason: str = ""


class InputRule(Struct):
    """What becomes of values that the model was not made for; see `cellwork.serving.inputs`."""

    ranges: dict[str, list[float]] = {}
    """Number -> its least and its greatest value."""
    known: dict[str, list[str]] = {}
    """Text -> the values that were seen."""
    then: Literal["default", "fallback", "refuse"] = "default"


class InputWish(Struct):
    """Give an endpoint this rule, or none. `revision` is what the caller saw; None takes what is there."""

    rule: InputRule | None = None
    revision: int | None = None
    reason: str = ""


class Rollout(Struct):
    """A rollout as it stands; see `RolloutWish`."""

    version: VersionRef
    stages: list[float]
    hold_seconds: float
    least: int
    errors: float
    slower: float
    scores: float
    began: datetime
    since: datetime
    """When its stage began."""
    stage: int = 0
    state: Literal["running", "promoted", "back", "stopped"] = "running"
    said: str = ""
    """Why it is where it is."""


class RouteTable(Struct):
    endpoint: str
    revision: int
    live: VersionRef
    previous: VersionRef | None = None
    canary: list[Arm] = []
    """Those that answer a part of the requests, or are pinned; in the order in which they are asked."""
    shadow: list[Arm] = []
    salt: str = ""
    rollout: Rollout | None = None
    """The one that runs, or how the last one ended."""
    input: InputRule | None = None
    service: list[str] = []
    """The feature references that requests by entity id are filled from."""
    deployment: str = ""
    at: datetime | None = None
    by: str = ""


class EndpointStatus(Struct):
    routes: RouteTable
    ready: bool
    predictor: str = ""
    """How the live version computes, e.g. ``scikit-learn in a child process``."""
    requests: int = 0
    errors: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None
    columns: list[str] = []
    """What the live version takes, in its order."""
    breaker: str = ""
    """Why the live version is taken out and the previous one answers; empty while it serves."""


class Deployment(Struct):
    id: str
    endpoint: str
    revision: int
    version: VersionRef
    checks: list[str]
    by: str
    at: datetime
    origin: Origin


class Row(Struct):
    entities: dict[str, Any] = {}
    features: dict[str, Any] = {}
    observation: str = ""
    """The observation's own id, under which its outcome will arrive. Alone it asks for what a batch has scored of it."""
    at: datetime | None = None
    """The time the prediction is for; default now."""
    feature_events: dict[str, datetime | None] = {}
    """View -> event time of the values given in `features` (a batch-scored row brings its own)."""
    feature_batches: dict[str, str] = {}
    key: str = ""
    """The row's own idempotency key; without one it is the request's id and the row's place in it."""


class Request(Struct):
    """One or many rows to score. Per row: `entities` (join key -> id) are looked up online, `features` add or override."""

    rows: list[Row]
    id: str = ""
    """The idempotency key; row k of a repeated id returns the logged answer."""
    batch_run: str = ""
    """The run that scores a batch; its predictions carry it and the times in the rows."""
    unit: str = ""
    """Who or what is served, such as a user's id: it stays with its arm. Default: the entities of the first row."""
    version: int | None = None
    """Ask this version of those at hand, and no other."""
    deadline_ms: int | None = None
    """How long the version may take before another answers; at most the endpoint's own."""
    explain: bool = False
    """Say what each column contributed to each score; at most 100 rows, of a compiled version."""


class Explanation(Struct):
    """What made a score: `base` and `contributions` add up to the raw score, whose `scale` is named; see `cellwork.models.compiled.explain`."""

    scale: Literal["score", "log-odds", "log"]
    base: float
    contributions: dict[str, float]


class Output(Struct):
    id: str
    score: float
    defaults: list[str] = []
    """Features that had no value."""
    feature_age_s: float | None = None
    """Age of the oldest feature value used."""
    repeated: bool = False
    """It was in the log already: this is what was answered then."""
    explanation: Explanation | None = None
    """If it was asked for and this row was scored now."""


class Answer(Struct):
    outputs: list[Output]
    model: VersionRef
    revision: int
    route: RouteKind = "live"
    reason: str = ""
    latency_ms: float = 0.0


class Submit(Struct):
    """A request that may be answered later. `webhook` gets the `Submission`, signed, when it is answered or has failed."""

    request: Request
    webhook: str = ""


class Submission(Struct):
    id: str
    endpoint: str
    caller: str
    at: datetime
    state: Literal["submitted", "done", "failed", "erased"] = "submitted"
    """`erased`: one of its rows was an erased subject's; request and answer are gone, and `problem` says so."""
    answer: Answer | None = None
    problem: Problem | None = None
    """Why it failed."""
    webhook: str = ""
    """The host that is yet to be told."""


class Prediction(Struct):
    """A row of the prediction log."""

    id: str
    seq: int
    at: datetime
    logged_at: datetime
    endpoint: str
    revision: int
    version: VersionRef
    deployment: str
    route: RouteKind
    reason: str
    entities: dict[str, Any]
    features: dict[str, Any]
    feature_events: dict[str, datetime | None]
    feature_batches: dict[str, str]
    defaults: list[str]
    score: float | None
    """None of a prediction that was erased."""
    latency_us: int
    caller: str
    observation: str = ""
    batch_run: str = ""
    request_id: str = ""
    unit: str = ""
    """As the request named it."""
    tried: str = ""
    """The deployment that should have answered and did not, of a fallback."""
    erased: str = ""
    """The erasure that emptied it: only its id, times, version, route and latency are left."""


class Forget(Struct):
    """Empty what the prediction log holds of a subject; see `cellwork.serving.forgetting` for who is meant."""

    erasure: str
    value: str
    """The subject, as text."""
    names: list[str]
    """Entities, and features by their own name or behind `view__`, whose value names the subject."""
    observations: dict[str, list[str]] = {}
    """Endpoint -> observations that are the subject's."""


class Emptied(Struct):
    """A prediction of an erased subject, with what is left of it."""

    id: str
    endpoint: str
    model: str
    version: int
    at: datetime
    route: RouteKind


class Forgotten(Struct):
    """What one erasure has emptied in the inference service, over all its attempts."""

    predictions: list[Emptied] = []
    archived: int = 0
    """How many of them stand in Parquet."""
    files: int = 0
    """Parquet files with such rows: each was written anew."""
    submissions: int = 0
    left: list[str] = []
    """What could not be reached, in sentences."""
