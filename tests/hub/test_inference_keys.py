"""API keys, and the service that runs alone with nothing else: who may, who may not any more, and what is left after it ends."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import serving_world as world
from click.testing import CliRunner

from cellwork import db, errors
from cellwork.cli import main
from cellwork.client import Client
from cellwork.serving.log import PredictionLog
from cellwork.wire.endpoints import Deploy, Request, Row
from cellwork.wire.keys import KeyWish
from cellwork_hub.context import Context
from cellwork_hub.inference.app import MIGRATIONS, build
from cellwork_hub.inference.door import FrontDoor

ENDED = (0, -signal.SIGTERM)
"""uvicorn raises the signal again when all is done."""
BODY = {"rows": [{"features": {"visits": 3.0, "plan": "free"}}]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.save(world.estimator(1), world.FRAME, tmp_path_factory.mktemp("models") / "1")


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
    return httpx.post(url, json=body, headers=headers, trust_env=False, timeout=30).status_code


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
    with sqlite3.connect(context.home.database("inference")) as db:
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


class Alone:
    """`cellwork serve` as a process."""

    def __init__(self, home: Path, *models: str) -> None:
        self.port = world.free_port()
        command = [str(Path(sys.executable).with_name("cellwork")), "serve", *models, "--port", str(self.port)]
        command += ["--new-key", "web"] if models else []
        self.process = subprocess.Popen(
            command, env={**os.environ, "CELLWORK_HOME": str(home)}, stdout=subprocess.PIPE, text=True
        )
        self.url = f"http://127.0.0.1:{self.port}/predict/{world.MODEL}"
        end = time.monotonic() + 90
        while not self._ready():
            assert self.process.poll() is None, "the service ended"
            assert time.monotonic() < end, "the service did not start"
            time.sleep(0.05)

    def _ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def token(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def test_the_service_runs_alone_answers_what_it_has_begun_when_it_ends_and_serves_again_what_it_had(
    tmp_path: Path, model: Path
) -> None:
    home = tmp_path / "home"
    alone = Alone(home, f"{world.MODEL}={model}")
    token = alone.token()
    answered, wrong = list[str](), list[str]()

    def ask() -> None:
        headers = {"authorization": f"Bearer {token}"}
        while True:
            try:
                answer = httpx.post(alone.url, json=BODY, headers=headers, trust_env=False, timeout=30)
            except httpx.TransportError:
                return  # it takes nobody any more
            if answer.status_code != 200:
                wrong.append(answer.text)
            else:
                answered.append(answer.json()["outputs"][0]["id"])

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 60
    while len(answered) < 50 and time.monotonic() < end:
        time.sleep(0.01)
    alone.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert alone.process.wait(60) in ENDED
    assert (wrong, len(answered) >= 50) == ([], True)
    again = Alone(home)
    try:
        assert status(again.url, token) == 200
        assert status(again.url, "deployer") == 401
    finally:
        again.process.terminate()
        assert again.process.wait(60) in ENDED
    engine = db.open_database(f"sqlite:///{home / 'db' / 'inference.sqlite'}", MIGRATIONS)
    logged = {p.id for p in PredictionLog(engine, home / "predictions" / "segments").after(0, limit=10_000)}
    engine.dispose()
    assert logged >= set(answered)
    assert len(logged) == len(answered) + 1  # that of the second service: what was begun was answered
