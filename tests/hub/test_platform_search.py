"""What is there is found by words, with who uses it; a view that repeats another is named with its owner and users."""

from __future__ import annotations

import json

import msgspec
import pytest
from click.testing import CliRunner
from feature_world import definitions, flights, work

from cellwork import features
from cellwork.cli import main
from cellwork.client import Client
from cellwork.errors import BadInput, NotFound
from cellwork.wire.batches import RawDataset
from cellwork.wire.features import Definitions, Entity, Field, Prepared, Select, View
from cellwork_hub import records
from cellwork_hub.platform.state import State


@pytest.fixture
def air(client: Client, state: State) -> Client:
    """A project with data, features and a model that was evaluated on a dataset of them."""
    declared = RawDataset(name="flights", owner="ada", description="departures", tags={"source": "bts"})
    client.batches.declare("air", declared)
    for day in (0, 1):
        client.batches.ingest("air", "flights", flights(day), f"day{day}")
    wanted = definitions()
    wanted.views[1].owner = "ada"
    client.features.apply(wanted)
    work(state)
    record = {
        "id": "ds_1", "project": "air", "name": "training", "rows": 1, "observations": "departures", "id_column": "id",
        "time_column": "asked", "inputs": [], "features": ["plan__delay"], "label": "", "labelled": 0,
        "start": "2013-01-01T00:00:00Z", "end": "2013-01-01T00:00:00Z", "content_sha256": "", "revision": 1, "batches": [],
        "coverage": [], "at": "2013-01-01T00:00:00Z", "origin": {},
    }  # fmt: skip
    with state.engine.begin() as db:
        statement = "INSERT INTO datasets (id, project, name, record) VALUES ('ds_1', 'air', 'training', ?)"
        db.exec_driver_sql(statement, (msgspec.json.encode(record).decode(),))
        records.edge(db, "air/late@1", "trained_on", "ds_1")
        records.edge(db, "a" * 32, "registered_as", "air/late@1")
        records.edge(db, "a" * 32, "made_by", "run_01")
    return client


def test_names_owners_tags_entities_and_labels_are_found_with_their_users(air: Client) -> None:
    assert air.search.find("flights")[0].name == "flights"
    assert [(f.kind, f.name) for f in air.search.find("bts")] == [("raw", "flights")]
    assert {f.name for f in air.search.find("origin", kind="view")} == {"late"}
    label = air.search.find("departures", kind="label")[0]
    assert (label.name, label.used_by) == (
        "departures:delay",
        ["dataset:air/training", "model:air/late@1", "run:run_01"],
    )
    feature = next(f for f in air.search.find("plan delay", kind="feature"))
    assert feature.used_by == ["service:all", "dataset:air/training", "model:air/late@1", "run:run_01"]
    assert air.search.find("plan", project="sea") == []
    with pytest.raises(BadInput, match="query parameter"):
        air.search.find("")


def test_a_view_that_repeats_another_is_named_with_its_twin_owner_and_users(air: Client, state: State) -> None:
    """Another project, other names, Fahrenheit for Celsius: the values tell."""
    for day in (0, 1):
        air.batches.ingest("sea", "legs", flights(day), f"day{day}")
    sql = "SELECT id AS leg, delay * 1.8 + 32 AS heat, id % 7 AS week, planned FROM legs"
    copied = Definitions(
        project="sea",
        prepared=[Prepared(name="heated", sources=["legs"], sql=sql)],
        entities=[Entity(name="leg", join_keys=["leg"])],
        views=[
            View(
                name="hot", entities=["leg"], pipeline=Select(rows="heated", event="planned", known="planned"),
                fields=[Field(name="heat", type="Float64"), Field(name="week", type="Int64")],
            )
        ],
    )  # fmt: skip
    applied = air.features.apply(copied)
    assert features.near_duplicates(applied) == [], "nothing is filled yet, and the definitions differ"
    work(state)
    (twin,) = features.near_duplicates(applied)
    assert (twin.feature, twin.twin, twin.owner) == ("hot:heat", "air/plan:delay", "ada")
    assert "rank correlation" in twin.reason
    assert "model:air/late@1" in twin.used_by
    with pytest.raises(NotFound, match="did you mean 'hot'"):
        air.search.twins("sea", "hott")


def test_the_same_definition_under_another_name_is_seen_before_there_are_rows(air: Client) -> None:
    wanted = definitions()
    copy = msgspec.structs.replace(wanted.views[0], name="again")
    applied = air.features.apply(msgspec.structs.replace(wanted, views=[*wanted.views, copy]))
    found = {(t.feature, t.twin, t.reason) for t in features.near_duplicates(applied)}
    assert ("again:flights", "air/late:flights", "defined alike") in found


def test_the_command_line_searches(air: Client) -> None:
    said = CliRunner().invoke(main, ["search", "plan", "delay"])
    assert said.exit_code == 0, said.output
    assert "air/plan:delay" in said.output
    assert "model:air/late@1" in said.output
    listed = json.loads(CliRunner().invoke(main, ["search", "departures", "--json"]).output)
    assert {"label", "raw"} <= {found["kind"] for found in listed}
