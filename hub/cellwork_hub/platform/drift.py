"""Drift of what an endpoint predicts from, beside the dataset its version was trained on.

The dataset is sketched once, when it is first asked for, and the sketch kept beside it; a window without all weekdays is compared
with the rows of the same hours of the week (`season`). Only columns of the model are compared, and, as far as outcomes have arrived,
what came true with the labels that the version learned (column `_label`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_args

import msgspec
import polars as pl
from sqlalchemy import text

from cellwork import clock, files
from cellwork.data import sketches
from cellwork.data.sketches import Column, Sketch
from cellwork.errors import BadInput, NotFound, near_miss
from cellwork.models import package, versions
from cellwork.monitoring import season, usual
from cellwork.monitoring.drift import compare
from cellwork.wire.datasets import Dataset
from cellwork.wire.drift import Beside, Drift, DriftRules, Usual
from cellwork_hub.once import Once
from cellwork_hub.platform import datasets, serving_hours
from cellwork_hub.platform.state import State
from cellwork_hub.records import micros, moment
from cellwork_hub.route import Call, Route

MIGRATION = serving_hours.MIGRATION
WEEK = timedelta(days=7)
LABEL = "_label"
"""The column of what came true; a feature's name does not begin with an underscore."""
MOST_DAYS = 1000
"""Days of all endpoints and versions whose drift is kept."""
BESIDES: tuple[Beside, ...] = get_args(Beside)


def routes(state: State) -> list[Route]:
    told, of_days = Once[list[Drift]](), Once[Drift](most=MOST_DAYS)

    def of_window(call: Call) -> Drift:
        serving_hours.follow(state)
        start, end = (clock.kept(call.query[key]) if call.query.get(key) else None for key in ("start", "end"))
        if start and end and start >= end:
            raise BadInput("start", start.isoformat(), f"is not before the end {end.isoformat()}", "swap them")
        beside = call.query.get("beside") or "season"
        if beside not in BESIDES:
            raise BadInput("beside", beside, "is not known", near_miss(beside, BESIDES))
        return of(state, _endpoint(call), call.number("version", 0), start=start, end=end, beside=beside)

    def by_day(call: Call) -> list[Drift]:
        serving_hours.follow(state)
        endpoint, version = _endpoint(call), call.number("version", 0)
        revision = serving_hours.cursor(state), state.outcomes.revision
        return told((endpoint, version), revision, lambda: days(state, endpoint, version, of_days))

    return [
        Route("GET", "/api/v1/drift/{project}/{name}", of_window, "monitors:read", None, Drift, "What an endpoint predicts from, beside its version's training dataset."),
        Route("GET", "/api/v1/drift/{project}/{name}/days", by_day, "monitors:read", None, list[Drift], "The same, day by day."),
    ]  # fmt: skip


def _endpoint(call: Call) -> str:
    return f"{call.path['project']}/{call.path['name']}"


def of(
    state: State, endpoint: str, version: int = 0, *, window: timedelta = WEEK,
    start: datetime | None = None, end: datetime | None = None, rules: DriftRules | None = None,
    beside: Beside = "season",
) -> Drift:  # fmt: skip
    """Return the drift of `version` between `start` and `end`, `beside` what the version learned from or answered before.

    Version 0 is the one that answered last, or, while that has too few predictions for a verdict, the one before it. Without
    `end`: up to the newest hour with a prediction of it, or up to now where few are for a time to come. Without `start`: `window` before the end.

    Raises
    ------
    NotFound
        The endpoint has no prediction of it, none in the window, or its version's training dataset is not known.
    """
    rules = rules or DriftRules()
    windows = []
    for model, number, until in _ends(_answered(state, endpoint, version), end):
        since = start or until - window
        hours = serving_hours.between(state, endpoint, model, number, since, until)
        windows.append((model, number, since, until, hours))
        if sum(sketch.rows for _, sketch in hours) >= rules.least_rows:
            break
    model, number, since, until, hours = max(windows, key=lambda w: sum(sketch.rows for _, sketch in w[-1]))
    if not hours:
        asked = f"{since:%F %T} to {until:%F %T}"
        raise NotFound(f"predictions of {endpoint}@{number}", asked, "are none", "see: cellwork monitor drift --days")
    labels, takes = _came_true(state, endpoint, model, number, since, until), _takes(state, model, number)
    found = Window(f"{endpoint}@{number}", since, until, hours, labels, takes)
    if beside == "before":
        return _compared(found, _before(state, endpoint, model, number, found), rules)
    trained = training(state, model, number)
    return _compared(found, _learned(state, trained, found, rules, whole=beside == "training"), rules)


def _ends(answered: list[tuple[str, int, int, int]], end: datetime | None) -> Iterator[tuple[str, int, datetime]]:
    """Yield model, version and end of the windows in the order in which they are tried."""
    now = clock.now()
    for model, number, _, last in reversed(answered):
        newest = moment(last + serving_hours.HOUR)
        yield model, number, end or newest
        if end is None and newest - timedelta(hours=1) > now:
            yield model, number, now


