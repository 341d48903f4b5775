"""Tell people and programs how runs ended: written with the end of the run, sent by a thread of its own until it arrives.

At least once: who is told twice is told the same `id`. A webhook gets what a reader of the run could see, no parameter and no
traceback; how it is sent and signed is `cellwork.notify`'s. What goes wrong with one notice is its own: the others are sent.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from cellwork import notify
from cellwork.errors import CellworkError
from cellwork.wire.jobs import Notify, Policy
from cellwork_hub.jobs import store
from cellwork_hub.jobs.store import State

log = logging.getLogger("cellwork.jobs")

LOOK_SECONDS = 1.0
GONE = "its run is gone"
WAITING = "SELECT * FROM notices WHERE sent IS NULL AND next_try <= :now ORDER BY seq LIMIT 20"


def write(db: Connection, run: Mapping[str, Any], word: str) -> None:
    """Note, in the transaction of its end, whom to tell that `run` has ended with `word`."""
    policy = msgspec.json.decode(run["policy"], type=Policy)
    for told in policy.notify:
        if word in told.on and not told.lab:
            row = {"run": run["id"], "state": word, "told": store.json(told), "tries": 0, "next_try": 0, "sent": None, "error": ""}  # fmt: skip
            store.insert(db, "notices", row)


def send_waiting(state: State) -> int:
    """Send what waits, once each; returns how many arrived. What fails is tried again, ever later."""
    arrived = 0
    with state.engine.connect() as db:
        waiting = store.select(db, WAITING, now=store.now())
    for notice in waiting:
        error = _try(state, notice)
        with state.engine.begin() as db:
            if not error:
                arrived += 1
                store.write(db, "UPDATE notices SET sent = :now, error = '' WHERE seq = :seq", now=store.now(), seq=notice["seq"])  # fmt: skip
                continue
            wait = None if error == GONE else notify.wait(notice["tries"] + 1)
            given_up = store.now() if wait is None else None
            change = (
                "UPDATE notices SET tries = tries + 1, next_try = :next, error = :error, sent = :up WHERE seq = :seq"
            )
            store.write(db, change, next=store.now() + (wait or 0), error=error[:500], up=given_up, seq=notice["seq"])
        log.warning("run %s: the notice did not arrive: %s", notice["run"], error)
    return arrived


def _try(state: State, notice: Mapping[str, Any]) -> str:
    """Return why the notice did not arrive; empty if it did."""
    try:
        with state.engine.connect() as db:
            run = store.one(db, "SELECT * FROM runs WHERE id = :run", run=notice["run"])
        if run is None:
            return GONE
        _send(state, notice, run)
    except OperationalError:  # the database is away, and no notice's fault
        raise
    except Exception as error:  # whatever one notice meets is its own try; the others are sent
        if not isinstance(error, OSError | CellworkError):
            log.exception("run %s: its notice went wrong", notice["run"])
        return f"{type(error).__name__}: {error}".replace("\0", "\ufffd")
    return ""


def _send(state: State, notice: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    told = msgspec.json.decode(notice["told"], type=Notify)
    body = {
        "id": f"{notice['run']}-{notice['seq']}", "run": run["id"], "job": run["job"], "project": run["project"], "notebook": run["notebook"],
        "state": notice["state"], "due": run["due"], "ended": run["ended"], "url": f"{state.public_url}/services/jobs/api/v1/runs/{run['id']}",
    }  # fmt: skip
    if told.webhook:
        notify.post(state.home, told.webhook, body)
        return
    what = f"{body['job'] or body['notebook']} {body['state']}"
    text = f"{what}\n{body['url']}\ncellwork run show {body['run']}\n"
    server = (state.mail_server, state.mail_from, told.mail)
    notify.mail(*server, id=body["id"], subject=f"[cellwork] {what}", text=text)


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

    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                send_waiting(self.state)
            except OperationalError as error:
                log.warning("notices wait: %s", error)
            except Exception:
                log.exception("notices wait")
