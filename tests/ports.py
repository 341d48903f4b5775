"""Ports of 127.0.0.1 for servers that must be told one. A port that was closed a moment ago is taken by the next connection if the kernel
gives it away; these lie below those that it gives, and beside those that the platform takes for itself (`cellwork_hub.preparation`)."""

from __future__ import annotations

import os
import random
import socket

LOW, HIGH = 10_000, 20_000
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
"""Each worker of pytest-xdist has ports of its own: what one was told, and has not bound yet or will bind again, no other takes."""
_chance, _given = random.SystemRandom(), set[int]()


def free_port() -> int:
    """Return a port on which nobody listens; in this process it is never returned again."""
    while True:
        port = _chance.randrange(LOW + WORKER, HIGH, WORKERS)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
