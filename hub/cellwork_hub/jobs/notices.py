"""Tell people and programs how runs ended: written with the end of the run, sent by a thread of its own until it arrives.

At least once: who is told twice is told the same `id`. A webhook is signed (HMAC-SHA256 over the body, header
``x-cellwork-signature``) with a secret of this installation, is never redirected, and gets what a reader of the run could see,
no parameter and no traceback.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import smtplib
import threading
from collections.abc import Mapping
from email.message import EmailMessage
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from cellwork import files
from cellwork.errors import CellworkError, Unavailable
from cellwork.home import Home
from cellwork.wire.jobs import Notify, Policy
from cellwork_hub.jobs import store
from cellwork_hub.jobs.store import State

log = logging.getLogger("cellwork.jobs")

LOOK_SECONDS = 1.0
MOST_TRIES = 12
FIRST_WAIT, MOST_WAIT = 2_000_000, 3600 * 1_000_000
WAITING = "SELECT * FROM notices WHERE sent IS NULL AND next_try <= :now ORDER BY seq LIMIT 20"


def write(db: Connection, run: Mapping[str, Any], word: str) -> None:
    """Note, in the transaction of its end, whom to tell that `run` has ended with `word`."""
    policy = msgspec.json.decode(run["policy"], type=Policy)
    for told in policy.notify:
        if word in told.on:
            row = {"run": run["id"], "state": word, "told": store.json(told), "tries": 0, "next_try": 0, "sent": None, "error": ""}  # fmt: skip
            store.insert(db, "notices", row)


def send_waiting(state: State) -> int:
    """Send what waits, once each; returns how many arrived. What fails is tried again, ever later."""
    arrived = 0
    with state.engine.connect() as db:
        waiting = store.select(db, WAITING, now=store.now())
    for notice in waiting:
        with state.engine.connect() as db:
            run = store.run_row(db, notice["run"])
        error = _try(state, notice, run)
        with state.engine.begin() as db:
            if not error:
                arrived += 1
                store.write(db, "UPDATE notices SET sent = :now, error = '' WHERE seq = :seq", now=store.now(), seq=notice["seq"])  # fmt: skip
                continue
            wait = min(FIRST_WAIT * 2 ** notice["tries"], MOST_WAIT)
            given_up = store.now() if notice["tries"] + 1 >= MOST_TRIES else None
            change = (
                "UPDATE notices SET tries = tries + 1, next_try = :next, error = :error, sent = :up WHERE seq = :seq"
            )
            store.write(db, change, next=store.now() + wait, error=error[:500], up=given_up, seq=notice["seq"])
        log.warning("run %s: the notice did not arrive: %s", notice["run"], error)
    return arrived


def _try(state: State, notice: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Return why the notice did not arrive; empty if it did."""
    told = msgspec.json.decode(notice["told"], type=Notify)
    body = {
        "id": f"{notice['run']}-{notice['seq']}", "run": run["id"], "job": run["job"], "project": run["project"], "notebook": run["notebook"],
        "state": notice["state"], "due": run["due"], "ended": run["ended"], "url": f"{state.public_url}/services/jobs/api/v1/runs/{run['id']}",
    }  # fmt: skip
    try:
        if told.webhook:
            _post(state.home, told.webhook, body)
        else:
            _mail(state, told.mail, body)
    except (httpx.HTTPError, OSError, smtplib.SMTPException, CellworkError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _post(home: Home, url: str, body: dict[str, Any]) -> None:
    data = msgspec.json.encode(body)
    signature = hmac.new(signing_key(home).encode(), data, hashlib.sha256).hexdigest()
    headers = {"content-type": "application/json", "x-cellwork-signature": f"sha256={signature}"}
    answer = httpx.post(url, content=data, headers=headers, timeout=10, trust_env=False, follow_redirects=False)
    if not answer.is_success:
        raise Unavailable("webhook", urlsplit(url).netloc, f"answered {answer.status_code}", "look at its log")


def signing_key(home: Home) -> str:
    """Return the secret that webhooks are signed with; made when it is first needed."""
    path = home.secret("webhook-key")
    if not path.exists():
        files.write(path, secrets.token_hex(32), mode=0o600)
    return files.read_secret(path)


def _mail(state: State, people: list[str], body: dict[str, Any]) -> None:
    if not state.mail_server:
        raise Unavailable("mail server", "", "is not set", "set CELLWORK_MAIL_SERVER to host:port")
    message = EmailMessage()
    message["Subject"] = f"[cellwork] {body['job'] or body['notebook']} {body['state']}"
    message["From"], message["To"] = state.mail_from, ", ".join(people)
    message["Message-ID"] = f"<{body['id']}@cellwork>"
    message.set_content(
        f"{body['job'] or body['notebook']} {body['state']}\n{body['url']}\ncellwork run show {body['run']}\n"
    )
    host, _, port = state.mail_server.partition(":")
    with smtplib.SMTP(host, int(port or 25), timeout=10) as server:
        server.send_message(message)


class Sender:
    """A thread that sends what waits."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(15)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                send_waiting(self.state)
            except OperationalError as error:
                log.warning("notices wait: %s", error)
