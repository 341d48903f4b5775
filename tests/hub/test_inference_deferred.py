"""Predictions asked for now and answered later: polled, pushed, and there again after a kill."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
import serving_world as world
from ports import free_port
from sqlalchemy import text

from cellwork import db, errors
from cellwork.client import Client
from cellwork.home import Home
from cellwork.notify import signing_key
from cellwork.wire.endpoints import ArmWish, Deploy, Request, Row, Submission, Submit
from cellwork_hub.context import Context
from cellwork_hub.inference import deferred, deploy
from cellwork_hub.inference.app import MIGRATIONS, build
from cellwork_hub.inference.door import FrontDoor

REQUEST = Request(rows=[Row(features={"visits": 3.0, "plan": "free"})])


class Hook(HTTPServer):
    """Takes webhooks; the first of each is answered with 500."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[tuple[dict[str, Any], str, bytes]] = []


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert isinstance(self.server, Hook)
        said = json.loads(body)
        first = all(each[0]["id"] != said["id"] for each in self.server.got)
        self.server.got.append((said, self.headers["x-cellwork-signature"], body))
        self.send_response(500 if first else 200)
        self.end_headers()

    def log_message(self, *words: Any) -> None:
        return


@pytest.fixture(scope="module")
def hook() -> Iterator[Hook]:
    server = Hook()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join(60)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory, hook: Hook) -> Context:
    made = world.context(tmp_path_factory.mktemp("home"))
    return replace(made, settings=replace(made.settings, webhook_hosts=f"127.0.0.1:{hook.server_port}"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, context: Context) -> Iterator[Client]:
    folder, folders = tmp_path_factory.mktemp("models"), world.Folders()
    folders.add(world.saved(1, folder / "1"), 1)

    def service() -> FrontDoor:
        return build(
            context, authorise=world.authorise, registry=folders, lookup=lambda *_: {}, deadline=world.DEADLINE
        )

    with world.running(service, context.ports["inference"]) as address, world.caller(address) as client:
        client.endpoints.deploy(world.MODEL, Deploy(version=1))
        yield client


def when(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def ended(client: Client, made: Submission) -> Submission:
    when(lambda: client.endpoints.submission(made.id).state != "submitted")
    return client.endpoints.submission(made.id)


def test_a_submission_is_answered_as_it_would_have_been_at_once_and_is_in_the_log_once(client: Client) -> None:
    expected = client.endpoints.predict(world.MODEL, REQUEST).outputs[0].score
    made = client.endpoints.submit(world.MODEL, Submit(request=REQUEST))
    assert (made.state, made.caller) == ("submitted", "deployer")
    done = ended(client, made)
    assert done.answer is not None
    assert (done.state, done.answer.outputs[0].score) == ("done", expected)
    logged = [p for p in client.endpoints.predictions(world.MODEL, limit=10_000) if p.request_id == made.id]
    assert [(p.id, p.score) for p in logged] == [(done.answer.outputs[0].id, expected)]


def test_a_submission_that_was_answered_when_the_service_was_killed_gets_that_answer(
    client: Client, context: Context
) -> None:
    """As if the kill had come between the prediction log and the submission's own row."""
    made = ended(client, client.endpoints.submit(world.MODEL, Submit(request=REQUEST)))
    engine = db.attach(context.database_url("inference"))
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE submissions SET state = 'submitted', answer = 'null', due = 0 WHERE id = :id"), {"id": made.id}
        )
    engine.dispose()
    again = ended(client, made)
    assert made.answer is not None
    assert again.answer is not None
    assert (again.answer.outputs[0].id, again.answer.outputs[0].repeated) == (made.answer.outputs[0].id, True)


def test_an_answer_is_pushed_to_a_webhook_signed_and_again_until_it_is_taken(
    client: Client, context: Context, hook: Hook
) -> None:
    url = f"http://127.0.0.1:{hook.server_port}/answers?key=secret"
    made = client.endpoints.submit(world.MODEL, Submit(request=REQUEST, webhook=url))
    assert made.webhook == f"127.0.0.1:{hook.server_port}"
    when(lambda: len([1 for said, _, _ in hook.got if said["id"] == made.id]) == 2)
    said, signature, body = hook.got[-1]
    assert signature == "sha256=" + hmac.new(signing_key(context.home).encode(), body, hashlib.sha256).hexdigest()
    when(lambda: client.endpoints.submission(made.id).webhook == "")
    answer = client.endpoints.submission(made.id).answer
    assert answer is not None
    assert said["answer"]["outputs"][0]["id"] == answer.outputs[0].id


def test_a_submission_that_another_process_took_waits_until_this_one_knows_its_endpoint_and_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of two processes drives, and takes over after seconds what was deployed by the second."""
    monkeypatch.setattr(deploy, "FOLLOW_SECONDS", 4.0)
    context, folders = world.context(tmp_path / "home"), world.Folders()
    for version in (1, 2):
        folders.add(world.saved(version, tmp_path / str(version)), version)

    def service(worker: int) -> FrontDoor:
        return build(
            context, authorise=world.authorise, registry=folders, lookup=lambda *_: {}, deadline=world.DEADLINE, worker=worker
        )  # fmt: skip

    with (
        world.running(lambda: service(0), free_port()),
        world.running(lambda: service(1), free_port()) as second,
        world.caller(second) as client,
    ):
        client.endpoints.deploy(world.MODEL, Deploy(version=1))
        first = client.endpoints.submit(world.MODEL, Submit(request=REQUEST))
        assert (ended(client, first).state, ended(client, first).problem) == ("done", None)
        client.endpoints.put_arm(world.MODEL, 2, ArmWish())
        pinned = client.endpoints.submit(world.MODEL, Submit(request=msgspec.structs.replace(REQUEST, version=2)))
        answer = ended(client, pinned).answer
        assert answer is not None, ended(client, pinned).problem
        assert (answer.model.version, answer.route) == (2, "pinned")
        wrong = client.endpoints.submit(world.MODEL, Submit(request=msgspec.structs.replace(REQUEST, version=9)))
        assert ended(client, wrong).state == "failed", "what nobody knows is not waited for"


def test_many_submissions_of_one_endpoint_do_not_hold_up_those_of_another(tmp_path: Path) -> None:
    """Each look takes the oldest of every endpoint first."""
    engine = db.open_database(f"sqlite:///{tmp_path}/inference.db", MIGRATIONS)
    names = ["shop/many"] * 100 + ["shop/few"] * 2 + ["shop/some"] * 3
    with engine.begin() as connection:
        for number, name in enumerate(names):
            connection.execute(
                text(
                    "INSERT INTO submissions (id, endpoint, caller, at, request, webhook, state, answer, problem, due) "
                    "VALUES (:id, :endpoint, 'ada', 0, '{}', '', 'submitted', 'null', 'null', 0)"
                ),
                {"id": f"sub_{number}", "endpoint": name},
            )
    taken = deferred.Deferred(engine, None, Home(tmp_path), "")._due("submitted")  # type: ignore[arg-type]
    engine.dispose()
    many = [row["id"] for row in taken if row["endpoint"] == "shop/many"]
    assert many == [f"sub_{number}" for number in range(27)], "in their order, and no place stays empty"
    assert [row["endpoint"] for row in taken[27:]] == names[100:]


def test_a_wrong_request_fails_and_says_why(client: Client) -> None:
    wrong = Request(rows=[Row(features={"visit": 3.0})])
    failed = ended(client, client.endpoints.submit(world.MODEL, Submit(request=wrong)))
    assert failed.problem is not None
    assert (failed.state, "did you mean 'visits'" in failed.problem.way_out) == ("failed", True)


@pytest.mark.parametrize(
    ("endpoint", "wish", "kind", "message"),
    [
        ("shop/nothing", Submit(request=REQUEST), errors.NotFound, "does not exist"),
        (world.MODEL, Submit(request=Request(rows=[])), errors.BadInput, "send at least one row"),
        (world.MODEL, Submit(request=REQUEST, webhook="http://127.0.0.1:1/x"), errors.Refused, "webhook_hosts"),
        (world.MODEL, Submit(request=REQUEST, webhook="file:///etc/passwd"), errors.BadInput, "is not an address"),
        (world.MODEL, Submit(request=REQUEST, webhook="http://127.0.0.1/a b"), errors.BadInput, "is not an address"),
    ],
)
def test_what_can_never_be_answered_or_told_is_refused_at_once(
    client: Client, endpoint: str, wish: Submit, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        client.endpoints.submit(endpoint, wish)


def test_an_unknown_submission_is_not_found(client: Client) -> None:
    with pytest.raises(errors.NotFound, match="is not known"):
        client.endpoints.submission("sub_" + "0" * 26)
