"""Dask workers as runners: two worker processes execute runs beside them, and what a killed one had is done by another, once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from distributed import Client, LocalCluster
from jobs_world import World, page
from running import gone
from test_jobs_runner import published, request, until

from cellwork.errors import Unavailable
from cellwork.wire.jobs import RunRequest
from cellwork_hub.jobs.runners import dask

pytestmark = pytest.mark.timeout(900)
UNTIL_TOLD = """
import os, time
from pathlib import Path
(Path({folder!r}) / os.environ["CELLWORK_RUN"]).touch()
while not (Path({folder!r}) / "go").exists():
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("home"))
    yield world
    world.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two worker processes on this machine, each with a nanny that starts it again."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        yield cluster


def pids(cluster: LocalCluster) -> dict[str, int]:
    """Return the process of each worker that is there, by its name."""
    with Client(cluster.scheduler_address) as client:
        found = client.run(os.getpid, on_error="ignore")
        workers = client.scheduler_info(n_workers=-1)["workers"]
        return {f"dask {workers[each]['name']}": pid for each, pid in found.items() if each in workers}


def test_two_workers_share_the_runs_and_a_killed_ones_run_is_done_by_another_and_published_once(
    world: World, cluster: LocalCluster, tmp_path: Path
) -> None:
    jobs = world.client().jobs
    with dask.runners(cluster.scheduler_address, dask.Beside(world.url, "runner-token", 1)) as count:
        assert count == 2
        waits = page(UNTIL_TOLD.format(folder=str(tmp_path)))
        asked = RunRequest(project="flights", notebook="waits.ipynb", content=waits)
        started = [jobs.start(asked).id for _ in range(2)]
        until(lambda: len(list(tmp_path.glob("run_*"))) == 2, "both run at the same time")
        holders = {run: jobs.run(run).attempts[0].runner for run in started}
        before = pids(cluster)
        assert set(holders.values()) == set(before), "one at each worker"
        lost = started[0]
        worker = psutil.Process(before[holders[lost]])
        family = [process.pid for process in worker.children(recursive=True)]
        assert len(family) >= 3, "a runner, a slot and a kernel"
        worker.send_signal(signal.SIGKILL)
        until(lambda: jobs.run(lost).attempts[0].ended, "its run is taken from it")
        (tmp_path / "go").touch()
        ended = {run: jobs.wait(run, timeout=240) for run in started}
        assert {run.state for run in ended.values()} == {"succeeded"}
        assert [a.state for a in ended[lost].attempts] in (["queued", "succeeded"], ["failed", "succeeded"])
        assert len(ended[started[1]].attempts) == 1, "the other worker's run went on"
        assert [published(world.client(), run) for run in started] == [1, 1]
        until(lambda: all(gone(pid) for pid in family), "nothing of the killed worker's runner is left")
        until(lambda: len(pids(cluster)) == 2, "the worker is started again")
        short = {"folder": str(tmp_path), "seconds": 0.1}
        until(
            lambda: jobs.wait(jobs.start(request("marks", parameters=short)).id, timeout=120).attempts[-1].runner == holders[lost],
            "the worker that was started again executes runs",
        )  # fmt: skip
        runners = [child.pid for pid in pids(cluster).values() for child in psutil.Process(pid).children()]
    until(lambda: all(gone(pid) for pid in runners), "the runners leave with the plugin")


def test_what_is_no_cluster_is_said_in_a_sentence() -> None:
    with (
        pytest.raises(Unavailable, match="does not answer"),
        dask.runners("tcp://127.0.0.1:9", dask.Beside("http://127.0.0.1:9", "t", 1)),
    ):
        raise AssertionError("it answered")


def test_a_runner_of_another_host_is_one_command_with_an_address_and_a_token(world: World, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("runner-token")
    token.chmod(0o600)
    alone = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    words = ["runner", "start", "--url", world.url, "--token-file", str(token), "--slots", "1"]
    command = [str(Path(sys.executable).parent / "cellwork"), *words]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=alone, stdout=log, stderr=log)
    try:
        jobs = world.client().jobs
        ended = jobs.wait(jobs.start(request("works", parameters={"x": 2})).id, timeout=120)
        assert ended.state == "succeeded", (tmp_path / "log").read_text()
    finally:
        process.terminate()
        assert process.wait(60) == 0
    token.chmod(0o644)
    refused = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=60)
    assert (refused.returncode, "chmod 600" in refused.stderr) == (3, True), refused.stderr
