"""How an endpoint does as a service, read from the sketches of its serving hours: any percentile of any hour without the log.

Requests that failed are no predictions: they are in the metrics of the inference service, by path and status. The hour is that of the
time a prediction is for, which is when it was made unless a past is replayed.
"""

from __future__ import annotations

from datetime import timedelta

from cellwork.data.sketches import Sketch
from cellwork.errors import NotFound
from cellwork.wire.records import Event
from cellwork.wire.service import EndpointService, Mark, ServiceHour
from cellwork_hub.platform import serving_hours
from cellwork_hub.platform.serving_hours import HOUR, LATENCY, ROUTE
from cellwork_hub.platform.state import State
from cellwork_hub.records import moment
from cellwork_hub.route import Call, Route

PAGE = 1000

MIGRATION: tuple[str, ...] = ()
DAYS = 7
MOST_DAYS = 366


def routes(state: State) -> list[Route]:
    def read(call: Call) -> EndpointService:
        serving_hours.follow(state)
        days = min(max(call.number("days", DAYS), 1), MOST_DAYS)
        return of(state, f"{call.path['project']}/{call.path['name']}", timedelta(days=days))

    return [
        Route("GET", "/api/v1/service/{project}/{name}", read, "monitors:read", None, EndpointService, "Predictions, times and fallbacks of an endpoint by the hour, over its newest ?days=, and its deployments."),
    ]  # fmt: skip


def of(state: State, endpoint: str, window: timedelta) -> EndpointService:
    """Return the hours of the last `window` with a prediction of `endpoint`, of all versions, and what was deployed.

    Raises
    ------
    NotFound
        It has no prediction yet.
    """
    known = serving_hours.versions(state, endpoint)
    if not known:
        raise NotFound("endpoint", endpoint, "has no prediction yet", "look at: cellwork endpoint list")
    end = max(last for *_, last in known) + HOUR
    start = moment(end) - window
    hours = [
        _hour(hour, version, sketch)
        for model, version, _, _ in known
        for hour, sketch in serving_hours.between(state, endpoint, model, version, start, moment(end))
    ]
    return EndpointService(
        endpoint=endpoint, hours=sorted(hours, key=lambda h: (h.start, h.version)), marks=_marks(state, endpoint)
    )


def _hour(hour: int, version: int, sketch: Sketch) -> ServiceHour:
    times, routes = sketch.columns.get(LATENCY), sketch.columns.get(ROUTE)
    counts = routes.counts.items() if routes and routes.counts else {}
    shares = (
        [float(v) / 1000 for v in times.ranks.quantile([0.0, 0.5, 0.95, 0.99, 1.0])]
        if times and times.ranks
        else [None] * 5
    )
    return ServiceHour(
        start=moment(hour), version=version, predictions=sketch.rows, fallbacks=counts.get("fallback", 0),
        least_ms=shares[0], p50_ms=shares[1], p95_ms=shares[2], p99_ms=shares[3], greatest_ms=shares[4],
        mean_ms=times.mean / 1000 if times and times.mean is not None else None,
    )  # fmt: skip


def _marks(state: State, endpoint: str) -> list[Mark]:
    changes: list[Event] = []
    with state.context.client("cellwork") as client:
        while len(changes) % PAGE == 0:
            after = changes[-1].seq if changes else 0
            page = client.records.events(service="inference", name="endpoint.changed", after=after, limit=PAGE)
            changes += page
            if not page:
                break
    return [
        Mark(at=e.at, revision=e.data["revision"], version=e.data["version"], text=e.data["action"])
        for e in changes
        if e.subject == endpoint
    ]
