"""`cellwork serve` is renewed and ended under load: nobody's request fails, and what was answered is in the log."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import serving_world as world
from alone_world import Served, wait_until

from cellwork import db
from cellwork.home import Home
from cellwork.serving.log import PredictionLog
from cellwork_hub.inference.app import MIGRATIONS

PAUSE_SECONDS = 0.01
"""Between a caller's requests: what starts beside them needs the processor too."""
BODY = {"rows": [{"features": {"visits": 3.0, "plan": "free"}}]}


class Load:
    """Callers that ask all the time on connections that they keep."""

    def __init__(self, served: Served) -> None:
        self.served, self.stop = served, threading.Event()
        self.answered: dict[str, int] = {}
        self.failed: list[object] = []

    def run(self) -> None:
        with self.served.caller() as http:
            while not self.stop.is_set():
                try:
                    answer = http.post(f"/predict/{world.MODEL}", json=BODY)
                    said: dict[str, Any] = answer.json()
                    self.answered[said["outputs"][0]["id"]] = said["model"]["version"]
                except (httpx.TransportError, KeyError) as error:
                    self.failed.append(error)
                    return
                time.sleep(PAUSE_SECONDS)


@contextmanager
def load(served: Served, callers: int = 4) -> Iterator[Load]:
    asking = Load(served)
    threads = [threading.Thread(target=asking.run) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(asking.answered) > 20 or bool(asking.failed))
        yield asking
    finally:
        asking.stop.set()
        for thread in threads:
            thread.join(60)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed in (1, 2):
        world.saved(seed, folder / str(seed))
    return folder


@pytest.mark.timeout(900)
def test_new_processes_a_changed_model_and_the_end_come_under_load_without_a_failed_request(
    models: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(models / "1", tmp_path / "model")
    served = Served(tmp_path / "home", f"{world.MODEL}={folder}", CELLWORK_DRAIN_SECONDS="10")
    try:
        with load(served) as asking:
            served.renew()
            assert set(asking.answered.values()) == {1}
            shutil.rmtree(folder)
            shutil.copytree(models / "2", folder)
            served.renew()
            wait_until(lambda: list(asking.answered.values())[-5:] == [2] * 5 or bool(asking.failed))
            served.process.terminate()
            with served.caller() as balancer:
                wait_until(lambda: balancer.get("/health/ready").status_code == 503)
                late = balancer.post(f"/predict/{world.MODEL}", json=BODY)
                assert (late.status_code, late.headers["connection"]) == (200, "close")
        assert asking.failed == []
        assert served.process.wait(60) == 0
    finally:
        served.end()
    logged = {p.id: p.version.version for p in every_prediction(served.home)}
    assert {name: logged.get(name) for name in asking.answered} == asking.answered


def test_a_worker_that_is_killed_is_started_again_and_the_others_answer_meanwhile(models: Path, tmp_path: Path) -> None:
    served = Served(tmp_path / "home", f"{world.MODEL}={models / '1'}", "--workers", "2")
    try:
        before = served.workers()
        wait_until(lambda: all(listens(psutil.Process(worker)) for worker in before))
        os.kill(min(before), signal.SIGKILL)
        wait_until(lambda: len(served.workers() - before) == 1)
        with served.caller() as http:
            assert http.post(f"/predict/{world.MODEL}", json=BODY).status_code == 200
    finally:
        served.end()
    assert served.process.returncode == 0


def test_what_a_worker_starts_does_not_hold_its_socket_and_so_no_caller_waits_at_it_when_the_worker_is_killed(
    models: Path, tmp_path: Path
) -> None:
    served = Served(tmp_path / "home", f"{world.MODEL}={models / '1'}", "--workers", "2")
    try:
        workers = [psutil.Process(worker) for worker in served.workers()]
        wait_until(lambda: all(listens(worker) for worker in workers))
        wait_until(lambda: any(worker.children() for worker in workers))  # the log's keeper
        for worker in workers:
            assert not any(listens(started) for started in worker.children(recursive=True))
    finally:
        served.end()


def listens(process: psutil.Process) -> bool:
    """Say whether the process listens; one that has ended does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(connection.status == psutil.CONN_LISTEN for connection in process.net_connections())
    return False


def every_prediction(home: Path) -> list[Any]:
    engine = db.open_database(f"sqlite:///{Home(home).database('inference')}", MIGRATIONS)
    log, found = PredictionLog(engine, Home(home).segments()), list[Any]()
    while page := log.after(found[-1].seq if found else 0, limit=10_000, brief=True):
        found += page
    engine.dispose()
    return found
