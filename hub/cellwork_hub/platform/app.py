"""The platform service: one process, a router a module."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread

from cellwork import db
from cellwork_hub import gauges, records
from cellwork_hub.auth import HubTokens
from cellwork_hub.context import Context
from cellwork_hub.edge import Service
from cellwork_hub.platform import (
    alert_deeds,
    alerts,
    batches,
    business,
    cards,
    dashboard_views,
    dashboards,
    dataset_builds,
    datasets,
    drift,
    erasure,
    evaluations,
    feature_history,
    feature_online,
    feature_proposals,
    feature_twins,
    features,
    feedback,
    gate,
    monitors,
    outcomes,
    search,
    secrets,
    service,
    silences,
    skew,
    snapshots,
    splits,
    statistics,
    store,
    transformers,
    users,
)
from cellwork_hub.platform.state import State

ROUTERS = (
    batches,
    features,
    datasets,
    evaluations,
    outcomes,
    splits,
    statistics,
    feature_online,
    store,
    users,
    search,
    alerts,
    monitors,
    drift,
    erasure,
    secrets,
    feature_proposals,
    feature_history,
    transformers,
    skew,
    alert_deeds,
    gate,
    cards,
    service,
    snapshots,
    dashboards,
    business,
    feedback,
    dataset_builds,
    feature_twins,
    dashboard_views,
    silences,
)
MIGRATIONS = [records.MIGRATION, *(router.MIGRATION for router in ROUTERS)]
"""Append only: a number, once used, keeps its meaning."""


def build(context: Context) -> Service:
    """Return the service on the database and folders of `context`."""
    engine = db.open_database(context.database_url("platform"), MIGRATIONS)
    state = State(engine, context.home, context, on_batch=(features.enqueue,))
    worker, watch, deeds = features.Worker(state), monitors.Watch(state), alert_deeds.Deeds(state)
    again = erasure.Again(state)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await anyio.to_thread.run_sync(outcomes.take_over, state)
        await anyio.to_thread.run_sync(erasure.resume, state)
        worker.start()
        watch.start()
        deeds.start()
        again.start()
        yield
        again.stop()
        deeds.stop()
        watch.stop()
        worker.stop()
        state.close()

    return Service(
        "cellwork",
        [
            *records.routes(state.engine, functools.partial(outcomes.edges, state)),
            *(route for router in ROUTERS for route in router.routes(state)),
        ],
        authorise=HubTokens(
            context.hub_api, context.token("cellwork"), cache_seconds=context.settings.token_cache_seconds
        ),
        lifespan=lifespan,
        most_bytes=context.settings.request_bytes,
        bounded=context.settings.trust == "team",
        more_gauges=lambda: [*gauges.machine(context.home.root), *alerts.gauges(state)],
    )
