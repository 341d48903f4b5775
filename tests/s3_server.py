"""A local object store that speaks S3 with conditional puts (moto's server, Apache licence) on a free port of 127.0.0.1, for one session of tests.

Its dependencies do not go with ours, so it lives in an environment of its own in the user's cache folder, made once.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
import tied
from need import need
from ports import free_port

PINNED = "moto[server]==5.2.5"


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Yield the options of a client of a store that is empty, with the bucket ``raw``, and gone afterwards."""
    program = _program()
    port = free_port()
    command = [program, "-H", "127.0.0.1", "-p", str(port)]
    server = tied.start(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port)
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/raw", method="PUT"), timeout=60):
            pass
        yield {
            "aws_access_key_id": "tests", "aws_secret_access_key": "no-secret-at-all", "aws_region": "us-east-1",
            "aws_endpoint_url": f"http://127.0.0.1:{port}", "aws_allow_http": "true",
        }  # fmt: skip
    finally:
        tied.stop(server)


def _program() -> Path:
    """Return the server's program; makes its environment at the first time."""
    folder = Path(platformdirs.user_cache_dir("cellwork-tests")) / "s3-5.2.5"
    program = folder / "bin" / "moto_server"
    if not program.exists():
        environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
        made = subprocess.run(
            [sys.executable, "-m", "venv", str(folder)], capture_output=True, timeout=120, check=False
        )
        if made.returncode == 0:
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-compile", PINNED]
            made = subprocess.run(pip, capture_output=True, timeout=300, check=False, env=environment)
        need(made.returncode == 0 and program.exists(), f"package index for the S3 server of the tests ({PINNED})")
    return program


def _wait(port: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the S3 server did not start within 60 s")
