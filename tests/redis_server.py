"""A real Redis on a free port of 127.0.0.1, without persistence, for one session of tests."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import tied
from need import need
from ports import free_port


@contextmanager
def redis_server() -> Iterator[str]:
    """Yield the address of a Redis that is gone afterwards."""
    program = shutil.which("redis-server")
    need(program is not None, "redis-server")
    port = free_port()
    arguments = [str(program), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = tied.start(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        tied.stop(server)


def _wait(port: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("Redis did not start within 60 s")
