"""The inference service: endpoints, predictions and their log, in one process; models compute in children of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import Scope

from cellwork import db, ids
from cellwork.errors import BadInput
from cellwork.serving import archive, log
from cellwork.serving.endpoint import DEADLINE_SECONDS, QUEUE_ROWS
from cellwork.serving.plan import Lookup
from cellwork.wire import Struct
from cellwork.wire.endpoints import (
    Answer,
    ArmWish,
    Deploy,
    Deployment,
    EndpointStatus,
    InputWish,
    Prediction,
    Request,
    RolloutWish,
    RouteTable,
)
from cellwork.wire.records import Principal
from cellwork_hub import records
from cellwork_hub.auth import HubTokens
from cellwork_hub.context import Context
from cellwork_hub.edge import Service
from cellwork_hub.inference import (
    arms,
    deferred,
    forgetting,
    inputs,
    invocations,
    keeper,
    keys,
    online,
    open_inference,
    rollouts,
    table,
)
from cellwork_hub.inference.deploy import Endpoints
from cellwork_hub.inference.door import FrontDoor
from cellwork_hub.inference.grpc_door import GrpcDoor
from cellwork_hub.inference.registry import PlatformRegistry, Registry
from cellwork_hub.inference.table import Entry
from cellwork_hub.inference.tally import Tally
from cellwork_hub.route import Call, Route, visible

MIGRATIONS = [
    records.MIGRATION,
    table.MIGRATION,
    log.MIGRATION,
    log.SEGMENTS_MIGRATION,
    table.ROUTES_MIGRATION,
    log.ROUTES_MIGRATION,
    keys.MIGRATION,
    deferred.MIGRATION,
    log.OBSERVATIONS_MIGRATION,
    archive.MIGRATION,
    log.ERASED_MIGRATION,
]
"""Append only: a number, once used, keeps its meaning."""
SETTLE_SECONDS = 20.0
"""How long a start waits for the predictors it had; after that they come up while it serves."""


class Back(Struct):
    """Serve the previous version again. `revision` is what the caller saw; None takes what is there."""

    reason: str = ""
    revision: int | None = None


def build(
    context: Context,
    *,
    authorise: Callable[[Scope], Awaitable[Principal]] | None = None,
    registry: Registry | None = None,
    lookup: Lookup | None = None,
    deadline: float = DEADLINE_SECONDS,
    worker: int | None = None,
    begin: Callable[[Endpoints], Awaitable[None]] | None = None,
) -> FrontDoor:
    """Return the service on the database and folders of `context`; as `worker`, one of several processes of it.

    `begin` runs once, when what was served before is served again.
    """
    url, chosen = context.database_url("inference"), context.settings
    engine = db.open_database(url, MIGRATIONS)
    endpoints = Endpoints(
        engine,
        context.home,
        registry or PlatformRegistry(context.client("inference")),
        lookup or online.Lookup(context.home, context.settings.online_url),
        deadline=deadline,
        megabytes=context.settings.predictor_megabytes,
    )
    later = deferred.Deferred(engine, endpoints, context.home, context.settings.webhook_hosts)
    settled = False

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        nonlocal settled
        tally.open()
        await endpoints.restore()
        if begin is not None:
            await begin(endpoints)
        await endpoints.settle(SETTLE_SECONDS)
        if grpc is not None:
            await grpc.open()
        settled = True
        works = [tally.keep(), *([endpoints.follow()] if worker is not None else [])]
        works += (
            [keeper.keep(url, context.home, chosen.log_days), rollouts.drive(endpoints), later.drive()]
            if not worker
            else []
        )
        background = [asyncio.create_task(work) for work in works]
        yield
        if grpc is not None:
            await grpc.close()
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await endpoints.close()
        tally.close()
        engine.dispose()

    service = Service(
        "inference",
        [*records.routes(engine), *routes(endpoints, later)],
        authorise=keys.Keys(engine, authorise or _hub(context)),
        lifespan=lifespan,
        ready=lambda: settled,
        most_bytes=context.settings.request_bytes,
        bounded=context.settings.trust == "team",
        more_gauges=lambda: tally.gauges(),
    )
    tally = Tally(context.home.tallies(), service.counts, service.seconds, lambda: endpoints.waiting_rows, QUEUE_ROWS)
    service.totals = tally.totals
    door = FrontDoor(service, endpoints, most_per_second=context.settings.caller_requests_per_second)
    grpc = GrpcDoor(door, f"{chosen.host}:{chosen.grpc_port}", chosen.request_bytes) if chosen.grpc_port else None
    return door


def _hub(context: Context) -> HubTokens:
    return HubTokens(context.hub_api, context.token("inference"), cache_seconds=context.settings.token_cache_seconds)


def routes(endpoints: Endpoints, later: deferred.Deferred) -> list[Route]:
    own = [*_management(endpoints), *_predictions(endpoints), *deferred.routes(later), *keys.routes(endpoints)]
    return [*own, *open_inference.routes(endpoints), *forgetting.routes(endpoints)]


def _name(call: Call) -> str:
    return "/".join(ids.split_name(f"{call.path['project']}/{call.path['name']}"))


def _dotted(call: Call) -> str:
    """Return the endpoint of a path with ``project.name``, whose project the caller may enter."""
    project, _, name = call.path["model"].partition(".")
    call.enter(project)
    return "/".join(ids.split_name(f"{project}/{name}"))


def _version(call: Call) -> int:
    text = call.path["version"]
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise BadInput("version", text, "is not a version's number", "write digits only")
    return int(text)


def _management(endpoints: Endpoints) -> list[Route]:
    async def deploy(call: Call) -> RouteTable:
        wish: Deploy = call.body
        return (await endpoints.deploy(call, _name(call), wish)).wire()

    async def rollback(call: Call) -> RouteTable:
        wish: Back = call.body
        return (await endpoints.rollback(call, _name(call), wish.reason, seen=wish.revision)).wire()

    async def put_arm(call: Call) -> RouteTable:
        wish: ArmWish = call.body
        return (await arms.put(endpoints, call, _name(call), _version(call), wish)).wire()

    async def remove_arm(call: Call) -> RouteTable:
        seen = call.number("revision", -1)
        entry = await arms.remove(
            endpoints, call, _name(call), _version(call), model=call.query.get("model", ""), reason=call.query.get("reason", ""),
            revision=seen if seen >= 0 else None,
        )  # fmt: skip
        return entry.wire()

    async def roll_out(call: Call) -> RouteTable:
        wish: RolloutWish = call.body
        return (await rollouts.start(endpoints, call, _name(call), wish)).wire()

    async def stop_rollout(call: Call) -> RouteTable:
        return (await rollouts.stop(endpoints, call, _name(call), call.query.get("reason", ""))).wire()

    async def put_input(call: Call) -> RouteTable:
        wish: InputWish = call.body
        return (await inputs.put(endpoints, call, _name(call), wish)).wire()

    def listing(call: Call) -> list[EndpointStatus]:
        call.may_enter("")
        return [_status(endpoints, e) for e in endpoints.table.all() if call.may_enter(e.name.partition("/")[0])]

    def show(call: Call) -> EndpointStatus:
        return _status(endpoints, endpoints.table.require(_name(call)))

    def deployment(call: Call) -> Deployment:
        record = endpoints.table.deployment(call.path["deployment"]).record
        call.enter(record.endpoint.partition("/")[0])
        return record

    one = "/api/v1/endpoints/{project}/{name}"
    return [
        Route("PUT", one, deploy, "endpoints:write", Deploy, RouteTable, "Give the endpoint a version that passes the gate and the sanity test."),
        Route("POST", one + "/rollback", rollback, "endpoints:write", Back, RouteTable, "Serve the previous version again."),
        Route("PUT", one + "/arms/{version}", put_arm, "endpoints:write", ArmWish, RouteTable, "Put a version beside the live one: canary, shadow or pinned."),
        Route("DELETE", one + "/arms/{version}", remove_arm, "endpoints:write", None, RouteTable, "Take a version from beside the live one."),
        Route("PUT", one + "/rollout", roll_out, "endpoints:write", RolloutWish, RouteTable, "Bring a version to all requests in stages; it goes on or back by itself."),
        Route("DELETE", one + "/rollout", stop_rollout, "endpoints:write", None, RouteTable, "Stop a rollout and take its version out."),
        Route("PUT", one + "/input", put_input, "endpoints:write", InputWish, RouteTable, "Set what becomes of values that are out of range or were never seen."),
        Route("GET", "/api/v1/endpoints", listing, "endpoints:read", None, list[EndpointStatus], "All endpoints."),
        Route("GET", one, show, "endpoints:read", None, EndpointStatus, "One endpoint."),
        Route("GET", "/api/v1/deployments/{deployment}", deployment, "endpoints:read", None, Deployment, "A deployment as it was made."),
    ]  # fmt: skip


def _predictions(endpoints: Endpoints) -> list[Route]:
    async def predict(call: Call) -> Answer:
        request: Request = call.body
        return await endpoints.get(_name(call)).predict(request, call.principal.name)

    async def invoke(call: Call) -> dict[str, Any]:
        name = _dotted(call) if "model" in call.path else _name(call)
        endpoint = endpoints.get(name)
        rows = invocations.rows(call.body, endpoint.current().live.plan)
        return invocations.answer(await endpoint.predict(Request(rows=rows), call.principal.name))

    def read(call: Call) -> Prediction:
        prediction = endpoints.log.get(call.path["prediction"])
        call.enter(prediction.endpoint.partition("/")[0])
        return prediction

    def after(call: Call) -> list[Prediction]:
        asked = {name: call.query.get(name, "") for name in ("endpoint", "deployment")}
        brief = call.query.get("brief", "") == "true"
        start, most = call.number("after", 0), call.limit(1000)
        call.may_enter("")

        def mine(prediction: Prediction) -> bool:
            return call.may_enter(prediction.endpoint.partition("/")[0])

        if start < 0:
            return [each for each in endpoints.log.after(start, **asked, limit=most, brief=brief) if mine(each)]
        return visible(
            lambda seq, limit: endpoints.log.after(seq, **asked, limit=limit, brief=brief), mine, start, most
        )

    return [
        Route("POST", "/predict/{project}/{name}", predict, "endpoints:predict", Request, Answer, "Score rows; logged before it is answered."),
        Route("POST", "/invocations/{project}/{name}", invoke, "endpoints:predict", bytes, dict[str, Any], "MLflow's scoring protocol."),
        Route("POST", "/endpoints/{model}/invocations", invoke, "endpoints:predict", bytes, dict[str, Any], "The same, as MLflow's own deployments client asks."),
        Route("GET", "/predictions/{prediction}", read, "endpoints:read", None, Prediction, "One logged prediction."),
        Route("GET", "/api/v1/predictions", after, "endpoints:read", None, list[Prediction], "The log after a sequence number, in order."),
    ]  # fmt: skip


def _status(endpoints: Endpoints, entry: Entry) -> EndpointStatus:
    endpoint = endpoints.get(entry.name)
    predictor = endpoint.current().live.predictor
    taken = sorted(endpoint.latencies)
    return EndpointStatus(
        routes=entry.wire(), ready=predictor.ready, predictor=predictor.how or f"{predictor.name} {predictor.message}",
        requests=endpoint.requests, errors=endpoint.errors, columns=entry.live.plan.names,
        breaker=endpoint.breaker(endpoint.current().live).reason,
        p50_ms=round(taken[len(taken) // 2] * 1e3, 3) if taken else None,
        p99_ms=round(taken[min(len(taken) - 1, int(len(taken) * 0.99))] * 1e3, 3) if taken else None,
    )  # fmt: skip
