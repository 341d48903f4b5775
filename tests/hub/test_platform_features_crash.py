"""Ingest, pipelines, pushes and materialization and pushed events while the service is killed at seeded random moments: nothing lost, nothing in part."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from feature_world import DAY, definitions, flights, new_state, service, work

from cellwork.client import Client
from cellwork.errors import CellworkError
from cellwork.wire.batches import RawDataset
from cellwork.wire.features import MaterializeRequest, PushRequest

HOUR = timedelta(hours=1)
HERE = Path(__file__).resolve().parent
Step = Callable[[Client], object]


def push(number: int) -> PushRequest:
    at = (DAY + (300 + number) * HOUR).isoformat()
    row = {"origin": "JFK", "flights": number, "delay": 1.0, "event_timestamp": at, "created_timestamp": at}
    return PushRequest(project="air", rows=[row])


def events(day: int) -> pl.DataFrame:
    """Return two flights more, half an hour behind the last of the day."""
    behind = [pl.col("id") + 1000, pl.col("planned") + timedelta(minutes=30)]
    return flights(day).tail(2).with_columns(behind)


def steps(days: int) -> list[Step]:
    """Return what is done to the platform; each may be said again after a crash."""
    made: list[Step] = [
        lambda c: c.batches.declare("air", RawDataset(name="flights")),
        lambda c: c.features.apply(definitions()),
    ]
    for day in range(days):
        made.append(lambda c, day=day: c.batches.ingest("air", "flights", flights(day), f"day{day}"))
        made.append(lambda c, day=day: c.features.stream("air", "flights", events(day)))
        made.append(lambda c, day=day: c.features.push("late", push(day)))
        made.append(lambda c: c.features.materialize(MaterializeRequest(project="air", start=DAY - HOUR)))
    return made


class Process:
    """The service, started again whenever it is asked for and not there."""

    def __init__(self, home: Path) -> None:
        self.home, self.starts, self._running = home, 0, None

    _running: subprocess.Popen[str] | None

    def client(self) -> Client:
        if self._running is None or self._running.poll() is not None:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
            command = [sys.executable, str(HERE / "feature_process.py"), str(self.home)]
            self._running = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
            assert self._running.stdout is not None
            self.url = self._running.stdout.readline().strip()
            self.starts += 1
        client = Client(self.url, "token", timeout=60)
        client.connection.attempts = 1
        return client

    def kill(self) -> None:
        if self._running is not None:
            self._running.send_signal(signal.SIGKILL)
            self._running.wait(60)


def run(process: Process, generator: random.Random, wanted: list[Step], kills: int) -> None:
    """Do every step until it was acknowledged, with `kills` kills, each a random while after a step began."""
    victims = sorted(generator.sample(range(2, len(wanted)), kills))
    for number, step in enumerate(wanted):
        client = process.client()
        if number in victims:
            timer = threading.Timer(generator.uniform(0.0, 0.25), process.kill)
            timer.start()
        for _ in range(5):
            try:
                step(client)
                break
            except CellworkError:
                time.sleep(0.1)
                client = process.client()
        else:
            raise AssertionError(f"step {number} was not acknowledged in five tries")
        if number in victims:
            timer.join()


def rows(client: Client, view: str) -> pl.DataFrame:
    found = client.features.rows("air", view)
    return found.select(sorted(found.columns)).sort(pl.all())


def end(client: Client) -> dict[str, object]:
    """Return all that readers see in the end."""
    client.features.wait("air", timeout=120)
    online = client.features.online("air", ["late"], {"origin": ["JFK", "LGA"]}).views["late"]
    return {
        "late": rows(client, "late"),
        "plan": rows(client, "plan"),
        "online": [(v.values, v.event, v.created) for v in online],
    }


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("seed", "kills"),
    [
        (20131101, 3),
        pytest.param(20131102, 7, marks=pytest.mark.soak),
        pytest.param(20131103, 7, marks=pytest.mark.soak),
    ],
)
def test_killed_at_random_moments_the_end_is_as_if_nothing_had_happened(seed, kills, tmp_path):
    process, wanted = Process(tmp_path / "killed"), steps(3)
    try:
        run(process, random.Random(seed), wanted, kills=kills)
        found = end(process.client())
        assert process.starts == kills + 1
    finally:
        process.kill()
    state = new_state(tmp_path / "calm")
    with service(state) as client:
        for step in wanted:
            step(client)
            work(state)
        expected = end(client)
    for view in ("late", "plan"):
        assert found[view].equals(expected[view])  # type: ignore[attr-defined]
    assert found["online"] == expected["online"]
