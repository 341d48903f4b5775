"""Several processes of the inference service on one port: spawned, started again when one ends, stopped together.

The kernel spreads connections over them. Each holds every endpoint; a change made in one is followed by the others within a second
(`deploy.Endpoints.follow`). A worker ends with its parent: its standard input is the parent's pipe.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType

log = logging.getLogger("cellwork")

REST_SECONDS = 10.0
"""The longest rest before a worker that keeps ending is started again."""
GRACE_SECONDS = 13.0


def count(setting: int) -> int:
    """Return how many processes the setting asks for; 0 is one a core."""
    return setting or len(os.sched_getaffinity(0))


def run(workers: int) -> None:
    """Keep `workers` processes running until SIGTERM or SIGINT."""
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, end)
    threads = [threading.Thread(target=_keep, args=(number, stop)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _keep(number: int, stop: threading.Event) -> None:
    rest = 0.5
    command = [sys.executable, "-m", "cellwork_hub.inference", "--worker", str(number)]
    while not stop.is_set():
        began, process = time.monotonic(), subprocess.Popen(command, stdin=subprocess.PIPE)
        while process.poll() is None and not stop.wait(0.2):
            pass
        if stop.is_set():
            return _end(process)
        rest = 0.5 if time.monotonic() - began > 60 else min(2 * rest, REST_SECONDS)
        log.warning("inference worker %d ended with %s; started again in %.1f s", number, process.returncode, rest)
        stop.wait(rest)
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def end_with_parent() -> None:
    """End this process gracefully when its standard input ends."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
