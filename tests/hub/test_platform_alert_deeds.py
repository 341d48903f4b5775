"""What follows from an alert: a signed webhook, mail, a rollback; each until it succeeds."""

from __future__ import annotations

import hashlib
import hmac
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
import serving_world as world
from log_world import ENDPOINT, World
from monitor_world import DATASET, DAY, HOUR, do_waiting, predict, rows, trained, truths, watch
from running import wait_for
from sqlalchemy import text

from cellwork import notify
from cellwork.client import Client
from cellwork.wire.monitors import Monitor
from cellwork_hub import records
from cellwork_hub.platform import alert_deeds, alerts, monitors

EVIDENCE = {"version": f"{ENDPOINT}@1", "models": [ENDPOINT]}


@pytest.fixture
def shop(tmp_path: Path) -> World:
    made = World(tmp_path)
    trained(made)
    return made


@pytest.fixture
def client(shop: World) -> Iterator[Client]:
    with world.running(shop.service, shop.port) as address, world.caller(address, "admin") as client:
        yield client


def alert(shop: World, project: str, **fields: Any) -> None:
    """Let a monitor of `project`, as `fields` say, raise an alert."""
    monitor = msgspec.convert({"name": "m", "kind": "disk", **fields}, Monitor)
    found = alerts.Finding(subject=ENDPOINT, severity="critical", words="bad", evidence=EVIDENCE)
    with shop.state.engine.begin() as db:
        monitors._write(db, project, monitor, "ada")
        alerts.keep(db, project, monitor.name, [found], silent=False)


def tries(client: Client, project: str) -> list[tuple[str, int]]:
    [found] = client.monitors.alerts(project)
    return [(deed.what, deed.tries) for deed in client.monitors.deeds(found.id)]


class Hook(BaseHTTPRequestHandler):
    """Takes webhooks; the first one gets an error."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.seen.append((body, self.headers["x-cellwork-signature"]))  # type: ignore[attr-defined]
        self.send_response(500 if len(self.server.seen) == 1 else 204)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Hook)
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(60)


def test_a_webhook_is_told_of_an_alert_signed_and_until_it_listens(
    shop: World, client: Client, hook: HTTPServer
) -> None:
    predict(shop, rows(600, seed=8, shift=1.0))
    url = f"http://127.0.0.1:{hook.server_port}/told?key=hidden"
    watch(client, kind="drift", window="1d", tell=[{"webhook": url}, {"webhook": url, "on": ["resolved"]}])
    client.monitors.check("shop/m")
    client.monitors.check("shop/m")
    done = []
    for _ in range(3):
        done.append(do_waiting(shop.state))
        with shop.state.engine.begin() as db:
            db.execute(text("UPDATE alert_deeds SET next = 0"))
    assert done == [0, 1, 0], "once refused, then taken, then over"
    (first, _), (body, signature) = hook.seen  # type: ignore[attr-defined]
    assert first == body, "the same notice each time"
    said = msgspec.json.decode(body)
    assert (said["event"], said["subject"], said["severity"]) == ("alert.raised", ENDPOINT, "critical")
    assert said["url"].endswith("model.ipynb?endpoint=shop/churn")
    key = notify.signing_key(shop.state.home).encode()
    assert signature == "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest()
    [deed] = client.monitors.deeds(said["alert"])
    assert (deed.what, deed.tries, deed.words, deed.to) == ("webhook", 2, "arrived", f"127.0.0.1:{hook.server_port}")
    client.monitors.apply("shop", [])
    assert [d.event for d in client.monitors.deeds(said["alert"])] == ["raised", "resolved", "resolved"]


def test_without_a_mail_server_a_deed_says_what_to_set(shop: World, client: Client) -> None:
    predict(shop, rows(600, seed=8, shift=1.0))
    watch(client, kind="drift", tell=[{"mail": ["ada@example.org"], "least": "critical"}])
    client.monitors.check("shop/m")
    assert do_waiting(shop.state) == 0
    [alert] = client.monitors.alerts("shop")
    [deed] = client.monitors.deeds(alert.id)
    assert (deed.done, deed.to, "CELLWORK_MAIL_SERVER" in deed.words) == (None, "ada@example.org", True)


def test_that_an_alert_is_over_is_not_told_before_that_it_was_raised(
    shop: World, client: Client, hook: HTTPServer
) -> None:
    """The raise is refused once and waits; what follows it waits too."""
    predict(shop, rows(600, seed=8, shift=1.0))
    watch(client, kind="drift", window="1d", tell=[{"webhook": f"http://127.0.0.1:{hook.server_port}/told"}])
    client.monitors.check("shop/m")
    assert do_waiting(shop.state) == 0
    client.monitors.apply("shop", [])
    assert do_waiting(shop.state) == 0
    with shop.state.engine.begin() as db:
        db.execute(text("UPDATE alert_deeds SET next = 0"))
    assert [do_waiting(shop.state) for _ in range(3)] == [1, 1, 0]
    events = [msgspec.json.decode(body)["event"] for body, _ in hook.seen]  # type: ignore[attr-defined]
    assert events == ["alert.raised", "alert.raised", "alert.resolved"]


def test_each_person_gets_a_mail_of_their_own(shop: World, client: Client) -> None:
    """One whom the mail server refuses for now is tried again, and the others are not told twice."""
    alert(shop, "shop", tell=[{"mail": ["ada@example.org", "bob@example.org"]}])
    [found] = client.monitors.alerts("shop")
    assert [deed.to for deed in client.monitors.deeds(found.id)] == ["ada@example.org", "bob@example.org"]


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture
def deaf(listening: socket.socket) -> str:
    """A webhook that takes what it gets and never answers."""
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_deaf_webhooks_of_one_project_keep_no_other_project_waiting(
    shop: World, listening: socket.socket, deaf: str, hook: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes while the turn of the deaf ones' project goes on is told meanwhile."""
    monkeypatch.setattr("cellwork.notify.SECONDS", 60)
    deeds = alert_deeds.Deeds(shop.state)
    try:
        alert(shop, "deaf", tell=[{"webhook": f"{deaf}/{k}"} for k in range(40)])
        [turn] = deeds.begin()
        alert(shop, "shop", tell=[{"webhook": f"http://127.0.0.1:{hook.server_port}/{k}"} for k in range(3)])
        [other] = deeds.begin()
        assert other.result(50) == 2, "all three were tried, and the first is refused"
        assert not turn.done()
    finally:
        listening.close()
        deeds.stop()
    assert turn.result(60) == 0, "no more than in this test, which is over"


