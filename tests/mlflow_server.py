"""A real MLflow server on a free port, under the platform's own path prefix; one a test process, started when it is first asked for."""

from __future__ import annotations

import atexit
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import tied
from ports import free_port

PREFIX = "/services/mlflow"
START_SECONDS = 240


@functools.cache
def url() -> str:
    """Return the address in front of the prefix, e.g. ``http://127.0.0.1:5000``; the server ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="cellwork-mlflow-"))
    address, process = start(folder, remove=folder)
    atexit.register(tied.stop, process)
    return address


def start(folder: Path, wrap: Sequence[str] = (), *, remove: Path | None = None) -> tuple[str, subprocess.Popen[bytes]]:
    """Start a server that keeps everything in `folder`, its command behind the words `wrap`; return its address and its keeper (`tied`)."""
    port = free_port()
    command = [
        *wrap, sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--static-prefix", PREFIX,
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.sqlite", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    environ = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environ.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "log").open("wb") as log:
        process = tied.start(command, remove=remove, env=environ, stdout=log, stderr=log, cwd=folder)
    address = f"http://127.0.0.1:{port}"
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{address}{PREFIX}/health", trust_env=False, timeout=60).status_code == 200:
                return address, process
        except httpx.TransportError:
            time.sleep(0.2)
    said = (folder / "log").read_text()[-2000:]
    tied.stop(process)
    raise RuntimeError(f"MLflow did not start: {said}")
