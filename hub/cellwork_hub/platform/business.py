"""Numbers that a project's own function makes of predictions and outcomes, and the rows it makes them of.

The function runs where its author works, never here: it gets the joined rows over HTTP, and sends a number a day back
(`cellwork.monitoring.business`). So a metric is whatever its author may compute, and its monitor looks at what was sent.
"""

from __future__ import annotations

import math
from datetime import date

import msgspec
import polars as pl
from sqlalchemy import text

from cellwork import clock, ids
from cellwork.errors import BadInput
from cellwork.wire.business import BusinessMetric, MetricPoint, MetricRequest
from cellwork_hub import records
from cellwork_hub.platform import batches, outcomes
from cellwork_hub.platform.state import State
from cellwork_hub.records import micros, moment
from cellwork_hub.route import Call, Route

MIGRATION = (
    "CREATE TABLE metric_points (endpoint TEXT NOT NULL, name TEXT NOT NULL, day TEXT NOT NULL, version INTEGER NOT NULL, value DOUBLE PRECISION NOT NULL, "
    "row_count BIGINT NOT NULL, PRIMARY KEY (endpoint, name, day, version))",
    "CREATE TABLE metrics (endpoint TEXT NOT NULL, name TEXT NOT NULL, unit TEXT NOT NULL, words TEXT NOT NULL, by_whom TEXT NOT NULL, at BIGINT NOT NULL, "
    "PRIMARY KEY (endpoint, name))",
)
MOST_POINTS = 10_000


def routes(state: State) -> list[Route]:
    def endpoint(call: Call) -> str:
        return f"{ids.name(call.path['project'], 'project')}/{ids.name(call.path['name'], 'endpoint')}"

    def put(call: Call) -> BusinessMetric:
        return keep(state, call, endpoint(call), ids.name(call.path["metric"], "metric"))

    def read(call: Call) -> list[BusinessMetric]:
        return of(state, endpoint(call))

    def joined(call: Call) -> bytes:
        outcomes.mirror(state)
        start, end = (micros(clock.utc(call.query[k])) if call.query.get(k) else None for k in ("start", "end"))
        return batches.parquet(rows(state, endpoint(call), start, end), call)

    return [
        Route("PUT", "/api/v1/metrics/{project}/{name}/{metric}", put, "monitors:write", MetricRequest, BusinessMetric, "Keep numbers by day of an endpoint, made by the caller's own function."),
        Route("GET", "/api/v1/metrics/{project}/{name}", read, "monitors:read", None, list[BusinessMetric], "The business metrics of an endpoint."),
        Route("GET", "/api/v1/joined/{project}/{name}", joined, "monitors:read", None, bytes, "Predictions with their outcomes as parquet: prediction, observation, model, version, at, score, outcome, arrived_at (?start=, ?end=)."),
    ]  # fmt: skip


def keep(state: State, call: Call, endpoint: str, name: str) -> BusinessMetric:
    request: MetricRequest = call.body
    _check(request, name)
    values = {"e": endpoint, "n": name}
    with state.engine.begin() as db:
        db.execute(
            text(
                "INSERT INTO metrics VALUES (:e, :n, :unit, :words, :by, :at) ON CONFLICT (endpoint, name) DO UPDATE SET unit = excluded.unit, "
                "words = excluded.words, by_whom = excluded.by_whom, at = excluded.at"
            ),
            {
                **values,
                "unit": request.unit,
                "words": request.words,
                "by": call.principal.name,
                "at": micros(clock.now()),
            },
        )
        if request.points:
            db.execute(
                text(
                    "INSERT INTO metric_points VALUES (:e, :n, :day, :version, :value, :rows) "
                    "ON CONFLICT (endpoint, name, day, version) DO UPDATE SET value = excluded.value, row_count = excluded.row_count"
                ),
                [{**values, **msgspec.structs.asdict(point)} for point in request.points],
            )
        records.audit(db, call, "metric.keep", f"{endpoint}:{name}", after=len(request.points))
    return next(each for each in of(state, endpoint) if each.name == name)


def _check(request: MetricRequest, name: str) -> None:
    if len(request.points) > MOST_POINTS:
        raise BadInput(
            f"points of metric {name!r}", len(request.points), f"are more than {MOST_POINTS:,}", "send fewer at once"
        )
    for point in request.points:
        try:
            day = date.fromisoformat(point.day).isoformat()
        except ValueError:
            day = ""
        if day != point.day:  # they are compared as texts
            raise BadInput(f"day of metric {name!r}", point.day, "is no day", "write 2026-12-24")
        if not math.isfinite(point.value):
            raise BadInput(
                f"value of metric {name!r}", point.value, f"on {point.day} is no number", "leave the day out"
            )


def of(state: State, endpoint: str) -> list[BusinessMetric]:
    """Return the metrics of `endpoint` with their points in order of days."""
    with state.engine.connect() as db:
        known = (
            db.execute(text("SELECT * FROM metrics WHERE endpoint = :e ORDER BY name"), {"e": endpoint})
            .mappings()
            .all()
        )
        points = db.execute(
            text("SELECT * FROM metric_points WHERE endpoint = :e ORDER BY day, version"), {"e": endpoint}
        ).all()
    return [
        BusinessMetric(
            endpoint=endpoint, name=row["name"], unit=row["unit"], words=row["words"], by=row["by_whom"], at=moment(row["at"]),
            points=[MetricPoint(day=p.day, value=p.value, rows=p.row_count, version=p.version) for p in points if p.name == row["name"]],
        )
        for row in known
    ]  # fmt: skip


def rows(state: State, endpoint: str, start: int | None = None, end: int | None = None) -> pl.DataFrame:
    """Return predictions whose outcome is known, each observation and version of a model once; times in microseconds since 1970, end excluded."""
    query = (
        "SELECT p.id AS prediction, p.observation, p.model, p.version, p.ts AS at, p.score, j.outcome, j.arrived_at FROM joined j "
        "JOIN predictions p ON p.seq = j.seq AND p.key = j.key WHERE j.endpoint = $1 AND j.counts AND j.ts >= $2 AND j.ts < $3 ORDER BY p.seq"
    )
    found = state.outcomes.rows(query, endpoint, start or -(2**62), end or 2**62)
    return found.with_columns(pl.from_epoch(name, "us").dt.replace_time_zone("UTC") for name in ("at", "arrived_at"))