def test_the_turn_of_a_project_tries_for_a_while_and_leaves_the_rest_for_the_next(
    shop: World, client: Client, deaf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellwork.notify.SECONDS", 0.5)
    alert(shop, "deaf", tell=[{"webhook": f"{deaf}/{k}"} for k in range(40)])
    assert do_waiting(shop.state) == 0
    assert sum(n for _, n in tries(client, "deaf")) in (1, 2)


def test_what_is_in_hand_is_not_begun_twice_and_a_project_comes_again(shop: World, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    may_go, begun, done = threading.Event(), list[object](), list[object]()

    def do(_: object, what: str, target: object, said: object) -> str:
        begun.append(target)
        assert may_go.wait(60)
        done.append(target)
        return "done"

    monkeypatch.setattr(alert_deeds, "_do", do)
    monkeypatch.setattr(alert_deeds, "IDLE_SECONDS", 0.05)
    alert(shop, "shop", tell=[{"webhook": "http://127.0.0.1:9/a"}])
    deeds = alert_deeds.Deeds(shop.state)
    deeds.start()
    try:
        wait_for(lambda: begun, 60, "the first turn")
        alert(shop, "shop", name="other", tell=[{"webhook": "http://127.0.0.1:9/b"}])
        time.sleep(0.5)  # the thread looks every twentieth of a second
        assert len(begun) == 1
        may_go.set()
        wait_for(lambda: len(done) == 2, 60, "the second turn")
    finally:
        deeds.stop()
    assert done == ["http://127.0.0.1:9/a", "http://127.0.0.1:9/b"]


def test_a_rollback_does_not_wait_for_who_is_told(shop: World, client: Client, deaf: str, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    done: list[str] = []
    monkeypatch.setattr(alert_deeds, "_do", lambda _, what, target, said: done.append(what) or "done")
    alert(shop, "shop", tell=[{"webhook": deaf}], then="rollback")
    do_waiting(shop.state)
    assert done == ["rollback", "webhook"]


@pytest.mark.parametrize("kind", ["drift", "quality"])
@pytest.mark.parametrize("models", [["shop/churn-trees"], [ENDPOINT, "shop/churn-trees"]])
def test_an_alert_that_rolls_back_says_which_models_answered_as_its_version(
    shop: World, client: Client, kind: str, models: list[str]
) -> None:
    with shop.state.engine.begin() as db:
        records.edge(db, "shop/churn-trees@1", "trained_on", DATASET)
    features = rows(600, seed=8, shift=1.0)
    for model in models:
        shop.log.write([shop.prediction(f"{model}{k}", k / 600, features=row, model=model) for k, row in enumerate(features)])  # fmt: skip
    shop.log.write([shop.prediction("later", features=features[0], model="shop/other", at=DAY + 30 * HOUR, version=2)])
    truths(client, {f"{models[-1]}{k}": k / 600 for k in range(600)}, right=0.5)
    more = {"least": 0.9, "severity": "critical"} if kind == "quality" else {}
    watch(client, kind=kind, then="rollback", window="1d", **more)
    assert client.monitors.check("shop/m").state == "alert"
    [found] = client.monitors.alerts("shop")
    assert found.evidence["models"] == models
    [deed] = client.monitors.deeds(found.id)
    assert (deed.what, deed.to) == ("rollback", f"{ENDPOINT}@1")
