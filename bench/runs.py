"""Runs of notebooks beside papermill: a warm run by the API, twenty notebooks with heavy imports, punctual fires, an idle service.

The service and its runner are processes on a free port of 127.0.0.1; papermill is its own command, two at a time.
"""

from __future__ import annotations

import argparse
import json
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

from jobs_world import free_port, start_runner, start_service  # noqa: E402

from cellwork.client import Client  # noqa: E402
from cellwork.wire.jobs import JobRequest, RunRequest, Schedule  # noqa: E402

WARM = "numpy,pandas,sklearn.linear_model,sklearn.ensemble"
HEAVY = ["import pandas as pd", "from sklearn.linear_model import LogisticRegression", "frame = pd.DataFrame({'a': [0, 1, 2, 3]})", "model = LogisticRegression().fit(frame, [0, 0, 1, 1])", "print(model.score(frame, [0, 0, 1, 1]))"]  # fmt: skip
LIGHT = ["x = 1", "y = x + 1", "z = y * 2", "total = x + y + z", "print(total)"]


def notebook(sources: list[str]) -> str:
    cells = [
        {"cell_type": "code", "id": f"c{k}", "metadata": {}, "outputs": [], "execution_count": None, "source": s}
        for k, s in enumerate(sources)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": cells})


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
        run(client, notebook(LIGHT))
        times = []
        for _ in range(rounds):
            time.sleep(4)  # until the next kernel is ready
            times.append(run(client, notebook(LIGHT)))
    return statistics.median(times)


def twenty(folder: Path, count: int) -> tuple[float, float]:
    """Return the seconds for `count` notebooks with pandas and scikit-learn: through the service, and by papermill two at a time."""
    content = notebook(HEAVY)
    with service(folder, slots=2) as (client, _):
        run(client, content)
        time.sleep(4)
        started = time.perf_counter()
        begun = [
            client.jobs.start(RunRequest(project="bench", notebook="n.ipynb", content=content)) for _ in range(count)
        ]
        for one in begun:
            assert client.jobs.wait(one.id, timeout=600).state == "succeeded"
        ours = time.perf_counter() - started
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
    return ours, time.perf_counter() - started


def punctual(folder: Path, jobs: int) -> tuple[float, float, float]:
    """Return the median and the 99th percentile of the lateness of one minute's fires, and the idle service's megabytes before."""
    with service(folder) as (client, process):
        time.sleep(3)
        idle = process.memory_info().rss / 1e6
        content = notebook(LIGHT)
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
    return statistics.median(late), late[int(len(late) * 0.99)], idle


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--count", type=int, default=20)
    arguments.add_argument("--jobs", type=int, default=1000)
    asked = arguments.parse_args()
    print("load of the machine:", *(round(x, 1) for x in psutil.getloadavg()))
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / part for part in "abc"]
        for folder in folders:
            folder.mkdir()
        print(f"five cells on a kernel that is ready, by the API: {warm(folders[0], asked.rounds):.3f} s", flush=True)
        ours, theirs = twenty(folders[1], asked.count)
        print(
            f"{asked.count} notebooks with pandas and scikit-learn: {ours:.1f} s; papermill, two at a time: {theirs:.1f} s; {theirs / ours:.1f}x",
            flush=True,
        )
        middle, tail, idle = punctual(folders[2], asked.jobs)
        print(
            f"{asked.jobs} jobs on one minute: median {middle:.2f} s late, p99 {tail:.2f} s; the idle service holds {idle:.0f} MB"
        )


if __name__ == "__main__":
    main()
