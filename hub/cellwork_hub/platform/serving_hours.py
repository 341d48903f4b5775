"""Sketches of what was predicted from: one for each endpoint, version and hour, so that any window is a merge.

The prediction log is the inference service's. Page by page what it has beyond the cursor is sketched and merged into its
hours, in the transaction that moves the cursor: a page counts once, whatever dies. The hour is that of the time a prediction
is for. Shadow answers are left out.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import polars as pl
from sqlalchemy import Connection, text

from cellwork.client import Client
from cellwork.data import sketches
from cellwork.data.sketches import Column, Sketch
from cellwork.errors import Unavailable
from cellwork.serving.plan import OWN
from cellwork.wire.endpoints import Emptied, Prediction
from cellwork_hub.platform.state import State
from cellwork_hub.records import micros

MIGRATION = (
    "CREATE TABLE serving_hours (endpoint TEXT NOT NULL, model TEXT NOT NULL, version INTEGER NOT NULL, hour BIGINT NOT NULL, logged BIGINT NOT NULL, "
    "sketch {blob} NOT NULL, PRIMARY KEY (endpoint, model, version, hour))",
)
HOUR = 3_600_000_000
DAY = 24 * HOUR
SCORE, LATENCY, ROUTE = OWN
OF_SERVICE = (LATENCY, ROUTE)
"""What a sketch says of the service; none of it is what a model predicts from."""
PAGE = 2000
CURSOR = "features"
_following = threading.Lock()

Key = tuple[str, str, int, int]
"""Endpoint, model, version, hour in microseconds since 1970."""


def follow(state: State) -> int:
    """Take in what the prediction log has beyond the cursor; return how many predictions that were.

    While the inference service is away nothing is taken in; it is when it is back.
    """
    new = 0
    with _following, state.context.client("cellwork") as client:
        client.connection.attempts = 1
        while True:
            after = cursor(state)
            try:
                page = client.endpoints.predictions(after=after, limit=PAGE)
            except Unavailable:
                return new
            if not page:
                return new
            _keep(state, page)
            new += len(page)


def cursor(state: State) -> int:
    """Return how far the log was taken in."""
    with state.engine.connect() as db:
        return db.execute(text("SELECT seq FROM mirrored WHERE log = :log"), {"log": CURSOR}).scalar() or 0


def _keep(state: State, page: Sequence[Prediction]) -> None:
    hours: dict[Key, list[Prediction]] = {}
    for p in page:
        if p.route != "shadow":
            hour = micros(p.at) // HOUR * HOUR
            hours.setdefault((p.endpoint, p.version.name, p.version.version, hour), []).append(p)
    made = {key: sketches.of(_frame(rows)) for key, rows in hours.items()}
    with state.engine.begin() as db:
        for key, sketch in made.items():
            _add(db, key, sketch, max(micros(p.logged_at) for p in hours[key]))
        db.execute(
            text("INSERT INTO mirrored VALUES (:log, :seq) ON CONFLICT (log) DO UPDATE SET seq = excluded.seq"),
            {"log": CURSOR, "seq": page[-1].seq},
        )


def _add(db: Connection, key: Key, sketch: Sketch, logged: int) -> None:
    values = dict(zip(("endpoint", "model", "version", "hour"), key, strict=True))
    where = "endpoint = :endpoint AND model = :model AND version = :version AND hour = :hour"
    held = db.execute(text(f"SELECT sketch FROM serving_hours WHERE {where}"), values).scalar()
    both = merged([sketches.unpack(held), sketch]) if held else sketch
    db.execute(
        text(
            "INSERT INTO serving_hours VALUES (:endpoint, :model, :version, :hour, :logged, :sketch) "
            "ON CONFLICT (endpoint, model, version, hour) DO UPDATE SET logged = excluded.logged, sketch = excluded.sketch"
        ),
        {**values, "logged": logged, "sketch": sketches.pack(both)},
    )


def remake(state: State, client: Client, emptied: Sequence[Emptied]) -> None:
    """Sketch the hours of predictions that were emptied again, from what the log has of them now; may be repeated."""
    keys: set[Key] = {
        (p.endpoint, p.model, p.version, micros(p.at) // HOUR * HOUR) for p in emptied if p.route != "shadow"
    }
    for key in sorted(keys):
        with _following:
            made = [sketches.of(_frame(rows)) for rows in _of_hour(state, client, key) if rows]
            if made:
                _replace(state, key, merged(made))


def _of_hour(state: State, client: Client, key: Key) -> Iterator[list[Prediction]]:
    """Yield by pages the predictions of an hour that were taken in; the outcomes' mirror knows where they stand in the log."""
    endpoint, model, version, hour = key
    where = "SELECT min(seq), max(seq) FROM predictions WHERE endpoint = ? AND model = ? AND version = ? AND ts >= ? AND ts < ?"
    first, last = state.outcomes.rows(where, endpoint, model, version, hour, hour + HOUR).row(0)
    after, last = (first or 0) - 1, min(last or 0, cursor(state))
    while after < last:
        page = client.endpoints.predictions(endpoint, after=max(after, 0), limit=PAGE)
        yield [p for p in page if p.seq <= last and p.route != "shadow" and p.version.name == model and micros(p.at) // HOUR * HOUR == hour and p.version.version == version]  # fmt: skip
        after = page[-1].seq if page else last


def _replace(state: State, key: Key, sketch: Sketch) -> None:
    values = dict(zip(("endpoint", "model", "version", "hour"), key, strict=True)) | {"sketch": sketches.pack(sketch)}
    where = "endpoint = :endpoint AND model = :model AND version = :version AND hour = :hour"
    with state.engine.begin() as db:
        db.execute(text(f"UPDATE serving_hours SET sketch = :sketch WHERE {where}"), values)


def _frame(page: Sequence[Prediction]) -> pl.DataFrame:
    names = dict.fromkeys(name for p in page for name in p.features if name not in OWN)
    columns = {name: _series(name, [p.features.get(name) for p in page]) for name in names}
    own = {
        SCORE: pl.Series([p.score for p in page], dtype=pl.Float64), LATENCY: pl.Series([p.latency_us for p in page], dtype=pl.Float64),
        ROUTE: pl.Series([p.route for p in page], dtype=pl.String),
    }  # fmt: skip
    return pl.DataFrame([*columns.values(), *(series.alias(name) for name, series in own.items())])


def _series(name: str, values: list[Any]) -> pl.Series:
    """Return `values` of JSON as one column: numbers, true and false, or texts; a number among texts is its text."""
    kinds = {type(value) for value in values} - {type(None)}
    if not kinds or kinds <= {int, float}:
        return pl.Series(name, [None if v is None else float(v) for v in values], dtype=pl.Float64)
    if kinds == {bool}:
        return pl.Series(name, values, dtype=pl.Boolean)
    return pl.Series(name, [None if v is None else str(v) for v in values], dtype=pl.String)


def merged(parts: Sequence[Sketch]) -> Sketch:
    """Return the sketch of all `parts`; where a column's kinds don't mix, the rows of the rarer kinds count as missing."""
    names = dict.fromkeys(name for part in parts for name in part.columns)
    odd = {name: kind for name in names if (kind := _odd(parts, name))}
    if not odd:
        return sketches.merge(parts)
    return sketches.merge([_without(part, odd) for part in parts])


def _odd(parts: Sequence[Sketch], name: str) -> str:
    """Return the kind that most rows of the column have if its kinds don't mix, else nothing."""
    rows: dict[str, int] = {}
    for part in parts:
        if name in part.columns and part.columns[name].kind != "null":
            kind = part.columns[name].kind
            rows[kind] = rows.get(kind, 0) + part.columns[name].rows
    return max(rows, key=lambda kind: rows[kind]) if len(rows) > 1 and set(rows) != {"bool", "number"} else ""


def _without(part: Sketch, odd: dict[str, str]) -> Sketch:
    columns = {
        name: Column("null", column.rows, column.rows) if name in odd and column.kind != odd[name] else column
        for name, column in part.columns.items()
    }
    return Sketch(part.rows, columns)


def versions(state: State, endpoint: str) -> list[tuple[str, int, int, int]]:
    """Return (model, version, first hour, last hour) of the versions that answered at `endpoint`, the newest answer last."""
    query = (
        "SELECT model, version, min(hour) AS first, max(hour) AS last FROM serving_hours WHERE endpoint = :e "
        "GROUP BY model, version ORDER BY max(logged), max(hour)"
    )
    with state.engine.connect() as db:
        return [tuple(row) for row in db.execute(text(query), {"e": endpoint})]


def days(state: State, endpoint: str, model: str, version: int) -> dict[int, tuple[int, int, int]]:
    """Return the days (UTC) with predictions, and with each what changes when there are more of them."""
    query = "SELECT hour, logged, length(sketch) AS size FROM serving_hours WHERE endpoint = :e AND model = :m AND version = :v ORDER BY hour"
    found: dict[int, tuple[int, int, int]] = {}
    with state.engine.connect() as db:
        for row in db.execute(text(query), {"e": endpoint, "m": model, "v": version}):
            hours, logged, size = found.get(row.hour // DAY * DAY, (0, 0, 0))
            found[row.hour // DAY * DAY] = (hours + 1, max(logged, row.logged), size + row.size)
    return found


def between(
    state: State, endpoint: str, model: str, version: int, start: datetime, end: datetime
) -> list[tuple[int, Sketch]]:
    """Return (hour, sketch) of the hours that begin at or after `start` and before `end`, in order."""
    query = (
        "SELECT hour, sketch FROM serving_hours WHERE endpoint = :e AND model = :m AND version = :v "
        "AND hour >= :start AND hour < :end ORDER BY hour"
    )
    values = {"e": endpoint, "m": model, "v": version, "start": micros(start), "end": micros(end)}
    with state.engine.connect() as db:
        return [(row.hour, sketches.unpack(row.sketch)) for row in db.execute(text(query), values)]
