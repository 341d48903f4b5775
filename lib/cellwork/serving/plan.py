"""A version's plan: which columns its model takes, of what kind, and where each value comes from.

Made when a version is deployed and kept with the deployment, so that it tells what was true then. Nothing here reads a
store: `needs` says what has to be looked up, `fill` puts the answers in their places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from cellwork.errors import BadInput, near_miss
from cellwork.wire import Struct
from cellwork.wire.endpoints import Row
from cellwork.wire.features import OnlineValue

Kind = Literal["number", "text", "flag"]
Key = tuple[Any, ...]
"""The ids of one row's entities, in the order of the names of a view's join keys."""
Found = Mapping[str, Mapping[Key, OnlineValue]]
Usable = dict[str, OnlineValue]
"""View -> the value of one row's entity."""
OWN = ("_score", "_latency_us", "_route")
"""Columns that the statistics of predictions have beside the model's."""
LEAST_ID, MOST_ID = -(1 << 63), (1 << 63) - 1
Lookup = Callable[[str, dict[str, list[Key]]], dict[str, dict[Key, OnlineValue]]]
"""(project, view -> keys) -> view -> key -> its newest values; reads, never writes, and may block."""


class Column(Struct):
    """One column of the model, in the model's order. With `view` and `feature` it can be filled from the online store."""

    name: str
    kind: Kind
    default: Any = None
    view: str = ""
    feature: str = ""


class Source(Struct):
    """A feature view that requests by entity id are filled from."""

    view: str
    join_keys: list[str]
    """In order of their names."""
    ttl_seconds: float | None = None


class Plan(Struct):
    project: str
    columns: list[Column]
    sources: list[Source] = []

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    def references(self) -> list[str]:
        """Return ``view:feature`` of every column that can be filled from the online store."""
        return [f"{column.view}:{column.feature}" for column in self.columns if column.view]


@dataclass
class Filled:
    """One row as the model sees it, and what its values were."""

    values: list[Any]
    defaults: list[str]
    events: dict[str, datetime | None]
    batches: dict[str, str]


def check(plan: Plan, rows: Iterable[Row], *, also: Plan | None = None) -> None:
    """Raise BadInput for an unknown feature or join key, a value of the wrong type, or an incomplete entity.

    What only the plan `also` knows is let pass: callers of a live version do not know that a canary takes other columns.
    """
    known = [also, plan] if also is not None and also is not plan else [plan]
    columns = {column.name: column for each in known for column in each.columns}
    join_keys = {key for each in known for source in each.sources for key in source.join_keys}
    for number, row in enumerate(rows):
        for name, value in row.features.items():
            if name not in columns:
                raise BadInput(f"feature of row {number}", name, "is not one the model takes", near_miss(name, columns))
            _check_kind(columns[name], value, number)
        for key, value in row.entities.items():
            if key not in join_keys:
                raise BadInput(f"entity of row {number}", key, "is not a join key here", near_miss(key, join_keys))
            if not isinstance(value, str | int):
                raise BadInput(f"entity {key!r} of row {number}", value, "is not an id", "send text or a whole number")
            if isinstance(value, int) and not LEAST_ID <= value <= MOST_ID:
                raise BadInput(f"entity {key!r} of row {number}", value, "has more than 64 bits", "send it as text")
        if row.entities:
            _check_complete(plan, row, number)


def _check_kind(column: Column, value: Any, number: int) -> None:
    if value is None:
        return
    right = isinstance(value, str) if column.kind == "text" else isinstance(value, bool | int | float)
    if column.kind == "flag":
        right = isinstance(value, bool) or value in (0, 1)
    if not right:
        kind = {"number": "a number", "text": "text", "flag": "true or false"}[column.kind]
        raise BadInput(
            f"feature {column.name!r} of row {number}", value, f"is not {kind}", "send it as the model saw it"
        )
    if column.kind == "number" and not (-1e308 <= value <= 1e308):
        raise BadInput(
            f"feature {column.name!r} of row {number}", value, "is not a finite number", "send null for none"
        )


def _check_complete(plan: Plan, row: Row, number: int) -> None:
    """A view some of whose columns are not in `features` needs all of its join keys."""
    for source in plan.sources:
        missing = [key for key in source.join_keys if key not in row.entities]
        wanted = [c.name for c in plan.columns if c.view == source.view and c.name not in row.features]
        if missing and wanted:
            raise BadInput(
                f"entities of row {number}", ", ".join(missing), f"are needed for view {source.view!r} and missing",
                f"send them, or the features {', '.join(wanted)}",
            )  # fmt: skip


def needs(plan: Plan, rows: Iterable[Row]) -> dict[str, list[Key]]:
    """Return view -> the distinct entity keys that `rows` need looked up."""
    wanted: dict[str, dict[Key, None]] = {}
    for row in rows:
        for source in plan.sources:
            key = _key(source, row)
            if key is not None:
                wanted.setdefault(source.view, {})[key] = None
    return {view: list(keys) for view, keys in wanted.items()}


def _key(source: Source, row: Row) -> Key | None:
    if not row.entities or any(key not in row.entities for key in source.join_keys):
        return None
    return tuple(row.entities[key] for key in source.join_keys)


def fill(plan: Plan, row: Row, found: Found, now: datetime) -> Filled:
    """Return `row` in the model's columns: the request's values, else the online ones, else the declared default.

    A looked-up value older than the view's ttl at the row's time is not used; nor, when the row names its own time, is
    one that was true only later. What had no value is named in `defaults`.
    """
    at = row.at or now
    usable: dict[str, OnlineValue] = {}
    for source in plan.sources:
        key = _key(source, row)
        value = found.get(source.view, {}).get(key) if key is not None else None
        if value is not None and _usable(source, value, at, strict=row.at is not None):
            usable[source.view] = value
    values, defaults, used = [], [], set()
    for column in plan.columns:
        value = row.features.get(column.name)
        if value is None and column.view in usable and column.name not in row.features:
            value = usable[column.view].values.get(column.feature)
            used.add(column.view)
        if isinstance(value, float) and math.isnan(value):
            value = None
        if value is None:
            value = column.default
            defaults.append(column.name)
        values.append(value)
    events = {**row.feature_events, **{view: usable[view].event for view in used}}
    batches = {**row.feature_batches, **{view: usable[view].batch for view in used if usable[view].batch}}
    return Filled(values, defaults, events, batches)


def usable(plan: Plan, entities: Sequence[Mapping[str, Any]], lookup: Lookup, now: datetime) -> list[Usable]:
    """Return for each row, given as its entities, what the online store holds of it now; raises BadInput for half an entity."""
    try:
        keys = [
            {s.view: tuple(row[key] for key in s.join_keys) for s in plan.sources} if row else {} for row in entities
        ]
    except KeyError as error:
        raise BadInput("entities", str(error), "are not complete", "send every join key") from None
    needed = {view for row in keys for view in row}
    found = lookup(plan.project, {view: list({row[view] for row in keys if row}) for view in needed}) if needed else {}
    used: list[Usable] = []
    for row in keys:
        values = [(source, found.get(source.view, {}).get(row[source.view])) for source in plan.sources if row]
        used.append(
            {s.view: value for s, value in values if value is not None and _usable(s, value, now, strict=False)}
        )
    return used


def _usable(source: Source, value: OnlineValue, at: datetime, *, strict: bool) -> bool:
    if value.event is None or (strict and value.event > at):
        return False
    return source.ttl_seconds is None or at - value.event <= timedelta(seconds=source.ttl_seconds)
