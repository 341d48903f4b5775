"""The jobs service on a free port of its own, with a small table of tokens in the hub's place; and runners beside it.

As a script it serves `home` on `port` until it is killed: ``python jobs_world.py HOME PORT LEASE [--without-fence]``.
Leases are long, so that no runner is lost because the machine was busy; a test that needs a lost one says so (`lose`).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import ports
import psutil
import pytest
import uvicorn
from sqlalchemy import Connection
from starlette.types import Scope

from cellwork import clock, db, scopes
from cellwork.client import Client
from cellwork.home import Home
from cellwork.wire.jobs import Progress
from cellwork.wire.records import Event, Principal
from cellwork_hub.auth import NOBODY, bearer
from cellwork_hub.jobs import app, claims, store
from cellwork_hub.jobs.store import State

USERS = {
    "ada-token": Principal(kind="user", name="ada", scopes=scopes.ROLES["author"]),
    "bob-token": Principal(kind="user", name="bob", scopes=scopes.ROLES["deployer"]),
    "viewer-token": Principal(kind="user", name="eve", scopes=scopes.ROLES["viewer"]),
    "cli-token": Principal(kind="service", name="cli", scopes=scopes.ROLES["admin"]),
    "runner-token": Principal(kind="service", name="runner", scopes=frozenset({"runs:execute"})),
}


LEASE = timedelta(seconds=60)


class RunTokens:
    """Mints run tokens, knows whose they are until they are revoked, and remembers what was asked."""

    def __init__(self) -> None:
        self.live: dict[str, Principal] = {}
        self.minted: list[tuple[str, frozenset[str], int]] = []

    def mint(self, owner: str, granted: frozenset[str], seconds: int, note: str) -> tuple[str, str]:
        token = secrets.token_hex(16)
        self.live[token] = Principal(kind="user", name=owner, scopes=granted)
        self.minted.append((owner, granted, seconds))
        return token[:8], token

    def revoke(self, owner: str, token_id: str) -> None:
        for token in [t for t in self.live if t.startswith(token_id)]:
            del self.live[token]

    async def authorise(self, scope: Scope) -> Principal:
        token = bearer(scope)
        return USERS.get(token) or self.live.get(token, NOBODY)


def page(*sources: str, parameters: bool = False) -> str:
    """Return a notebook of code cells as JSON; with `parameters` the first one is tagged so."""
    cells = [
        {"cell_type": "code", "id": f"c{k}", "metadata": {"tags": ["parameters"]} if parameters and k == 0 else {}, "outputs": [], "execution_count": None, "source": source}
        for k, source in enumerate(sources)
    ]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3"}
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": cells})


def state(home: Path, tokens: RunTokens, **fields: Any) -> State:
    folder = Home(home).ensure()
    engine = db.open_database(f"sqlite:///{folder.database('jobs')}", app.MIGRATIONS)
    given = {"user": "ada", "lease": LEASE, "first_lease": LEASE, "backoff": timedelta(milliseconds=200), **fields}
    return State(engine, folder, tokens, **given)


def lose(state: State) -> None:
    """As if no runner had been heard of for longer than its lease."""
    with state.engine.begin() as db:
        store.write(db, "UPDATE runs SET lease_until = 1 WHERE lease_until > 0")
        store.write(db, "UPDATE kept SET heard = 1")


def shortly_after_noon(patch: pytest.MonkeyPatch) -> None:
    """Move the clock, which goes on, to where no minute, hour or day ends soon."""
    right, real = clock.now, clock.now()
    moved = real.replace(hour=12, minute=2, second=5, microsecond=0) - real
    patch.setattr(clock, "now", lambda: right() + moved)


class World:
    """The service in a thread, and a client for each token."""

    def __init__(self, home: Path, **fields: Any) -> None:
        self.tokens, self.events, self.port = RunTokens(), list[Event](), ports.free_port()
        self.state = state(home, self.tokens, **fields)
        self.clients: dict[str, Client] = {}
        self.url = f"http://127.0.0.1:{self.port}"
        service = app.service(self.state, self._events, self.tokens.authorise)
        self.server = uvicorn.Server(uvicorn.Config(service, port=self.port, log_level="warning", lifespan="on"))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        wait_ready(self.url)

    def _events(self, after: int) -> Sequence[Event]:
        return [event for event in self.events if event.seq > after]

    def client(self, who: str = "ada") -> Client:
        if who not in self.clients:
            self.clients[who] = Client(self.url, f"{who}-token", timeout=60)
        return self.clients[who]

    def close(self) -> None:
        for client in self.clients.values():
            client.close()
        self.server.should_exit = True
        self.thread.join(60)


def wait_ready(url: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if httpx.get(f"{url}/health/ready", trust_env=False, timeout=60).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"{url} was not ready in {seconds} s")


def start_service(home: Path, port: int, *, lease: timedelta = LEASE, fence: bool = True) -> subprocess.Popen[bytes]:
    words = [str(home), str(port), str(lease.total_seconds()), *([] if fence else ["--without-fence"])]
    environ = {**os.environ, "PYTHONPATH": str(Path(ports.__file__).parent)}
    process = subprocess.Popen([sys.executable, __file__, *words], env=environ)
    wait_ready(f"http://127.0.0.1:{port}")
    return process


def start_runner(url: str, slots: int, log: Path, warm: str = "") -> subprocess.Popen[bytes]:
    """Start a runner as on a machine of its own: it knows the address and its token, nothing of a home."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("CELLWORK_")}
    environ |= {
        "CELLWORK_URL": url,
        "CELLWORK_RUNNER_TOKEN": "runner-token",
        "CELLWORK_RUNNERS": str(slots),
        "CELLWORK_WARM_IMPORTS": warm,
        "SECRET_OF_THE_MACHINE": "not for notebooks",
    }
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "cellwork_hub.jobs.runners.process"], env=environ, stdout=output, stderr=output
        )


def kill(runner: subprocess.Popen[bytes]) -> list[int]:
    """Kill a runner with all that it started, so that none of them has time for a last word; return their process ids."""
    family = [psutil.Process(runner.pid)]
    family[0].suspend()
    family += family[0].children(recursive=True)
    for deed in (psutil.Process.suspend, psutil.Process.kill):
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                deed(process)
    runner.wait(60)
    return [process.pid for process in family]


def without_fence(db: Connection, run: str, progress: Progress) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take any attempt's word, late or not: in the place of `claims._current`, to show what the fence is good for."""
    found = store.one(db, "SELECT * FROM attempts WHERE run = :run AND fence = :fence", run=run, fence=progress.fence)
    return {**store.run_row(db, run), "state": "running"}, {**(found or {}), "ended": None}


if __name__ == "__main__":
    if "--without-fence" in sys.argv:
        claims._current = without_fence
    tokens = RunTokens()
    lease = timedelta(seconds=float(sys.argv[3]))
    made = state(Path(sys.argv[1]), tokens, lease=lease, first_lease=lease)
    service = app.service(made, lambda after: [], tokens.authorise)
    uvicorn.run(service, port=int(sys.argv[2]), log_level="warning", timeout_graceful_shutdown=3)
