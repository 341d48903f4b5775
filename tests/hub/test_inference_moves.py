"""Changing what an endpoint answers with, while it is asked: rollback, swaps under load, two people at once, a request that comes again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import endpoint_house
import pytest
import serving_world as world
from endpoint_house import row, together
from running import wait_for

from cellwork import db
from cellwork.client import Client
from cellwork.errors import Conflict
from cellwork.wire.endpoints import Deploy, Request
from cellwork_hub.context import Context
from cellwork_hub.platform import alert_deeds
from cellwork_hub.platform.state import State


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> world.Folders:
    return endpoint_house.folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, folders: world.Folders) -> Iterator[Client]:
    """One service for the tests of this module; each changes endpoints of its own."""
    with endpoint_house.served(tmp_path_factory.mktemp("home"), folders) as client:
        yield client


@pytest.fixture(scope="module")
def moving(client: Client) -> str:
    """An endpoint that tests change; it has had versions 1 and 2."""
    client.endpoints.deploy(world.MODEL, Deploy(version=1))
    return client.endpoints.deploy(world.MODEL, Deploy(version=2)).endpoint


def test_a_repeated_request_id_gets_the_logged_answer_whatever_is_live_now(client: Client, moving: str) -> None:
    first = client.endpoints.predict(moving, Request(rows=[row(1.0), row(30.0)], id="order-7"))
    client.endpoints.rollback(moving)
    again = client.endpoints.predict(moving, Request(rows=[row(1.0), row(30.0), row(8.0)], id="order-7"))
    assert [(o.id, o.score) for o in again.outputs[:2]] == [(o.id, o.score) for o in first.outputs]
    assert [output.repeated for output in again.outputs] == [True, True, False]
    assert len([p for p in client.endpoints.predictions(moving) if p.request_id == "order-7"]) == 3


def test_the_same_request_id_at_once_is_answered_and_logged_once(client: Client, moving: str) -> None:
    request = Request(rows=[row(5.0)], id="order-8")
    answers = together([lambda: client.endpoints.predict(moving, request).outputs[0]] * 8)
    assert len({(output.id, output.score) for output in answers}) == 1
    assert len([p for p in client.endpoints.predictions(moving) if p.request_id == "order-8"]) == 1


def test_an_alert_rolls_back_the_version_it_is_about_and_no_other(client: Client, moving: str, tmp_path: Path) -> None:
    """What the platform does of itself is the same call as a person's, and only while that version answers."""
    here = world.context(tmp_path)
    (here.home.secrets / "cellwork-token").write_text("deployer")
    (here.home.secrets / "cellwork-token").chmod(0o600)
    port = int(client.connection.url.rpartition(":")[2])
    engine = db.open_database(f"sqlite:///{tmp_path}/platform.sqlite", [])
    state = State(engine, here.home, Context(here.settings, {**here.ports, "public": port}))
    client.endpoints.deploy(moving, Deploy(version=2))

    def back(version: int, *models: str) -> str:
        target = {"version": f"{moving}@{version}", "models": list(models)}
        return alert_deeds._roll_back(state, moving, target, "worse")

    assert back(7, moving) == f"not needed: {moving}@2 answers"
    assert back(2, "shop/churn-trees") == f"not needed: {moving}@2 answers", "another model's version of that number"
    assert back(2, moving, "shop/churn-trees").startswith(
        "not done: shop/churn, shop/churn-trees answered as version 2"
    )
    assert back(2, moving).startswith(f"{moving}@1 answers again")
    assert back(2, moving) == f"not needed: {moving}@1 answers"
    assert alert_deeds._roll_back(state, moving, f"{moving}@2", "noted before models were") == f"not needed: {moving}@1 answers"  # fmt: skip
    assert client.endpoints.get(moving).routes.live.version == 1


def test_rollback_goes_back_at_once_and_deploying_the_live_version_changes_nothing(
    client: Client, moving: str, folders: world.Folders
) -> None:
    before = client.endpoints.get(moving).routes
    assert before.previous is not None
    folders.away = True  # what was live is at hand: whoever fetched it again would fail
    after = client.endpoints.rollback(moving, "worse")
    folders.away = False
    assert (after.revision, after.live, after.previous) == (before.revision + 1, before.previous, before.live)
    assert client.endpoints.predict(moving, Request(rows=[row()])).model == before.previous
    assert client.records.audit(service="inference")[-1].reason == "worse"
    assert client.endpoints.deploy(moving, Deploy(version=after.live.version)) == after


def test_swapping_versions_under_load_fails_no_request_and_the_log_names_each_answers_version(
    client: Client, moving: str
) -> None:
    answers: list[tuple[str, int]] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answer = client.endpoints.predict(moving, Request(rows=[row()]))
            answers.append((answer.outputs[0].id, answer.model.version))
            stop.wait(0.01)  # the version that is deployed meanwhile needs the processor too

    def swap() -> None:
        try:
            for _ in range(10):
                version, before = client.endpoints.rollback(moving).live.version, len(answers)
                wait_for(lambda: version in {seen for _, seen in answers[before:]}, 60, "an answer")  # noqa: B023
            client.endpoints.deploy(moving, Deploy(version=3))
        finally:
            stop.set()

    assert together([ask] * 4 + [swap]) == [None] * 5
    logged = {p.id: p.version.version for p in client.endpoints.predictions(moving, limit=10_000)}
    assert {version for _, version in answers} >= {1, 2}
    assert [version for name, version in answers if logged[name] != version] == []


def test_of_two_people_who_saw_the_same_revision_one_wins_and_one_is_told(client: Client, moving: str) -> None:
    seen = client.endpoints.deploy(moving, Deploy(version=3)).revision
    wishes = [Deploy(version=version, revision=seen) for version in (1, 2)]
    results = together([lambda wish=wish: client.endpoints.deploy(moving, wish) for wish in wishes])  # type: ignore[misc]
    assert sorted(type(result).__name__ for result in results) == ["Conflict", "RouteTable"]
    assert client.endpoints.get(moving).routes.revision == seen + 1


def test_who_goes_back_from_what_was_seen_undoes_nothing_that_came_meanwhile(client: Client, moving: str) -> None:
    seen = client.endpoints.get(moving).routes.revision
    client.endpoints.deploy(moving, Deploy(version=3))
    with pytest.raises(Conflict, match="was changed meanwhile"):
        client.endpoints.rollback(moving, "worse", revision=seen)
    now = client.endpoints.get(moving).routes
    assert now.live.version == 3
    assert client.endpoints.rollback(moving, "worse", revision=now.revision).live == now.previous
