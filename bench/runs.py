"""Runs of notebooks beside papermill: a warm run by the API, twenty notebooks with heavy imports, punctual fires, an idle service.

The service and its runner are processes on a free port of 127.0.0.1; papermill is its own command, two at a time.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "hub"), str(ROOT / "tests")]

from jobs_world import page, start_runner, start_service  # noqa: E402
from ports import free_port  # noqa: E402

from cellwork.client import Client  # noqa: E402
from cellwork.wire.jobs import JobRequest, RunRequest, Schedule  # noqa: E402

WARM = "numpy,pandas,sklearn.linear_model,sklearn.ensemble"
HEAVY = ["import pandas as pd", "from sklearn.linear_model import LogisticRegression", "frame = pd.DataFrame({'a': [0, 1, 2, 3]})", "model = LogisticRegression().fit(frame, [0, 0, 1, 1])", "print(model.score(frame, [0, 0, 1, 1]))"]  # fmt: skip
DRIVER = """
import sys, nbformat
from nbclient import NotebookClient
for _ in range(int(sys.argv[2])):
    NotebookClient(nbformat.read(sys.argv[1], 4), kernel_name="python3").execute()
"""
"""One process that runs notebook after notebook, each on a fresh kernel."""
LIGHT = ["x = 1", "y = x + 1", "z = y * 2", "total = x + y + z", "print(total)"]


@contextmanager
def service(folder: Path, slots: int = 0) -> Iterator[tuple[Client, psutil.Process]]:
    """Yield a client of a service with a runner of `slots` warm kernels, and the service's process."""
    port = free_port()
    process = start_service(folder / "home", port)
    runner = start_runner(f"http://127.0.0.1:{port}", slots, folder / "log", warm=WARM) if slots else None
    client = Client(f"http://127.0.0.1:{port}", "ada-token", timeout=60)
    try:
        yield client, psutil.Process(process.pid)
    finally:
        client.close()
        for one in (runner, process):
            if one:
                one.terminate()
                one.wait(30)


def run(client: Client, content: str) -> float:
    """Return the seconds from the request to the published result."""
    started = time.perf_counter()
    begun = client.jobs.start(RunRequest(project="bench", notebook="n.ipynb", content=content))
    for _ in client.jobs.follow(begun.id):
        pass
    assert client.jobs.run(begun.id).state == "succeeded"
    return time.perf_counter() - started


def warm(folder: Path, rounds: int) -> float:
    """Return the median seconds of a five-cell notebook on a kernel that is ready."""
    with service(folder, slots=2) as (client, _):
        run(client, page(*LIGHT))
        times = []
        for _ in range(rounds):
            time.sleep(4)  # until the next kernel is ready
            times.append(run(client, page(*LIGHT)))
    return statistics.median(times)


def twenty(folder: Path, count: int) -> dict[str, float]:
    """Return the seconds for `count` notebooks with pandas and scikit-learn: through the service, by papermill two at a time, by one driver."""
    content = page(*HEAVY)
    with service(folder, slots=2) as (client, _):
        run(client, content)
        time.sleep(4)
        started = time.perf_counter()
        begun = [
            client.jobs.start(RunRequest(project="bench", notebook="n.ipynb", content=content)) for _ in range(count)
        ]
        for one in begun:
            assert client.jobs.wait(one.id, timeout=600).state == "succeeded"
        taken = {"ours": time.perf_counter() - started}
    (folder / "n.ipynb").write_text(content)

    def papermill(k: int) -> None:
        command = [
            sys.executable,
            "-m",
            "papermill",
            str(folder / "n.ipynb"),
            str(folder / f"out{k}.ipynb"),
            "--no-progress-bar",
        ]
        subprocess.run(command, check=True, capture_output=True)

    started = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(papermill, range(count)))
    taken["papermill"] = time.perf_counter() - started
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", DRIVER, str(folder / "n.ipynb"), str(count)], check=True, capture_output=True)
    taken["driver"] = time.perf_counter() - started
    return taken


def idle(folder: Path, seconds: float) -> tuple[float, float]:
    """Return the megabytes of a service that has nothing to do, with two runners that ask, and its share of a core in percent."""
    with service(folder, slots=2) as (_, process):
        time.sleep(5)
        before = process.cpu_times()
        time.sleep(seconds)
        after = process.cpu_times()
        used = after.user + after.system - before.user - before.system
        return process.memory_info().rss / 1e6, used / seconds * 100


def punctual(folder: Path, jobs: int) -> tuple[float, float]:
    """Return the median and the 99th percentile of the lateness of one minute's fires."""
    with service(folder) as (client, _):
        content = page(*LIGHT)
        for k in range(jobs):
            client.jobs.ensure(
                JobRequest(
                    project="bench",
                    name=f"j{k}",
                    notebook="n.ipynb",
                    content=content,
                    schedule=Schedule(cron="* * * * *"),
                )
            )
        for one in client.jobs.list():  # none of the fires while the jobs were made
            client.jobs.pause(f"bench/{one.name}")
        for k in range(jobs):
            client.jobs.pause(f"bench/j{k}", paused=False)
        time.sleep(75)
        late = sorted((r.created - r.due).total_seconds() for r in client.jobs.runs() if r.due)
    return statistics.median(late), late[int(len(late) * 0.99)]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--count", type=int, default=20)
    arguments.add_argument("--jobs", type=int, default=1000)
    arguments.add_argument("--parts", default="warm,twenty,idle,punctual")
    asked = arguments.parse_args()
    parts = asked.parts.split(",")
    print("load of the machine:", *(round(x, 1) for x in psutil.getloadavg()))
    with tempfile.TemporaryDirectory() as name:
        folders = {part: Path(name) / part for part in parts}
        for folder in folders.values():
            folder.mkdir()
        if "warm" in parts:
            times = warm(folders["warm"], asked.rounds)
            print(f"five cells on a kernel that is ready, by the API: {times:.3f} s", flush=True)
        if "twenty" in parts:
            taken = twenty(folders["twenty"], asked.count)
            words = (f"{who} {taken[who]:.1f} s ({taken[who] / taken['ours']:.1f}x)" for who in taken)
            print(f"{asked.count} notebooks with pandas and scikit-learn: {', '.join(words)}", flush=True)
        if "idle" in parts:
            megabytes, percent = idle(folders["idle"], 30)
            print(f"an idle service with two runners: {megabytes:.0f} MB, {percent:.1f} % of a core", flush=True)
        if "punctual" in parts:
            middle, tail = punctual(folders["punctual"], asked.jobs)
            print(f"{asked.jobs} jobs on one minute: median {middle:.2f} s late, p99 {tail:.2f} s", flush=True)


if __name__ == "__main__":
    main()