def days(state: State, endpoint: str, version: int = 0, kept: Once[Drift] | None = None) -> list[Drift]:
    """Return the drift of each day (UTC) with predictions, oldest first; version 0 is that day's with the most predictions.

    Of the days in `kept` only those are compared anew that have got predictions since.
    """
    found: dict[datetime, Drift] = {}
    for model, number, _, _ in _answered(state, endpoint, version):
        trained = training(state, model, number)
        known = _outcomes_by_day(state, endpoint, model, number)
        for day, changed in serving_hours.days(state, endpoint, model, number).items():
            compared, revision = (
                partial(_of_day, state, trained, endpoint, model, number, day),
                (changed, known.get(day)),
            )
            drift = kept((endpoint, model, number, day), revision, compared) if kept else compared()
            if drift.start not in found or drift.rows > found[drift.start].rows:
                found[drift.start] = drift
    return [found[start] for start in sorted(found)]


def _of_day(state: State, trained: Dataset, endpoint: str, model: str, number: int, day: int) -> Drift:
    start, end, rules = moment(day), moment(day + serving_hours.DAY), DriftRules()
    hours = serving_hours.between(state, endpoint, model, number, start, end)
    labels, takes = _came_true(state, endpoint, model, number, start, end), _takes(state, model, number)
    window = Window(f"{endpoint}@{number}", start, end, hours, labels, takes)
    return _compared(window, _learned(state, trained, window, rules), rules)


def _came_true(state: State, endpoint: str, model: str, version: int, start: datetime, end: datetime) -> Column | None:
    """Return the sketch of the outcomes, as far as they have arrived, of predictions for that time; None if there are none."""
    query = (
        "SELECT outcome FROM joined WHERE endpoint = ? AND model = ? AND version = ? AND counts AND ts >= ? AND ts < ?"
    )
    found = state.outcomes.rows(query, endpoint, model, version, micros(start), micros(end))
    return sketches.of(found, count_distinct=False).columns["outcome"] if found.height else None


def _outcomes_by_day(state: State, endpoint: str, model: str, version: int) -> dict[int, tuple[int, int]]:
    """Return for each day what changes when outcomes of its predictions arrive or are corrected."""
    query = (
        f"SELECT ts // {serving_hours.DAY} * {serving_hours.DAY} AS day, count(*), max(arrived_at) FROM joined "
        "WHERE endpoint = ? AND model = ? AND version = ? AND counts GROUP BY ALL"
    )
    return {day: (rows, newest) for day, rows, newest in state.outcomes.rows(query, endpoint, model, version).rows()}


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


def _takes(state: State, model: str, version: int) -> frozenset[str]:
    """Return the columns that a version's model takes; none where this machine has no copy of its folder."""
    query = "SELECT digest FROM evaluations WHERE name = :n AND version = :v ORDER BY seq DESC LIMIT 1"
    with state.engine.connect() as db:
        digest = db.execute(text(query), {"n": model, "v": version}).scalar()
    try:
        manifest = package.read(state.home.models() / digest) if digest else None
    except BadInput:
        manifest = None
    return frozenset(column.name for column in manifest.columns) if manifest else frozenset()


def reference(state: State, dataset: Dataset) -> Sketch:
    """Return the sketch of what a model may take from `dataset`."""
    folder = state.home.dataset(dataset.id)
    kept = folder / "columns.sketch"
    if kept.is_file():
        return sketches.unpack(kept.read_bytes())
    frame = pl.read_parquet(folder / "data.parquet", columns=[*dataset.inputs, *dataset.features])
    made = sketches.of(frame)
    files.write(kept, sketches.pack(made))
    return made


Seasonal = tuple[Sketch, dict[str, Usual]]


def _of_season(folder: Path, time: str, columns: tuple[str, ...], hours: season.Hours) -> Seasonal:
    """Return the sketch of the rows in `hours`, and what is usual of them; made once and kept beside the dataset."""
    made = folder / f"season-{hashlib.sha256(repr(sorted(hours)).encode()).hexdigest()[:16]}"
    sketch, apart = made.with_suffix(".sketch"), made.with_suffix(".json")
    if not apart.is_file():
        frame = pl.read_parquet(folder / "data.parquet", columns=list(dict.fromkeys([*columns, time])))
        rows = season.rows(frame, time, hours)
        found = sketches.of(rows.select(columns), count_distinct=False)
        files.write(sketch, sketches.pack(found))
        files.write(apart, msgspec.json.encode(usual.of(rows, time, found)))
    return sketches.unpack(sketch.read_bytes()), msgspec.json.decode(apart.read_bytes(), type=dict[str, Usual])


