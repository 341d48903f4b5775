"""What follows from an alert: a signed webhook, mail, a rollback; each until it succeeds."""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import msgspec
import pytest
import serving_world as world
from log_world import ENDPOINT, World
from monitor_world import predict, rows, trained, watch
from sqlalchemy import text

from cellwork import notify
from cellwork.client import Client
from cellwork_hub.platform import alert_deeds


@pytest.fixture
def shop(tmp_path: Path) -> World:
    made = World(tmp_path)
    trained(made)
    return made


@pytest.fixture
def client(shop: World) -> Iterator[Client]:
    with world.running(shop.service, shop.port) as address, world.caller(address, "admin") as client:
        yield client


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
        done.append(alert_deeds.do_waiting(shop.state))
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
    assert alert_deeds.do_waiting(shop.state) == 0
    [alert] = client.monitors.alerts("shop")
    [deed] = client.monitors.deeds(alert.id)
    assert (deed.done, deed.to, "CELLWORK_MAIL_SERVER" in deed.words) == (None, "ada@example.org", True)
