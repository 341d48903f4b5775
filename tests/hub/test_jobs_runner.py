"""Real runners with real kernels against the service: kill any of them, and each run is published once."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from account import UID, Account
from jobs_world import World, kill, lose, start_runner, start_service
from ports import free_port
from running import gone

from cellwork.client import Client
from cellwork.client.jobs import Jobs
from cellwork.wire.jobs import Run, RunRequest
from cellwork_hub.jobs.runners import slot

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
HAND_BACK, SUCCEEDED = "queued", "succeeded"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("home"))
    yield world
    world.close()


@pytest.fixture(scope="module")
def runner(world: World) -> Iterator[subprocess.Popen[bytes]]:
    process = start_runner(world.url, 1, world.state.home.log("runner"))
    yield process
    family = [process.pid, *(p.pid for p in psutil.Process(process.pid).children(recursive=True))]
    process.terminate()
    assert process.wait(60) == 0
    until(lambda: all(map(gone, family)), "the runner's processes have ended")


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[World]:
    """A service with no runner but those of the test."""
    world = World(tmp_path / "home")
    yield world
    world.close()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other accounts may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def runner_beside(world: World, folder: Path) -> Iterator[None]:
    process = start_runner(world.url, 1, folder / "log")
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def jobs(world: World, runner: subprocess.Popen[bytes]) -> Jobs:
    return world.client().jobs


def request(name: str, **fields: object) -> RunRequest:
    return RunRequest(
        project="flights", notebook=f"{name}.ipynb", content=(NOTEBOOKS / f"{name}.ipynb").read_text(), **fields
    )  # type: ignore[arg-type]


def until(true: Callable[[], object], what: str, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def printed(jobs: Jobs, run: Run) -> str:
    outputs = [o for cell in json.loads(jobs.notebook(run.id))["cells"] for o in cell.get("outputs", [])]
    return "".join("".join(o.get("text", "")) for o in outputs)


def finish(jobs: Jobs, name: str, **fields: object) -> Run:
    return jobs.wait(jobs.start(request(name, **fields)).id, timeout=60)


def published(service: Client, run: str) -> int:
    """How often the run was published."""
    return sum(e.name == "run.succeeded" and e.subject == run for e in service.records.events(service="jobs"))


def test_a_run_knows_whose_it_is_and_sees_no_secret_of_the_runner(world: World, jobs: Jobs) -> None:
    run = finish(jobs, "shows_origin", files={"beside.py": "ANSWER = 42"})
    assert run.state == SUCCEEDED, run.attempts
    text = printed(jobs, run)
    assert f"{run.id} 1" in text
    assert "cell-1" in text
    assert "42" in text
    seen = "['CELLWORK_ATTEMPT', 'CELLWORK_NOTEBOOK', 'CELLWORK_PROJECT', 'CELLWORK_RUN', 'CELLWORK_RUN_BEGAN', 'CELLWORK_TOKEN', 'CELLWORK_URL', 'CELLWORK_USER', 'MLFLOW_TRACKING_TOKEN', 'MLFLOW_TRACKING_URI']"
    assert seen in text
    until(lambda: not world.tokens.live, "its token is taken back")


def test_a_failure_tells_cell_and_traceback_and_keeps_the_notebook(jobs: Jobs) -> None:
    run = finish(jobs, "raises_in_cell_3")
    assert (run.state, run.attempts[0].cell, run.attempts[0].cells) == ("failed", 3, 4)
    assert "ZeroDivisionError" in run.attempts[0].error
    assert "An Exception was encountered" in jobs.notebook(run.id)


def test_a_run_out_of_time_fails_and_leaves_no_kernel(jobs: Jobs, runner: subprocess.Popen[bytes]) -> None:
    run = finish(jobs, "hangs", timeout_seconds=1)
    assert (run.state, "out of time" in run.attempts[0].error) == ("failed", True)


def test_a_stopped_run_is_interrupted_within_seconds(jobs: Jobs) -> None:
    run = jobs.start(request("hangs"))
    until(lambda: (a := jobs.run(run.id).attempts) and a[0].cell == 2, "the second cell runs")
    jobs.stop(run.id)
    until(lambda: jobs.run(run.id).attempts[0].ended, "the attempt has ended", 60)
    assert jobs.run(run.id).attempts[0].state == "stopped"
    assert "before" in printed(jobs, run)


def test_a_runner_that_is_told_to_leave_hands_its_run_back_and_leaves_nothing(alone: World, tmp_path: Path) -> None:
    jobs = alone.client().jobs
    first = start_runner(alone.url, 1, tmp_path / "log")
    run = jobs.start(request("marks", parameters={"folder": str(tmp_path), "seconds": 2.0}))
    until(lambda: list(tmp_path.glob("run_*")), "it runs")
    family = psutil.Process(first.pid).children(recursive=True)
    first.terminate()
    assert first.wait(60) == 0
    until(lambda: all(gone(p.pid) for p in family), "no slot and no kernel is left")
    assert jobs.run(run.id).state == HAND_BACK
    with runner_beside(alone, tmp_path):
        ended = jobs.wait(run.id, timeout=60)
    assert (ended.state, [a.state for a in ended.attempts]) == (SUCCEEDED, [HAND_BACK, SUCCEEDED])


def test_a_killed_runner_loses_its_run_to_another_and_it_is_published_once(alone: World, tmp_path: Path) -> None:
    jobs = alone.client().jobs
    first = start_runner(alone.url, 1, tmp_path / "log")
    run = jobs.start(request("marks", parameters={"folder": str(tmp_path), "seconds": 1.0}))
    until(lambda: list(tmp_path.glob("run_*")), "it runs")
    family = kill(first)
    lose(alone.state)
    with runner_beside(alone, tmp_path):
        ended = jobs.wait(run.id, timeout=60)
    assert (ended.state, [a.state for a in ended.attempts]) == (SUCCEEDED, ["failed", SUCCEEDED])
    assert "runner was lost" in ended.attempts[0].error
    assert published(alone.client(), run.id) == 1
    until(lambda: all(map(gone, family)), "nothing of the killed runner is left")


def test_a_killed_runner_process_takes_its_slots_and_kernels_with_it(alone: World, tmp_path: Path) -> None:
    """Only the parent is killed: its slot notices, ends its kernel and hands the run back at once."""
    jobs = alone.client().jobs
    first = start_runner(alone.url, 1, tmp_path / "log")
    run = jobs.start(request("marks", parameters={"folder": str(tmp_path), "seconds": 30.0}))
    until(lambda: list(tmp_path.glob("run_*")), "it runs")
    family = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    first.kill()
    first.wait(60)
    until(lambda: all(gone(p.pid) for p in family), "nothing of the killed runner is left")
    assert jobs.run(run.id).state == HAND_BACK


def test_a_killed_service_comes_back_and_no_run_is_lost_or_published_twice(tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    processes = [start_service(tmp_path / "home", port), start_runner(url, 1, tmp_path / "log")]
    client = Client(url, "ada-token", timeout=60)
    try:
        running = client.jobs.start(request("marks", parameters={"folder": str(tmp_path), "seconds": 2.5}))
        waiting = client.jobs.start(request("works", parameters={"x": 2}))
        until(lambda: list(tmp_path.glob("run_*")), "the first one runs")
        processes[0].kill()
        processes.pop(0).wait(60)
        time.sleep(1)
        processes.append(start_service(tmp_path / "home", port))
        for run in (running, waiting):
            ended = client.jobs.wait(run.id, timeout=60)
            assert (ended.state, len(ended.attempts)) == (SUCCEEDED, 1)
            assert published(client, run.id) == 1
        assert len(list(tmp_path.glob("run_*"))) == 1, "and it ran once"
    finally:
        client.close()
        for process in processes:
            process.terminate()
            process.wait(60)


def test_no_run_sees_what_another_left(jobs: Jobs) -> None:
    """Each run has a kernel of its own: process ids differ, and none is older than the run before."""
    pids = set()
    for _ in range(2):
        run = finish(jobs, "leaves_a_child")
        child = int(printed(jobs, run))
        until(lambda pid=child: gone(pid), "what the run started has ended with it")  # type: ignore[misc]
        pids.add(child)
    assert len(pids) == 2


def test_a_files_name_never_leads_out_of_the_runs_folder(tmp_path: Path) -> None:
    """The service refuses such names; the runner does not rely on it."""
    from cellwork import clock
    from cellwork.errors import BadInput
    from cellwork.wire.jobs import Claim

    run = Run(
        id="run_" + "0" * 26,
        project="p",
        notebook="n.ipynb",
        notebook_sha256="",
        parameters={},
        principal="ada",
        state="running",
        created=clock.now(),
    )
    for name in ("../evil.py", "/tmp/evil.py", "a/../../evil.py"):
        claim = Claim(
            run=run, attempt=1, fence=1, content="{}", files={name: ""}, token="", timeout_seconds=1, lease_seconds=1
        )
        with pytest.raises(BadInput, match="outside"):
            slot.unpack(claim, tmp_path / "work")
    assert not list(tmp_path.rglob("evil.py"))


def test_a_runner_of_another_account_runs_notebooks_there_and_hides_its_token_from_them(
    alone: World, tmp_path: Path, open_folder: Path
) -> None:
    """It knows the address and its token; its notebooks can read neither the platform's home nor the runner's environment."""
    account = Account(open_folder)
    source = f"""
