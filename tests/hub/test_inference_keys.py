"""API keys: who may, and who may not any more."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import serving_world as world
from click.testing import CliRunner

from cellwork import errors
from cellwork.cli import main
from cellwork.client import Client
from cellwork.wire.endpoints import Deploy, Request, Row
from cellwork.wire.keys import KeyWish
from cellwork_hub.context import Context
from cellwork_hub.inference.app import build
from cellwork_hub.inference.door import FrontDoor

BODY = {"rows": [{"features": {"visits": 3.0, "plan": "free"}}]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.saved(1, tmp_path_factory.mktemp("models") / "1")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return world.context(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def client(context: Context, model: Path) -> Iterator[Client]:
    folders = world.Folders()
    folders.add(model, 1)
    folders.add(model, 1, "other/churn")

    def service() -> FrontDoor:
        return build(context, authorise=world.authorise, registry=folders, lookup=lambda *_: {})

    with world.running(service, context.ports["inference"]) as address, world.caller(address) as client:
        for name in (world.MODEL, "other/churn"):
            client.endpoints.deploy(name, Deploy(version=1))
        yield client


def status(url: str, token: str, *, body: object = BODY) -> int:
    headers = {"authorization": f"Bearer {token}"}
    return httpx.post(url, json=body, headers=headers, trust_env=False, timeout=60).status_code


def wait_for(url: str, token: str, wanted: int) -> None:
    end = time.monotonic() + 60
    while (seen := status(url, token)) != wanted:
        assert time.monotonic() < end, seen
        time.sleep(0.1)


def test_a_key_asks_the_endpoints_of_its_project_through_both_ways_and_does_nothing_else(client: Client) -> None:
    made = client.keys.make(KeyWish(project="shop", name="web"))
    url = client.connection.url
    slow = {"rows": [{"features": {"visits": 3.0}, "observation": "o1"}]}
    for body in (BODY, slow):
        assert status(f"{url}/predict/{world.MODEL}", made.token, body=body) == 200
        assert status(f"{url}/predict/other/churn", made.token, body=body) == 404
    assert status(f"{url}/v2/models/other.churn/infer", made.token, body={"inputs": []}) == 404
    with Client(url, made.token) as program:
        answer = program.endpoints.predict(world.MODEL, Request(rows=[Row(features={"visits": 3.0})]))
        with pytest.raises(errors.Refused, match="endpoints:write"):
            program.endpoints.deploy(world.MODEL, Deploy(version=1))
        with pytest.raises(errors.Refused, match="endpoints:read"):
            program.endpoints.get(world.MODEL)
    assert client.endpoints.prediction(answer.outputs[0].id).caller == "shop/web"


def test_a_key_that_may_read_sees_its_project_and_no_other(client: Client) -> None:
    made = client.keys.make(KeyWish(project="shop", name="eyes", scopes=["endpoints:read"]))
    with Client(client.connection.url, made.token) as program:
        assert [found.routes.endpoint for found in program.endpoints.list()] == [world.MODEL]
        assert {key.project for key in program.keys.list()} == {"shop"}
        with pytest.raises(errors.NotFound):
            program.endpoints.get("other/churn")
        with pytest.raises(errors.Refused):
            program.keys.make(KeyWish(project="shop", name="more"))


def test_a_revoked_or_expired_key_opens_nothing_any_more(client: Client, context: Context) -> None:
    url = f"{client.connection.url}/predict/{world.MODEL}"
    revoked, expired = (client.keys.make(KeyWish(project="shop", name=name)) for name in ("gone", "old"))
    assert (status(url, revoked.token), status(url, expired.token)) == (200, 200)
    first = client.keys.revoke(revoked.key.id)
    assert client.keys.revoke(revoked.key.id) == first
    wait_for(url, revoked.token, 401)
    with sqlite3.connect(context.home.database("inference"), timeout=60) as db:
        db.execute(
            "UPDATE keys SET expires = ? WHERE id = ?", (datetime.now(UTC).timestamp() * 1e6 - 1, expired.key.id)
        )
    wait_for(url, expired.token, 401)


def test_a_token_that_is_not_quite_one_is_nobodys(client: Client) -> None:
    url = f"{client.connection.url}/predict/{world.MODEL}"
    token = client.keys.make(KeyWish(project="shop", name="near")).token
    flipped = token[:-1] + ("A" if token[-1] != "A" else "B")
    for wrong in (flipped, token[:-1], token.upper(), "cwk_", token + "x"):
        assert status(url, wrong) == 401, wrong


def test_the_database_does_not_hold_a_token(client: Client, context: Context) -> None:
    token = client.keys.make(KeyWish(project="shop", name="secret")).token
    with sqlite3.connect(context.home.database("inference")) as db:
        dump = "\n".join(db.iterdump())
    assert token.split("_", 2)[2] not in dump


@pytest.mark.parametrize(
    ("wish", "kind", "message"),
    [
        (
            KeyWish(project="shop", name="x", scopes=["endpoints:write"]),
            errors.BadInput,
            "is not one that a key may have",
        ),
        (KeyWish(project="shop", name="x", scopes=[]), errors.BadInput, "needs a scope"),
        (KeyWish(project="shop", name="x", days=-1), errors.BadInput, "needs a scope"),
        (KeyWish(project="Shop", name="x"), errors.BadInput, "is not a name"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(
    client: Client, wish: KeyWish, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        client.keys.make(wish)


def test_the_command_line_makes_lists_and_revokes_keys(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLWORK_URL", client.connection.url)
    monkeypatch.setenv("CELLWORK_TOKEN", "deployer")
    made = CliRunner().invoke(main, ["key", "make", "shop", "cli", "--days", "1"])
    assert made.exit_code == 0, made.output
    token = made.output.splitlines()[0]
    assert status(f"{client.connection.url}/predict/{world.MODEL}", token) == 200
    key = next(k.id for k in client.keys.list("shop") if k.name == "cli")
    assert "cli" in CliRunner().invoke(main, ["key", "list", "shop"]).output
    assert "opens nothing" in CliRunner().invoke(main, ["key", "revoke", key]).output
    assert CliRunner().invoke(main, ["key", "make", "shop", "cli", "--scope", "admin"]).exit_code == 2
