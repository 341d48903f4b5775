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

from cellwork import db, scopes
from cellwork.client import Client
from cellwork.home import Home
from cellwork.settings import Settings
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
from cellwork_hub.edge import Service
from cellwork_hub.platform import (
    batches,
    datasets,
    erasure,
    feature_history,
    feature_online,
    feature_proposals,
    features,
    search,
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
]
ANYONE = Principal(kind="user", name="ada", scopes=scopes.ALL)


def new_state(folder: Path) -> State:
    home = Home(folder).ensure()
    engine = db.open_database(f"sqlite:///{home.database('platform')}", MIGRATIONS)
    return State(engine, home, Context(Settings(home=folder), {}), on_batch=(features.enqueue,))


@contextmanager
def service(state: State) -> Iterator[Client]:
    """Serve `state` and yield a client of it."""

    async def authorise(scope: Scope) -> Principal:
        return ANYONE

    app = Service(
        "cellwork",
        [
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
                transformers,
            )
            for route in router.routes(state)
        ],
        authorise=authorise,
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started and time.monotonic() < end:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", "token") as client:
        yield client
    server.should_exit = True
    thread.join(20)


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
