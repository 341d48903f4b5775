"""What an acknowledged prediction survives: `kill -9` of the service under load, judged by the clients' own ledger."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest
import serving_world as world
from ports import free_port
from running import gone

from cellwork.client import Client
from cellwork.errors import Unavailable
from cellwork.wire.endpoints import Answer, Deploy, Prediction, Request, Row

SEED = int(os.environ.get("CELLWORK_TEST_SEED", "2013"))


class Service:
    """The service as a process of its own, on one home."""

    def __init__(self, home: Path) -> None:
        self.home, self.port = home, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *models: Path) -> None:
        command = [sys.executable, world.__file__, str(self.home), str(self.port), *map(str, models)]
        self.process = subprocess.Popen(command)
        wait_until(lambda: is_ready(self.address))

    def kill(self) -> list[int]:
        """Kill it without a word and return the pids of the children it had."""
        assert self.process is not None
        children = [child.pid for child in psutil.Process(self.process.pid).children()]
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)
        return children


@pytest.fixture
def service(tmp_path: Path):  # type: ignore[no-untyped-def]
    service = Service(tmp_path / "home")
    yield service
    if service.process is not None and service.process.poll() is None:
        service.process.terminate()
        service.process.wait(60)


def ask_until(stop: threading.Event, address: str, name: str, ledger: dict[str, tuple[str, float]]) -> None:
    """Send requests one after the other, every second one with an id; write down what was acknowledged under it (or under the
    prediction's own). The last one may be broken off.
    """
    with world.caller(address) as client:
        client.connection.attempts = 1
        for number in range(100_000):
            if stop.is_set():
                return
            key = f"{name}-{number}" if number % 2 else ""
            try:
                if key:
                    answer = client.endpoints.predict(world.MODEL, Request(rows=[_row(number)], id=key))
                else:
                    answer = msgspec.json.decode(plain(client, number).content, type=Answer)
            except (Unavailable, httpx.TransportError):
                return
            output = answer.outputs[0]
            ledger[key or output.id] = (output.id, output.score)


def _row(number: int) -> Row:
    return Row(features={"visits": float(number % 40), "plan": "free"})


def plain(client: Client, number: int) -> httpx.Response:
    """Ask as most callers do, with nothing but features: the quick lane answers."""
    body = {"rows": [{"features": _row(number).features}]}
    headers = {"authorization": "Bearer deployer"}
    return httpx.post(
        f"{client.connection.url}/predict/{world.MODEL}", json=body, headers=headers, trust_env=False, timeout=60
    )


def every_prediction(client: Client) -> list[Prediction]:
    found: list[Prediction] = []
    for _ in range(1000):
        page = client.endpoints.predictions(world.MODEL, after=found[-1].seq if found else 0, limit=10_000, brief=True)
        found += page
        if not page:
            return found
    raise AssertionError("the log has no end")


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_no_acknowledged_prediction_is_lost_or_logged_twice_when_the_service_is_killed(
    service: Service, tmp_path: Path, kills: int
) -> None:
    dice = random.Random(SEED)
    models = [
        world.save(world.estimator(seed, compiles=seed == 2), world.FRAME, tmp_path / str(seed)) for seed in (1, 2)
    ]
    service.start(*models)
    with world.caller(service.address) as client:
        for version in (1, 2):
            client.endpoints.deploy(world.MODEL, Deploy(version=version))
    ledger: dict[str, tuple[str, float]] = {}
    for kill in range(kills):
        stop = threading.Event()
        names = [f"{kill}-{k}" for k in range(4)]
        callers = [threading.Thread(target=ask_until, args=(stop, service.address, name, ledger)) for name in names]
        for caller in callers:
            caller.start()
        end, before = time.monotonic() + 60, len(ledger)
        while len(ledger) < before + 30 and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(dice.random())
        children = service.kill()
        stop.set()
        for caller in callers:
            caller.join(60)
        _assert_gone(children)
        service.start()  # the registry is away from now on
    assert len(ledger) > 50
    with world.caller(service.address) as client:
        logged = every_prediction(client)
        scores = {p.id: p.score for p in logged}
        lost = [key for key, (name, score) in ledger.items() if scores.get(name) != score]
        twice = len(logged) - len(scores)
        print(
            f"{kills} kills, {len(ledger):,} acknowledged predictions: {len(lost)} lost, {twice} logged twice; seed {SEED}"
        )
        assert (len(lost), twice) == (0, 0), f"lost {lost[:3]}"
        again = {
            key: client.endpoints.predict(world.MODEL, Request(rows=[_row(0)], id=key)).outputs[0]
            for key in [key for key in ledger if not key.startswith("pred_")][:20]
        }
        assert [(o.id, o.score) for o in again.values()] == [ledger[key] for key in again]
        assert client.endpoints.rollback(world.MODEL).live.version == 1


def test_two_processes_on_one_port_follow_each_others_changes_and_one_that_is_killed_takes_nothing_with_it(
    tmp_path: Path,
) -> None:
    models = [world.saved(seed, tmp_path / str(seed)) for seed in (1, 2)]
    home, port = tmp_path / "home", free_port()
    command = [sys.executable, world.__file__, str(home), str(port), *map(str, models)]
    workers = [subprocess.Popen(command, env={**os.environ, "WORKER": str(number)}) for number in range(2)]
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: is_ready(address))
        with world.caller(address) as client:
            for version in (1, 2):
                client.endpoints.deploy(world.MODEL, Deploy(version=version))
                wait_until(lambda version=version: versions(client) == {version})
            answered = {msgspec.json.decode(plain(client, k).content, type=Answer).outputs[0].id for k in range(40)}
            workers[1].kill()
            workers[1].wait()
            logged = every_prediction(client)
        assert answered <= {p.id for p in logged}
        assert len(logged) == len({p.id for p in logged})
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait(60)


def versions(client: Client) -> set[int]:
    """Return the versions that forty fresh connections are answered by."""
    answers = [plain(client, number) for number in range(40)]
    if any(answer.status_code != 200 for answer in answers):
        return set()
    return {msgspec.json.decode(answer.content, type=Answer).model.version for answer in answers}


def is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health/ready", trust_env=False, timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def _assert_gone(pids: list[int]) -> None:
    """Children end by themselves when their parent is gone."""
    assert pids
    end = time.monotonic() + 60
    while time.monotonic() < end and not all(map(gone, pids)):
        time.sleep(0.05)
    assert [pid for pid in pids if not gone(pid)] == []
