"""The jobs service: one process that owns its database; runners come to it over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

from starlette.types import Scope

from cellwork import db
from cellwork.wire.records import Principal
from cellwork_hub import records
from cellwork_hub.auth import HubTokens
from cellwork_hub.context import Context
from cellwork_hub.edge import Service
from cellwork_hub.jobs import backfill, channels, checkpoints, claims, definitions, follow, news, reopen, runs, store
from cellwork_hub.jobs.fires import Ticker
from cellwork_hub.jobs.notices import Sender
from cellwork_hub.jobs.store import Events, State
from cellwork_hub.jobs.tokens import HubRunTokens
from cellwork_hub.preparation import one_user
from cellwork_hub.route import Route

MIGRATIONS = [
    records.MIGRATION,
    store.MIGRATION,
    store.KEPT,
    store.FOLLOWED,
    store.POLICIES,
    store.LANES,
    store.IMAGES,
    store.LABELS,
    store.NO_HISTORY,
    store.SUCCESSES,
]
"""Append only: a number, once used, keeps its meaning."""


def build(context: Context) -> Service:
    """Return the service on the database and folders of `context`."""
    client = context.client("jobs")
    settings = context.settings
    state = State(
        engine=db.open_database(context.database_url("jobs"), MIGRATIONS),
        home=context.home,
        tokens=HubRunTokens(context.hub_api, context.token("jobs")),
        user=one_user(settings) if settings.trust == "personal" else "",
        keep=timedelta(seconds=settings.keep_kernel_seconds),
        keep_bytes=settings.keep_kernel_megabytes << 20,
        keep_most=settings.keep_kernels,
        masks=client.secrets.masks,
        public_url=context.public_url,
        mail_server=settings.mail_server,
        mail_from=settings.mail_from,
    )
    authorise = HubTokens(context.hub_api, context.token("jobs"), cache_seconds=settings.token_cache_seconds)
    return service(
        state,
        lambda after: client.records.events(after=after),
        authorise,
        most_bytes=settings.request_bytes,
        bounded=settings.trust == "team",
    )


def service(
    state: State,
    events: Events,
    authorise: Callable[[Scope], Awaitable[Principal]],
    *,
    most_bytes: int = 256 * 1024 * 1024,
    bounded: bool = False,
) -> Service:
    """Return the service on `state`, firing on `events`, for whom `authorise` knows."""
    ticker, sender = Ticker(state, events), Sender(state)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        ticker.start()
        sender.start()
        yield
        sender.stop()
        ticker.stop()
        state.engine.dispose()

    return Service(
        "jobs",
        [*records.routes(state.engine), *routes(state)],
        authorise=authorise,
        lifespan=lifespan,
        ready=lambda: ticker.alive() and sender.alive(),
        most_bytes=most_bytes,
        bounded=bounded,
    )


def routes(state: State) -> list[Route]:
    return [
        *definitions.routes(state),
        *runs.routes(state),
        *claims.routes(state),
        *reopen.routes(state),
        *channels.routes(state),
        *checkpoints.routes(state),
        *follow.routes(state),
        *news.routes(state),
        *backfill.routes(state),
    ]
