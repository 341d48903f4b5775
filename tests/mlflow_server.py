"""A real MLflow server on a free port, under the platform's own path prefix; one a test process, started when it is first asked for."""

from __future__ import annotations

import atexit
import functools
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

PREFIX = "/services/mlflow"
START_SECONDS = 90


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@functools.cache
def url() -> str:
    """Return the address in front of the prefix, e.g. ``http://127.0.0.1:5000``; the server ends with this process."""
    temporary = tempfile.TemporaryDirectory(prefix="cellwork-mlflow-")
    folder, port = Path(temporary.name), free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--static-prefix", PREFIX,
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.sqlite", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    environ = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environ.pop("MLFLOW_TRACKING_URI", None)
    log = (folder / "log").open("wb")
    process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    atexit.register(_stop, process, temporary)
    address = f"http://127.0.0.1:{port}"
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{address}{PREFIX}/health", trust_env=False).status_code == 200:
                return address
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"MLflow did not start: {(folder / 'log').read_text()[-2000:]}")


def _stop(process: subprocess.Popen[bytes], temporary: tempfile.TemporaryDirectory[str]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
    temporary.cleanup()
