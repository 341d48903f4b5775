"""A platform service with batches and features only, on a free port, and a small airport to try it on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import uvicorn
from starlette.types import Scope

from cellwork import db, files, scopes
from cellwork.client import Client
from cellwork.errors import Unavailable
from cellwork.home import Home
from cellwork.serving.log import PredictionLog
from cellwork.settings import Settings
from cellwork.wire.endpoints import EndpointStatus, Forget, Forgotten, Prediction, RouteTable
from cellwork.wire.features import (
    Aggregate,
    Definitions,
    Entity,
    FeatureService,
    Field,
    Observations,
    Prepared,
    Rolling,
    Select,
    View,
)  # fmt: skip
from cellwork.wire.records import Principal
from cellwork_hub import records
from cellwork_hub.context import Context
from cellwork_hub.edge import Call, Route, Service
from cellwork_hub.inference import app as inference
from cellwork_hub.inference import forgetting
from cellwork_hub.platform import (
    batches,
    datasets,
    drift,
    erasure,
    feature_history,
    feature_online,
    feature_proposals,
    feature_twins,
    features,
    feedback,
    outcomes,
    search,
    snapshots,
    statistics,
    store,
    transformers,
)
from cellwork_hub.platform.state import State

DAY = datetime(2013, 6, 1, tzinfo=UTC)
MIGRATIONS = [
    records.MIGRATION,
    batches.MIGRATION,
    features.MIGRATION,
    feature_online.MIGRATION,
    datasets.MIGRATION,
    erasure.MIGRATION,
    transformers.MIGRATION,
    feature_proposals.MIGRATION,
    outcomes.MIGRATION,
    drift.MIGRATION,
    feedback.MIGRATION,
    snapshots.MIGRATION,
]
ANYONE = Principal(kind="user", name="ada", scopes=scopes.ALL)


def new_state(folder: Path) -> State:
    home = Home(folder).ensure()
    engine = db.open_database(f"sqlite:///{home.database('platform')}", MIGRATIONS)
    files.write(home.secret("cellwork-token"), "token", mode=0o600)
    return State(engine, home, Context(Settings(home=folder), {"public": 1}), on_batch=(features.enqueue,))


class Both(Service):
    """One service under two names: the platform's and the inference service's paths."""

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        if scope["type"] == "http":
            scope["path"] = scope["path"].replace("/services/inference", "/services/cellwork")
        await super().__call__(scope, receive, send)


class Predicted:
    """The inference service's twin: its real log and its own way of forgetting; `tables` are what it says of endpoints."""

    def __init__(self, state: State) -> None:
        self.engine = db.open_database(f"sqlite:///{state.home.database('inference')}", inference.MIGRATIONS)
        self.log = PredictionLog(self.engine, state.home.segments(), state.home.archived_predictions())
        self.tables: list[RouteTable] = []
        self.away = False

    def routes(self) -> list[Route]:
        def after(call: Call) -> list[Prediction]:
            endpoint, brief = call.query.get("endpoint", ""), bool(call.query.get("brief"))
            return self.log.after(call.number("after", 0), endpoint=endpoint, limit=call.limit(1000), brief=brief)

        def endpoints(call: Call) -> list[EndpointStatus]:
            if self.away:
                raise Unavailable("service", "inference", "is away", "wait")
            return [EndpointStatus(routes=table, ready=True) for table in self.tables]

        def forget(call: Call) -> Forgotten:
            return forgetting.forget(self, call, call.path["project"], call.body)  # type: ignore[arg-type]

        def one(call: Call) -> Prediction:
            return self.log.get(call.path["prediction"])

        return [
            Route("GET", "/predictions/{prediction}", one, "endpoints:read", answer=Prediction),
            Route("GET", "/api/v1/predictions", after, "endpoints:read", answer=list[Prediction]),
            Route("GET", "/api/v1/endpoints", endpoints, "endpoints:read", answer=list[EndpointStatus]),
            Route("POST", "/api/v1/forget/{project}", forget, "admin", body=Forget, answer=Forgotten),
        ]


@contextmanager
def service(state: State, predicted: Predicted | None = None) -> Iterator[Client]:
    """Serve `state`, with the inference service's twin, and yield a client of it; the context of `state` has its port."""

    async def authorise(scope: Scope) -> Principal:
        return ANYONE

    twin = predicted or Predicted(state)
    app = Both(
        "cellwork",
        [
            *twin.routes(),
            *(
                route
                for router in (
                    batches,
                    features,
                    statistics,
                    feature_online,
                    store,
                    search,
                    erasure,
                    feature_proposals,
                    feature_history,
                    feature_twins,
                    transformers,
                    snapshots,
                )
                for route in router.routes(state)
            ),
        ],
        authorise=authorise,
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not server.started and time.monotonic() < end:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    state.context.ports["public"] = port
    with Client(f"http://127.0.0.1:{port}", "token") as client:
        yield client
    state.context.ports["public"] = 1
    server.should_exit = True
    thread.join(60)
    if predicted is None:
        twin.engine.dispose()


def flights(day: int, *, delay: float = 10.0, count: int = 24) -> pl.DataFrame:
    """Return a flight an hour of the `day` after `DAY`, alternating between two airports, landed two hours later."""
    hours = range(count)
    return pl.DataFrame(
        {
            "id": [day * 100 + hour for hour in hours],
            "origin": ["JFK" if hour % 2 else "LGA" for hour in hours],
            "planned": [DAY + timedelta(days=day, hours=hour) for hour in hours],
            "delay": [delay + hour for hour in hours],
        },
        schema_overrides={"planned": pl.Datetime("us", "UTC")},
    )


def definitions(project: str = "air", *, window: str = "6h") -> Definitions:
    landed = "SELECT *, planned + INTERVAL 2 HOUR AS landed, planned - INTERVAL 1 HOUR AS asked FROM flights"
    rolling = Rolling(
        rows="landed", event="planned", known="landed", window=window, every="1h",
        aggregates={"flights": Aggregate(function="count"), "delay": Aggregate(function="mean", column="delay")},
    )  # fmt: skip
    return Definitions(
        project=project,
        prepared=[Prepared(name="landed", sources=["flights"], sql=landed)],
        entities=[Entity(name="origin", join_keys=["origin"]), Entity(name="flight", join_keys=["id"])],
        views=[
            View(
                name="late", entities=["origin"], pipeline=rolling,
                fields=[Field(name="flights", type="Int64"), Field(name="delay", type="Float64")],
            ),
            View(
                name="plan", entities=["flight"], pipeline=Select(rows="landed", event="asked", known="asked"),
                fields=[Field(name="delay", type="Float32")],
            ),
        ],
        services=[FeatureService(name="all", features=["late", "plan:delay"])],
        observations=[
            Observations(name="departures", rows="landed", id="id", at="asked", keys={"origin": "origin"}, inputs=[], label="delay", label_known="landed")
        ],
    )  # fmt: skip


def work(state: State) -> int:
    """Execute the queued pipeline runs here and now; returns how many."""
    from cellwork_hub.platform.feature_worker import step

    count = 0
    while step(state):
        count += 1
    return count
