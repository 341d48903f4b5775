"""The hub, and then the proxy, killed with five servers in containers: how long until the API and the kernels answer, and whether their state is there.

    python bench/hub_kill.py [TIMES]

It starts a container engine and a platform of its own (see tests/engine.py), so it needs what those tests need.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import container_world  # noqa: E402
import engine as engines  # noqa: E402
from container_world import Contained  # noqa: E402
from running import Server, wait_for  # noqa: E402

from cellwork.home import Home  # noqa: E402
from cellwork_hub.containers import images  # noqa: E402
from cellwork_hub.containers.engine import connect  # noqa: E402

MENU = '[cpu]\nmemory = "1G"\ncores = 1\n'
NAMES = ("one", "two", "three", "four", "five")
Kernels = dict[str, tuple[Server, str]]


def quietly(ask: Callable[[], object]) -> bool:
    try:
        return bool(ask())
    except Exception:  # whatever fails while there is no door or no hub: it is asked again
        return False


def api(platform: Contained) -> bool:
    with platform.hub() as hub:
        return hub.get("/users/ada").status_code == 200


def kept(kernels: Kernels) -> int:
    """Return how many kernels answer with what they had computed before."""
    return sum(
        quietly(lambda n=name, s=server, k=kernel: s.execute(k, "kept", timeout=5) == repr(n))  # type: ignore[misc]
        for name, (server, kernel) in kernels.items()
    )


def kill(platform: Contained, unit: str, kernels: Kernels) -> tuple[float, float, int]:
    """Kill `unit`; return the seconds until the API answers through the public door, until all kernels do, and how many kept their state."""
    pid = platform.status(unit)["pid"]
    os.kill(pid, signal.SIGKILL)
    began = time.perf_counter()
    time.sleep(0.2)  # so that the dying one does not answer
    wait_for(lambda: quietly(lambda: api(platform)), 120)
    back = time.perf_counter() - began
    wait_for(lambda: kept(kernels) == len(kernels), 120)
    return back, time.perf_counter() - began, kept(kernels)


def main() -> None:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as folder, engines.started() as engine:
        home = Home(Path(folder) / "images")
        images.build(connect(engine.address), home, "cpu", base=engine.base(), secrets=engine.secrets(), network="host")
        with container_world.running(Path(folder) / "home", engine, menu=MENU) as platform:
            kernels: Kernels = {}
            for name in NAMES:
                server = platform.serve("cpu", name)
                kernels[name] = (server, server.start_kernel())
                server.execute(kernels[name][1], f"kept = {name!r}")
            print(
                "| killed | API back, median s | worst s | all five kernels answer, worst s | kernels that kept their state |"
            )
            print("| --- | --- | --- | --- | --- |")
            for unit in ("hub", "proxy"):
                rows = [kill(platform, unit, kernels) for _ in range(times)]
                backs, alls, keeps = zip(*rows, strict=True)
                print(
                    f"| {unit} | {statistics.median(backs):.1f} | {max(backs):.1f} | {max(alls):.1f} | {min(keeps)} of {len(NAMES)} |"
                )


if __name__ == "__main__":
    main()