import os, pathlib
def can_read(path):
    try:
        return bool(pathlib.Path(path).read_bytes())
    except OSError:
        return False
slot = os.getppid()
runner = int(pathlib.Path(f"/proc/{{slot}}/stat").read_text().rpartition(")")[2].split()[1])
print(os.getuid(), [can_read(p) for p in ({str(alone.state.home.database("jobs"))!r}, f"/proc/{{slot}}/environ", f"/proc/{{runner}}/environ")])
"""
    cell = {"cell_type": "code", "id": "c1", "metadata": {}, "outputs": [], "execution_count": None, "source": source}
    content = json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]})
    environ = {"CELLWORK_URL": alone.url, "CELLWORK_RUNNER_TOKEN": "runner-token", "CELLWORK_RUNNERS": "1"}
    command = [sys.executable, "-m", "cellwork_hub.jobs.runners.process"]
    runner = account.start(command, environ, tmp_path / "log")
    jobs = alone.client().jobs
    try:
        run = jobs.wait(jobs.start(RunRequest(project="p", notebook="n.ipynb", content=content)).id, timeout=60)
    finally:
        runner.terminate()
        runner.wait(60)
    assert run.state == SUCCEEDED, (run.attempts, (tmp_path / "log").read_text())
    assert printed(jobs, run).split(maxsplit=1) == [str(UID), "[False, False, False]\n"]
