"""A user's server from the press of the button to its first answer: in a container of the cpu image, beside a local process of the same Lab.

    python bench/spawn.py [TIMES]

It starts a container engine and two platforms of its own (see tests/engine.py), so it needs what those tests need.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import container_world  # noqa: E402
import engine as engines  # noqa: E402
from running import Platform, command, wait_for  # noqa: E402

from cellwork.home import Home  # noqa: E402
from cellwork_hub.containers import images  # noqa: E402
from cellwork_hub.containers.engine import connect  # noqa: E402

MENU = '[cpu]\nmemory = "2G"\ncores = 2\n'


def spawn(platform: Platform) -> float:
    """Start the user's server, wait for it, stop it; return the seconds from the request to ready."""
    with platform.hub() as hub:
        hub.post("/users/ada")
        started = time.perf_counter()
        hub.post("/users/ada/server").raise_for_status()
        wait_for(lambda: hub.get("/users/ada").json()["servers"].get("", {}).get("ready"), 120)
        seconds = time.perf_counter() - started
        hub.delete("/users/ada/server")
        wait_for(lambda: "" not in hub.get("/users/ada").json()["servers"], 60)
        return seconds


def in_containers(folder: Path, times: int) -> list[float]:
    with engines.started() as engine:
        home = Home(folder / "images")
        images.build(connect(engine.address), home, "cpu", base=engine.base(), secrets=engine.secrets(), network="host")
        with container_world.running(folder / "contained", engine, menu=MENU) as platform:
            spawn(platform)
            return [spawn(platform) for _ in range(times)]


def as_processes(folder: Path, times: int) -> list[float]:
    home = folder / "processes"
    started = command(home, "up")
    try:
        assert started.returncode == 0, started.stderr
        url = next(line for line in started.stdout.splitlines() if line.startswith("Cellwork runs at")).split()[-1]
        platform = Platform(home, url)
        spawn(platform)
        return [spawn(platform) for _ in range(times)]
    finally:
        command(home, "down")


def main() -> None:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory() as folder:
        rows = {
            "local process": as_processes(Path(folder), times),
            "container, cpu image": in_containers(Path(folder), times),
        }
    first = statistics.median(rows["local process"])
    print("| server | median s | best s | worst s | ratio |\n| --- | --- | --- | --- | --- |")
    for name, seconds in rows.items():
        median = statistics.median(seconds)
        print(f"| {name} | {median:.2f} | {min(seconds):.2f} | {max(seconds):.2f} | {median / first:.2f} |")


if __name__ == "__main__":
    main()
