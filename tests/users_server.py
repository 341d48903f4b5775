"""A user's Jupyter server with the arguments that the hub gives it, on a free port, and a client of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import tied
from ports import free_port
from running import wait_for

from cellwork_hub.config.spawner import ARGUMENTS

EXTENSION = "--ServerApp.jpserver_extensions=cellwork_jupyter=True"


@contextmanager
def a_users_server(root: Path) -> Iterator[httpx.Client]:
    """Yield a client of a server that shows the folder `root`, in this process's environment."""
    port = free_port()
    mine = [argument for argument in ARGUMENTS if argument.startswith("--SchedulerApp")]
    command = [sys.executable, "-m", "jupyter", "server", f"--port={port}", "--ServerApp.token=t", f"--ServerApp.root_dir={root}", "--no-browser", EXTENSION, *mine, *(["--allow-root"] if os.geteuid() == 0 else [])]  # fmt: skip
    folders = {f"JUPYTER_{name}_DIR": str(root / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    with (root / "log").open("wb") as log:
        process = tied.start(command, env={**os.environ, **folders}, stdout=log, stderr=log)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"authorization": "token t"}, timeout=60, trust_env=False)  # fmt: skip
    try:
        wait_for(lambda: answers(client), 240, "the user's server")
        yield client
    finally:
        client.close()
        tied.stop(process)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/api/status").is_success
    except httpx.TransportError:
        return False
