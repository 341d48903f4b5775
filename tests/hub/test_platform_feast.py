"""Feast's own objects and commands on the platform: apply, history, online, materialize; and definitions that wait for acceptance."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import feature_world
import pandas as pd
import pytest
from feature_world import DAY, flights, new_state, service, work

from cellwork import scopes
from cellwork.client import Client
from cellwork.errors import Conflict, NotFound, Refused
from cellwork.features import define, feast_store
from cellwork.wire.batches import RawDataset
from cellwork.wire.features import Definitions, Field, Select, View
from cellwork.wire.records import Principal
from cellwork_hub.platform import feature_definitions
from cellwork_hub.platform.state import State

HOUR = timedelta(hours=1)
FILE = """
from datetime import timedelta
import pandas as pd
from feast import Entity, FeatureService, FeatureView, Field, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64
from cellwork.features import Aggregate, Prepared, RawDataset, Rolling
from cellwork.features.feast import PipelineSource

flights = RawDataset(name="flights")
landed = Prepared(name="landed", sources=["flights"], sql="SELECT *, planned + INTERVAL 2 HOUR AS landed FROM flights")
origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
late = FeatureView(
    name="late", entities=[origin], ttl=timedelta(days=2),
    schema=[Field(name="n", dtype=Int64), Field(name="delay", dtype=Float64)],
    source=PipelineSource(Rolling(
        rows="landed", event="planned", known="landed", window="6h", every="1h",
        aggregates={"n": Aggregate(function="count"), "delay": Aggregate(function="mean", column="delay")},
    )),
)

@on_demand_feature_view(sources=[late], schema=[Field(name="total", dtype=Float64)])
def summed(inputs: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"total": inputs["n"] * inputs["delay"]})

