"""What a version takes and where its values come from: made from columns and definitions, filled row by row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellwork import errors
from cellwork.models.columns import Column
from cellwork.serving import plan as plans
from cellwork.serving import signature
from cellwork.wire.endpoints import Row
from cellwork.wire.features import Definitions, Entity, Field, OnlineValue, Select, View

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
STORED = Select(rows="rows", event="at", known="at")
DEFINITIONS = Definitions(
    project="shop",
    entities=[Entity(name="route", join_keys=["to", "from"]), Entity(name="day", join_keys=["day"])],
    views=[
        View(name="traffic", entities=["route"], fields=[Field(name="cars", type="Int64", default=0)], pipeline=STORED, ttl="1h"),
        View(name="sky", entities=["day"], fields=[Field(name="rain", type="Float32")], pipeline=STORED),
        View(name="unused", entities=["day"], fields=[Field(name="moon", type="Float32")], pipeline=STORED),
    ],
)  # fmt: skip
COLUMNS = [
    Column(name="hour", kind="number"), Column(name="traffic__cars", kind="number"), Column(name="sky__rain", kind="number"),
    Column(name="kind", kind="text"), Column(name="urgent", kind="flag"),
]  # fmt: skip
PLAN = signature.plan("shop", COLUMNS, DEFINITIONS)
ENTITIES = {"from": "A", "to": "B", "day": 1}


def found(event: datetime, **values: float) -> OnlineValue:
    return OnlineValue(values=dict(values), event=event, batch="bat_1")


def test_a_column_named_by_view_and_feature_comes_from_that_view_and_unused_views_are_not_read() -> None:
    assert PLAN.references() == ["traffic:cars", "sky:rain"]
    assert [(s.view, s.join_keys, s.ttl_seconds) for s in PLAN.sources] == [
        ("traffic", ["from", "to"], 3600.0),
        ("sky", ["day"], None),
    ]


def test_without_definitions_every_column_comes_with_the_request() -> None:
    assert signature.plan("shop", COLUMNS).sources == []


def test_each_entity_is_looked_up_once_however_many_rows_name_it() -> None:
    rows = [Row(entities=ENTITIES), Row(entities=ENTITIES), Row(entities={**ENTITIES, "day": 2})]
    assert plans.needs(PLAN, rows) == {"traffic": [("A", "B")], "sky": [(1,), (2,)]}


def test_a_request_value_wins_over_the_online_one_and_what_is_missing_gets_its_default() -> None:
    online = {"traffic": {("A", "B"): found(NOW, cars=7)}, "sky": {}}
    filled = plans.fill(PLAN, Row(entities=ENTITIES, features={"hour": 3, "urgent": True}), online, NOW)
    assert filled.values == [3, 7, None, None, True]
    assert filled.defaults == ["sky__rain", "kind"]
    assert (filled.events, filled.batches) == ({"traffic": NOW}, {"traffic": "bat_1"})
    sent = plans.fill(PLAN, Row(entities=ENTITIES, features={"traffic__cars": 9}), online, NOW)
    assert sent.values[1] == 9
    assert "traffic" not in sent.events


def test_an_explicit_null_is_no_value_and_is_not_looked_up() -> None:
    online = {"traffic": {("A", "B"): found(NOW, cars=7)}}
    filled = plans.fill(PLAN, Row(entities=ENTITIES, features={"traffic__cars": None}), online, NOW)
    assert (filled.values[1], "traffic__cars" in filled.defaults) == (0, True)


@settings(max_examples=60, deadline=None)
@given(st.integers(-7200, 7200), st.booleans())
def test_a_value_is_used_only_within_its_ttl_and_never_before_its_time_when_the_row_names_one(
    age: int, dated: bool
) -> None:
    online = {"traffic": {("A", "B"): found(NOW - timedelta(seconds=age), cars=7)}}
    filled = plans.fill(PLAN, Row(entities=ENTITIES, at=NOW if dated else None), online, NOW)
    usable = age <= 3600 and (age >= 0 or not dated)
    assert filled.values[1] == (7 if usable else 0)
    assert ("traffic__cars" in filled.defaults) is not usable


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row(features={"hours": 1}), "did you mean 'hour'"),
        (Row(features={"hour": "8"}), "is not a number"),
        (Row(features={"hour": float("inf")}), "is not a finite number"),
        (Row(features={"hour": 10**400}), "is not a finite number"),
        (Row(features={"kind": 1}), "is not text"),
        (Row(features={"urgent": 2}), "is not true or false"),
        (Row(entities={"form": "A"}), "did you mean 'from'"),
        (Row(entities={"day": 1.5}), "is not an id"),
        (Row(entities={"day": 1, "to": "B"}), "from.*needed for view 'traffic'"),
    ],
)
def test_a_row_that_can_not_be_meant_is_refused(row: Row, message: str) -> None:
    with pytest.raises(errors.BadInput, match=message):
        plans.check(PLAN, [Row(), row])


def test_entities_of_a_view_whose_values_all_come_with_the_request_may_be_left_out() -> None:
    plans.check(PLAN, [Row(entities={"day": 1}, features={"traffic__cars": 3})])


@pytest.mark.parametrize("name", plans.OWN)
def test_a_column_with_a_name_of_the_statistics_is_refused_with_the_way_out(name: str) -> None:
    with pytest.raises(errors.Refused, match="rename it, and train again"):
        signature.plan("shop", [*COLUMNS, Column(name=name, kind="number")])
