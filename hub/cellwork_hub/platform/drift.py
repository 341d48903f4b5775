"""Drift of what an endpoint predicts from, beside the dataset its version was trained on.

The dataset is sketched once, when it is first asked for, and the sketch kept beside it. Only columns of the model are compared.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
from sqlalchemy import text

from cellwork import clock, files
from cellwork.data import sketches
from cellwork.data.sketches import Sketch
from cellwork.errors import BadInput, NotFound
from cellwork.models import versions
from cellwork.monitoring.drift import compare
from cellwork.wire.datasets import Dataset
from cellwork.wire.drift import Drift, DriftRules
from cellwork_hub.platform import datasets, serving_hours
from cellwork_hub.platform.state import State
from cellwork_hub.records import moment
from cellwork_hub.route import Call, Route

MIGRATION = serving_hours.MIGRATION
WEEK = timedelta(days=7)
DAY = 24 * serving_hours.HOUR


def routes(state: State) -> list[Route]:
    def of_window(call: Call) -> Drift:
        serving_hours.follow(state)
        start, end = (clock.utc(call.query[key]) if call.query.get(key) else None for key in ("start", "end"))
        if start and end and start >= end:
            raise BadInput("start", start.isoformat(), f"is not before the end {end.isoformat()}", "swap them")
        return of(state, _endpoint(call), call.number("version", 0), start=start, end=end)

    def by_day(call: Call) -> list[Drift]:
        serving_hours.follow(state)
        return days(state, _endpoint(call), call.number("version", 0))

    return [
        Route("GET", "/api/v1/drift/{project}/{name}", of_window, "monitors:read", None, Drift, "What an endpoint predicts from, beside its version's training dataset."),
        Route("GET", "/api/v1/drift/{project}/{name}/days", by_day, "monitors:read", None, list[Drift], "The same, day by day."),
    ]  # fmt: skip


def _endpoint(call: Call) -> str:
    return f"{call.path['project']}/{call.path['name']}"


def of(
    state: State, endpoint: str, version: int = 0, *, window: timedelta = WEEK,
    start: datetime | None = None, end: datetime | None = None, rules: DriftRules | None = None,
) -> Drift:  # fmt: skip
    """Return the drift of `version` between `start` and `end`.

    Version 0 is the one that answered last, or, while that has too few predictions for a verdict, the one before it. Without
    `end`: up to the newest hour with a prediction of it. Without `start`: `window` before the end.

    Raises
    ------
    NotFound
        The endpoint has no prediction of it, none in the window, or its version's training dataset is not known.
    """
    rules = rules or DriftRules()
    windows = []
    for model, number, _, last in reversed(_answered(state, endpoint, version)):
        until = end or moment(last + serving_hours.HOUR)
        since = start or until - window
        hours = [sketch for _, sketch in serving_hours.between(state, endpoint, model, number, since, until)]
        windows.append((model, number, since, until, hours))
        if sum(sketch.rows for sketch in hours) >= rules.least_rows:
            break
    model, number, since, until, hours = max(windows, key=lambda w: sum(sketch.rows for sketch in w[-1]))
    if not hours:
        asked = f"{since:%F %T} to {until:%F %T}"
        raise NotFound(f"predictions of {endpoint}@{number}", asked, "are none", "see: cellwork monitor drift --days")
    trained, found = training(state, model, number), serving_hours.merged(hours)
    return _compared(f"{endpoint}@{number}", trained, reference(state, trained), found, since, until, rules)


def days(state: State, endpoint: str, version: int = 0) -> list[Drift]:
    """Return the drift of each day (UTC) with predictions, oldest first; version 0 is that day's with the most predictions."""
    found: dict[datetime, Drift] = {}
    for model, number, first, last in _answered(state, endpoint, version):
        for day in _days_of(state, endpoint, model, number, first, last):
            if day.start not in found or day.rows > found[day.start].rows:
                found[day.start] = day
    return [found[start] for start in sorted(found)]


def _days_of(state: State, endpoint: str, model: str, number: int, first: int, last: int) -> list[Drift]:
    trained = training(state, model, number)
    expected, rules = reference(state, trained), DriftRules()
    parts: dict[int, list[Sketch]] = {}
    for hour, sketch in serving_hours.between(state, endpoint, model, number, moment(first), moment(last + 1)):
        parts.setdefault(hour // DAY * DAY, []).append(sketch)
    return [
        _compared(
            f"{endpoint}@{number}", trained, expected, serving_hours.merged(each),
            moment(day), moment(day + DAY), rules,
        )
        for day, each in parts.items()
    ]  # fmt: skip


def _answered(state: State, endpoint: str, version: int) -> list[tuple[str, int, int, int]]:
    """Return (model, version, first hour, last hour) of `version`, or for 0 of all that answered, the newest last."""
    known = serving_hours.versions(state, endpoint)
    if not known:
        raise NotFound("endpoint", endpoint, "has no prediction yet", "look at: cellwork endpoint list")
    chosen = [each for each in known if version in (0, each[1])]
    if not chosen:
        numbers = ", ".join(str(each[1]) for each in known)
        raise NotFound(f"version of endpoint {endpoint}", version, "never answered", f"those that did: {numbers}")
    return chosen


def training(state: State, model: str, version: int) -> Dataset:
    """Return the dataset that a version was trained on, as lineage tells it since its evaluation."""
    query = "SELECT target FROM edges WHERE source = :s AND relation = 'trained_on' ORDER BY at DESC LIMIT 1"
    with state.engine.connect() as db:
        found = db.execute(text(query), {"s": versions.subject(model, version)}).scalar()
    if not found:
        raise NotFound(
            "training dataset of", versions.subject(model, version), "is not known: it was not evaluated here",
            f"run: cellwork model evaluate {model}@{version}",
        )  # fmt: skip
    return datasets.get(state, found)


def reference(state: State, dataset: Dataset) -> Sketch:
    """Return the sketch of the model's columns in `dataset`."""
    folder = state.home.dataset(dataset.id)
    kept = folder / "columns.sketch"
    if kept.is_file():
        return sketches.unpack(kept.read_bytes())
    frame = pl.read_parquet(folder / "data.parquet", columns=[*dataset.inputs, *dataset.features])
    made = sketches.of(frame)
    files.write(kept, sketches.pack(made))
    return made


def _compared(
    subject: str, trained: Dataset, expected: Sketch, found: Sketch,
    start: datetime, end: datetime, rules: DriftRules,
) -> Drift:  # fmt: skip
    known = Sketch(found.rows, {name: column for name, column in found.columns.items() if name in expected.columns})
    return Drift(
        subject=subject, reference=trained.id, start=start.astimezone(UTC), end=end.astimezone(UTC), rows=found.rows,
        reference_rows=expected.rows, columns=compare(expected, known, rules), rules=rules,
    )  # fmt: skip