both = FeatureService(name="both", features=[late])
"""


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    return new_state(tmp_path_factory.mktemp("feast") / "home")


@pytest.fixture(scope="module")
def client(state: State) -> Iterator[Client]:
    with service(state) as connected:
        yield connected


@pytest.fixture(scope="module")
def folder(client: Client, state: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project whose definitions were applied by Feast's own command."""
    made = tmp_path_factory.mktemp("repo")
    (made / "cellwork.toml").write_text('[project]\nname = "air"\nowner = "ada"\n')
    (made / "definitions.py").write_text(FILE)
    (made / feast_store.FILE).write_text(feast_store.configuration("air"))
    for day in range(2):
        client.batches.ingest("air", "flights", flights(day), f"day{day}")
    patch = pytest.MonkeyPatch()
    patch.setenv("CELLWORK_URL", client.connection.url)
    patch.setenv("CELLWORK_TOKEN", "token")
    command = [str(Path(sys.executable).with_name("feast")), "apply"]
    done = subprocess.run(command, cwd=made, capture_output=True, text=True, timeout=240, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    work(state)
    yield made
    patch.undo()


@pytest.fixture(scope="module")
def store(folder: Path) -> Any:
    define.load_feast()
    from feast import FeatureStore

    return FeatureStore(repo_path=str(folder))


def test_feast_apply_makes_definitions_of_the_platform(folder, client):
    known = client.features.definitions("air")
    assert [view.name for view in known.views] == ["late"]
    assert [each.name for each in known.prepared] == ["landed"]
    assert known.views[0].owner == "ada"
    assert [each.features for each in known.services] == [["late:n", "late:delay"]]


def asked(*rows: tuple[str | None, datetime]) -> pd.DataFrame:
    return pd.DataFrame(
        {"origin": [row[0] for row in rows], "event_timestamp": [row[1] for row in rows], "note": range(len(rows))}
    )


def test_every_entity_row_comes_back_in_its_order_with_what_was_known(store, client):
    at = DAY + 20 * HOUR
    zone = pd.Timestamp(at).tz_convert("Asia/Kathmandu")
    rows = asked(
        ("LGA", at),
        ("JFK", at),
        ("LGA", zone),
        ("LGA", at),
        ("XXX", at),
        (None, at),
        ("JFK", DAY - 30 * HOUR),
        ("JFK", DAY + 200 * HOUR),
    )
    job = store.get_historical_features(rows, ["late:n", "late:delay", "summed:total"])
    frame = job.to_df()
    assert frame["note"].tolist() == list(range(8))
    view = client.features.rows("air", "late").sort("event_timestamp")
    newest = view.filter(origin="LGA").filter(view.filter(origin="LGA")["created_timestamp"] <= at).row(-1, named=True)
    assert frame["n"].tolist()[0] == newest["n"] == frame["n"].tolist()[2] == frame["n"].tolist()[3]
    assert frame["total"][0] == newest["n"] * newest["delay"]
    assert frame["n"].isna().tolist() == [False, False, False, False, True, True, True, True]
    found = job.coverage[0]
    assert (found.view, found.found, found.unknown, found.no_key, found.early, found.expired) == ("late", 4, 1, 1, 1, 1)
    full = store.get_historical_features(rows, store.get_feature_service("both"), full_feature_names=True).to_df()
    assert {"late__n", "late__delay"} <= set(full.columns)
    assert full["late__n"].equals(frame["n"].rename("late__n"))


def test_online_features_are_the_newest_also_through_feast(store, client):
    answer = store.get_online_features(["late:n", "summed:total"], [{"origin": "LGA"}, {"origin": "XXX"}]).to_dict()
    ours = client.features.online("air", ["late:n", "late:delay"], {"origin": ["LGA"]}).views["late"][0].values
    assert answer["n"] == [ours["n"], None]
    assert answer["total"][0] == ours["n"] * ours["delay"]


def test_a_push_by_feast_is_seen_online_and_offline_and_an_older_one_changes_nothing(store, client):
    now = datetime(2020, 1, 1, tzinfo=UTC)
    frame = pd.DataFrame(
        {"origin": ["EWR"], "n": [7], "delay": [1.5], "event_timestamp": [now], "created_timestamp": [now]}
    )
    store.write_to_online_store("late", df=frame)
    store.write_to_online_store("late", df=frame.assign(n=3, event_timestamp=now - HOUR))
    assert store.get_online_features(["late:n"], [{"origin": "EWR"}]).to_dict()["n"] == [7]
    seen = store.get_historical_features(asked(("EWR", now + HOUR), ("EWR", now)), ["late:n"]).to_df()
    assert seen["n"].tolist() == [7, 7]


def test_materialize_keeps_its_interval_in_the_registry_and_changes_no_definition(store, client, folder):
    before = client.features.definitions("air")
    store.materialize(DAY - HOUR, DAY + 60 * HOUR)
    store.materialize_incremental(DAY + 70 * HOUR)
    after = client.features.definitions("air")
    assert [view.name for view in after.views] == [view.name for view in before.views]
    from feast import FeatureStore

    again = FeatureStore(repo_path=str(folder)).get_feature_view("late")
    assert again.most_recent_end_time == DAY + 70 * HOUR


def test_what_an_author_applies_waits_until_it_is_accepted(tmp_path, monkeypatch):
    state = new_state(tmp_path / "home")
    author = Principal(kind="user", name="bob", scopes=scopes.ROLES["author"])
    with service(state) as deployer:
        deployer.batches.declare("air", RawDataset(name="flights"))
        monkeypatch.setattr(feature_world, "ANYONE", author)
        with service(state) as client:
            proposed = client.features.apply(feature_world.definitions())
            assert proposed.proposal
            with pytest.raises(NotFound, match="were never applied"):
                client.features.definitions("air")
            with pytest.raises(Refused):
                client.features.decide("air", proposed.proposal, accept=True)
            monkeypatch.undo()
            waiting = client.features.proposals("air")
            assert [(each.by, each.state) for each in waiting] == [("bob", "open")]
        assert deployer.features.decide("air", proposed.proposal, accept=True).state == "accepted"
        assert [view.name for view in deployer.features.definitions("air").views] == ["late", "plan"]
        with pytest.raises(Conflict, match="was accepted by ada before"):
            deployer.features.decide("air", proposed.proposal, accept=False)


@pytest.fixture
def deployer(tmp_path: Path) -> Iterator[Client]:
    with service(new_state(tmp_path / "home")) as connected:
        connected.batches.declare("air", RawDataset(name="flights"))
        connected.features.apply(feature_world.definitions())
        yield connected


def with_views(*names: str) -> Definitions:
    wanted, pipeline = feature_world.definitions(), Select(rows="landed", event="asked", known="asked")
    fields = [Field(name="delay", type="Float32")]
    wanted.views += [View(name=name, entities=["flight"], pipeline=pipeline, fields=fields) for name in names]
    return wanted


def propose(client: Client, wanted: Definitions) -> str:
    author = Principal(kind="user", name="bob", scopes=scopes.ROLES["author"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_world, "ANYONE", author)
        return client.features.apply(wanted).proposal


def views(client: Client) -> list[str]:
    return [view.name for view in client.features.definitions("air").views]


def test_a_proposal_takes_nothing_back_that_was_applied_since(deployer):
    first, second = propose(deployer, with_views("a")), propose(deployer, with_views("b"))
    assert deployer.features.decide("air", first, accept=True).state == "accepted"
    with pytest.raises(Conflict, match=r"against revision 1, but revision 2 was applied since.*propose it again"):
        deployer.features.decide("air", second, accept=True)
    assert views(deployer) == ["late", "plan", "a"]
    assert deployer.features.decide("air", second, accept=False).state == "rejected"
    again = propose(deployer, with_views("a", "b"))
    deployer.features.apply(with_views("a", "c"))
    with pytest.raises(Conflict, match="revision 3 was applied since"):
        deployer.features.decide("air", again, accept=True)
    deployer.features.apply(with_views("a", "b"))
    assert deployer.features.decide("air", again, accept=True).state == "accepted"  # it is as was proposed
    assert views(deployer) == ["late", "plan", "a", "b"]
    assert [each.base for each in deployer.features.proposals("air")] == [1, 1, 2]


def test_of_two_who_decide_at_once_one_decides(deployer):
    proposal = propose(deployer, with_views("a"))

    def decide(accept: bool) -> str:
        try:
            return deployer.features.decide("air", proposal, accept=accept).state
        except Conflict:
            return ""

    with ThreadPoolExecutor(2) as people:
        with feature_definitions.applying:  # whoever accepts waits before anything is applied
            accepting = people.submit(decide, True)
            time.sleep(1)
            rejecting = people.submit(decide, False)
            time.sleep(1)
        told = accepting.result(60), rejecting.result(60)
    state = deployer.features.proposals("air")[0].state
    assert sorted(told) == ["", state]
    assert ("a" in views(deployer)) == (state == "accepted")
