"""Scoring a dataset through its endpoint: nothing twice, and never another model's score or that of other values."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import serving_world as world

from cellwork.client import Client
from cellwork.serving import score_batch
from cellwork.wire.endpoints import Deploy, Request, Row
from cellwork_hub.inference.app import build
from cellwork_hub.inference.door import FrontDoor

COLUMNS = ["visits", "plan", "customer__age"]
OTHER = "shop/other"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Another model's version 1 is this one's version 2; `shop/same` has the very files of version 1."""
    folder, folders = tmp_path_factory.mktemp("models"), world.Folders()
    for seed in (1, 2):
        folders.add(world.saved(seed, folder / str(seed)), seed)
    folders.add(folders.folders[world.MODEL, 2], 1, OTHER)
    folders.add(folders.folders[world.MODEL, 1], 1, "shop/same")
    context = world.context(tmp_path_factory.mktemp("home"))

    def service() -> FrontDoor:
        return build(
            context, authorise=world.authorise, registry=folders, lookup=lambda *_: {}, deadline=world.DEADLINE
        )

    with world.running(service, context.ports["inference"]) as address, world.caller(address) as client:
        yield client


@pytest.fixture
def endpoint(client: Client, request: pytest.FixtureRequest) -> str:
    """An endpoint of the test's own; version 1 is live."""
    name = f"shop/b{abs(hash(request.node.name)) % 10**9}"
    return client.endpoints.deploy(name, Deploy(version=1, model=world.MODEL)).endpoint


def dataset(**visits: float) -> Any:
    """A built dataset: observation -> its visits."""
    count = len(visits)
    frame = pl.DataFrame(
        {
            "id": list(visits), "at": [datetime(2024, 1, 1, tzinfo=UTC)] * count, "visits": list(visits.values()), "plan": ["free"] * count,
            "customer__age": [1.0] * count, "label": [0.0] * count,
        }
    )  # fmt: skip
    record = SimpleNamespace(name="march", id_column="id", time_column="at", inputs=COLUMNS, features=[])
    return SimpleNamespace(record=record, frame=lambda: frame)


def scored(client: Client, endpoint: str, rows: Any) -> pl.DataFrame:
    return score_batch(rows, endpoint, run="run_1", client=client)


def asked(client: Client, endpoint: str, *visits: float) -> list[float]:
    """The scores without any key."""
    rows = [Row(features={"visits": each, "plan": "free", "customer__age": 1.0}) for each in visits]
    return [output.score for output in client.endpoints.predict(endpoint, Request(rows=rows)).outputs]


def test_the_same_rows_by_the_same_version_are_written_once(client: Client, endpoint: str) -> None:
    """In whatever company and order they come."""
    first = scored(client, endpoint, dataset(a=3.0, b=30.0))
    again = scored(client, endpoint, dataset(b=30.0, c=7.0, a=3.0))
    assert (first["repeated"].to_list(), again["repeated"].to_list()) == ([False, False], [True, False, True])
    assert again.sort("observation")["prediction"].to_list()[:2] == first["prediction"].to_list()
    logged = [each for each in client.endpoints.predictions(endpoint, limit=100) if each.batch_run]
    assert sorted(each.observation for each in logged) == ["a", "b", "c"]


@pytest.mark.parametrize("other", [OTHER, "shop/same"])
def test_another_model_of_the_same_number_scores_anew(client: Client, endpoint: str, other: str) -> None:
    rows = dataset(a=3.0, b=30.0)
    first = scored(client, endpoint, rows)
    client.endpoints.deploy(endpoint, Deploy(version=1, model=other))
    found = scored(client, endpoint, rows)
    assert (first["version"].to_list(), found["version"].to_list()) == ([1, 1], [1, 1])
    assert found["repeated"].to_list() == [False, False]
    assert found["score"].to_list() == asked(client, endpoint, 3.0, 30.0)
    assert client.endpoints.prediction(found["prediction"][0]).version.name == other


def test_a_corrected_row_is_scored_by_its_new_values_and_the_log_has_both(client: Client, endpoint: str) -> None:
    scored(client, endpoint, dataset(a=3.0, b=5.0))
    found = scored(client, endpoint, dataset(a=30.0, b=5.0))
    assert found["repeated"].to_list() == [False, True]
    assert found["score"].to_list() == asked(client, endpoint, 30.0, 5.0)
    logged = [each for each in client.endpoints.predictions(endpoint, limit=100) if each.observation == "a"]
    assert sorted(each.features["visits"] for each in logged) == [3.0, 30.0]
    newest = client.endpoints.predict(endpoint, Request(rows=[Row(observation="a")])).outputs[0]
    assert newest.id == found["prediction"][0], "by its observation alone"
