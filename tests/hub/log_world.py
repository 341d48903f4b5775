"""A prediction log and the platform's watching of it, both real, in one small service without a hub."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import serving_world as world

from cellwork import db, ids
from cellwork.serving import log
from cellwork.serving.log import PredictionLog
from cellwork.wire.endpoints import Prediction, RouteKind
from cellwork.wire.evaluations import VersionRef
from cellwork_hub import records
from cellwork_hub.context import Context
from cellwork_hub.edge import Call, Route, Service
from cellwork_hub.platform import (
    alert_deeds,
    alerts,
    batches,
    business,
    dashboard_views,
    dashboards,
    datasets,
    drift,
    evaluations,
    feedback,
    monitors,
    outcomes,
    service,
    silences,
    snapshots,
)
from cellwork_hub.platform.state import State

DAY = datetime(2024, 5, 1, 12, tzinfo=UTC)
ENDPOINT = "shop/churn"
ROUTERS = (outcomes, alerts, monitors, drift, alert_deeds, service, snapshots, business, feedback, dashboards, silences)
TABLES = batches, datasets, evaluations, *ROUTERS, dashboard_views
MIGRATIONS = [records.MIGRATION, *(each.MIGRATION for each in TABLES)]


class World:
    """A prediction log behind HTTP, and the platform's outcomes beside it: both real, in one small service."""

    def __init__(self, folder: Path) -> None:
        self.log = PredictionLog(
            db.open_database(
                f"sqlite:///{folder}/inference.sqlite",
                [records.MIGRATION, log.MIGRATION, log.ROUTES_MIGRATION, log.ERASED_MIGRATION],
            )
        )
        engine = db.open_database(f"sqlite:///{folder}/platform.sqlite", MIGRATIONS)
        context = world.context(folder / "home")
        port = context.ports["inference"]
        files = context.home.secret("cellwork-token")
        files.write_text("admin")
        files.chmod(0o600)
        self.state = State(engine, context.home, Context(context.settings, {**context.ports, "public": port}))
        self.port, self.count = port, 0

    def service(self) -> Service:
        def after(call: Call) -> list[Prediction]:
            return self.log.after(call.number("after", 0), limit=call.limit(1000), brief=bool(call.query.get("brief")))

        def one(call: Call) -> Prediction:
            return self.log.get(call.path["prediction"])

        routes = [
            Route("GET", "/predictions/{prediction}", one, "endpoints:read", answer=Prediction),
            Route("GET", "/api/v1/predictions", after, "endpoints:read", answer=list[Prediction]),
            *(route for router in ROUTERS for route in router.routes(self.state)),
            *records.routes(self.state.engine, functools.partial(outcomes.edges, self.state)),
        ]
        return _Both("cellwork", routes, authorise=world.authorise)

    def predict(
        self, observation: str, score: float = 0.5, *, version: int = 1, at: datetime = DAY,
        features: dict[str, Any] | None = None, model: str = ENDPOINT,
    ) -> str:  # fmt: skip
        """Append a prediction to the log and return its id."""
        prediction = self.prediction(observation, score, version=version, at=at, features=features, model=model)
        self.log.write([prediction])
        return prediction.id

    def prediction(
        self, observation: str, score: float = 0.5, *, version: int = 1, at: datetime = DAY,
        features: dict[str, Any] | None = None, route: RouteKind = "live", latency_us: int = 1,
        model: str = ENDPOINT,
    ) -> Prediction:  # fmt: skip
        return Prediction(
            id=ids.new("pred"), seq=0, at=at, logged_at=at, endpoint=ENDPOINT, revision=1, deployment="dep_1", route=route,
            version=VersionRef(name=model, version=version), reason="", entities={}, features=features or {}, feature_events={},
            feature_batches={}, defaults=[], score=score, latency_us=latency_us, caller="ada", observation=observation,
        )  # fmt: skip


class _Both(Service):
    """One service under two names: the platform's and the inference service's paths."""

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        if scope["type"] == "http":
            for key in ("path", "raw_path"):
                old, new = ("/services/inference", "/services/cellwork")
                value = scope[key]
                scope[key] = (
                    value.replace(old, new) if isinstance(value, str) else value.replace(old.encode(), new.encode())
                )
        await super().__call__(scope, receive, send)