@dataclass(frozen=True)
class Window:
    subject: str
    start: datetime
    end: datetime
    hours: list[tuple[int, Sketch]]
    """(hour in microseconds since 1970, sketch), those with predictions."""
    labels: Column | None = None
    """What came true, as far as it is known."""
    takes: frozenset[str] = frozenset()
    """The columns that the model takes, as its folder says; what its predictions have, it takes too."""

    @property
    def season(self) -> season.Hours:
        return season.of(moment(hour) for hour, _ in self.hours)

    def of_model(self, trained: Sketch) -> Sketch:
        """Return `trained` without the columns of the dataset that the model does not take."""
        taken = self.takes.union(*(sketch.columns for _, sketch in self.hours))
        return Sketch(trained.rows, {name: column for name, column in trained.columns.items() if name in taken})


class Reference(NamedTuple):
    name: str
    sketch: Sketch
    part: str = ""
    """Which part of it, in words."""
    usual: Mapping[str, Usual] = {}


def _learned(state: State, trained: Dataset, window: Window, rules: DriftRules, *, whole: bool = False) -> Reference:
    """Return what the version learned from: rows of the window's season, or all where `whole` is asked or that are too few."""
    columns, folder = (*trained.inputs, *trained.features), state.home.dataset(trained.id)
    hours = season.ALL if whole else window.season
    if hours and trained.time_column in pl.read_parquet_schema(folder / "data.parquet"):
        found, apart = _of_season(folder, trained.time_column, columns, hours)
        if found.rows >= rules.least_rows:
            part = Reference(trained.id, window.of_model(found), season.say(hours), apart)
            return _labelled(part, folder, trained, hours)
    return _labelled(Reference(trained.id, window.of_model(reference(state, trained))), folder, trained, season.ALL)


def _labelled(reference: Reference, folder: Path, trained: Dataset, hours: season.Hours) -> Reference:
    """Return `reference` with the labels that the version learned, in `hours` or at all times, and what is usual of them."""
    schema = pl.read_parquet_schema(folder / "data.parquet")
    if (
        not trained.label
        or trained.label not in schema
        or not (schema[trained.label].is_numeric() or schema[trained.label] == pl.Boolean)
    ):
        return reference
    made = folder / f"label-{hashlib.sha256(repr(sorted(hours)).encode()).hexdigest()[:16]}"
    sketch, apart = made.with_suffix(".sketch"), made.with_suffix(".json")
    if not apart.is_file():
        rows = pl.read_parquet(
            folder / "data.parquet", columns=[trained.label, *([trained.time_column] if hours else [])]
        )
        rows = (season.rows(rows, trained.time_column, hours) if hours else rows).drop_nulls(trained.label)
        rows = rows.rename({trained.label: LABEL}).cast({LABEL: pl.Float64})
        found = sketches.of(rows.select(LABEL), count_distinct=False)
        files.write(sketch, sketches.pack(found))
        files.write(apart, msgspec.json.encode(usual.of(rows, trained.time_column, found) if hours else {}))
    known = msgspec.json.decode(apart.read_bytes(), type=dict[str, Usual])
    label = sketches.unpack(sketch.read_bytes()).columns
    both = Sketch(reference.sketch.rows, {**reference.sketch.columns, **label})
    return reference._replace(sketch=both, usual={**reference.usual, **known})


def _before(state: State, endpoint: str, model: str, number: int, window: Window) -> Reference:
    """Return what the version predicted, and from what, in the window before: of the same length, on the same weekdays."""
    length = window.end - window.start
    back = length if length >= WEEK else WEEK
    start, end = window.start - back, window.end - back
    hours = serving_hours.between(state, endpoint, model, number, start, end)
    if not hours:
        asked = f"{start:%F %T} to {end:%F %T}"
        raise NotFound(
            f"predictions of {window.subject}",
            asked,
            "are none",
            "wait for a second window, or compare with the training dataset",
        )
    found, labels = (
        serving_hours.merged([sketch for _, sketch in hours]),
        _came_true(state, endpoint, model, number, start, end),
    )
    return Reference(
        f"{start:%F} to {end:%F}", Sketch(found.rows, {**found.columns, **({LABEL: labels} if labels else {})})
    )


def _compared(window: Window, beside: Reference, rules: DriftRules) -> Drift:
    found, expected = serving_hours.merged([sketch for _, sketch in window.hours]), beside.sketch
    known = {name: column for name, column in found.columns.items() if name in expected.columns}
    if window.labels and LABEL in expected.columns:
        known[LABEL] = window.labels
    elif LABEL in expected.columns:
        expected = Sketch(expected.rows, {name: column for name, column in expected.columns.items() if name != LABEL})
    return Drift(
        subject=window.subject, reference=beside.name, start=window.start.astimezone(UTC), end=window.end.astimezone(UTC),
        rows=found.rows, reference_rows=expected.rows, season=beside.part, rules=rules,
        columns=compare(expected, Sketch(found.rows, known), rules, beside.usual),
    )  # fmt: skip
