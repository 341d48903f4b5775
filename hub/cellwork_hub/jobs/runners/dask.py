"""Dask workers as runners: beside each worker of a cluster lives a process runner, which comes and goes with it.

A plugin of the workers starts it, so that a worker that joins later, or is started again, has one too. It claims over HTTP under
the lease and the fence of every other runner:

    worker told to leave --> its runner hands its runs back, they are claimed anew at once
    worker killed        --> its runner's standard input ends, and it does the same
    host or net gone     --> the lease ends, another runner gets the run, a late result is refused by its fence

Runs are processes beside the worker's, not tasks: Dask neither counts nor limits them. The runner's token travels to the workers
through the scheduler, so whoever may submit to the cluster could claim runs: a cluster for runs is nobody's playground.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from distributed import Client, WorkerPlugin

from cellwork.errors import Unavailable
from cellwork_hub.jobs.runners.process import GRACE_SECONDS

log = logging.getLogger("cellwork.runner")

NAME = "cellwork-runner"
LOOK_SECONDS, AGAIN_SECONDS = 1.0, 5.0
CONNECT_SECONDS = 20


class Beside(WorkerPlugin):  # type: ignore[misc]
    """Keeps a runner of `slots` runs beside the worker it is a plugin of, for as long as that lives."""

    name = NAME

    def __init__(self, url: str, token: str, slots: int, modules: str = "") -> None:
        self.url, self.token, self.slots, self.modules = url, token, slots, modules

    async def setup(self, worker: Any) -> None:
        self.process = self._start(str(worker.name))
        self._watching = asyncio.create_task(self._watch(str(worker.name)))

    async def teardown(self, worker: Any) -> None:
        """Let the runner hand its runs back; it is given as long as it gives its slots, and a little more."""
        self._watching.cancel()
        self._let_go()
        for _ in range(int((GRACE_SECONDS + 5) / 0.1)):
            if self.process.poll() is not None:
                return
            await asyncio.sleep(0.1)
        self.process.kill()

    def _start(self, worker: str) -> subprocess.Popen[bytes]:
        mine = {
            name: value for name, value in os.environ.items() if not name.startswith("DASK_")
        }  # a run's clusters are its own
        environment = {
            **mine, "CELLWORK_URL": self.url, "CELLWORK_RUNNER_TOKEN": self.token, "CELLWORK_RUNNERS": str(self.slots),
            "CELLWORK_WARM_IMPORTS": self.modules,
        }  # fmt: skip
        command = [sys.executable, "-m", "cellwork_hub.jobs.runners.process", "--attended", "--name", f"dask {worker}"]
        return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)

    def _let_go(self) -> None:
        if self.process.stdin:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    async def _watch(self, worker: str) -> None:
        """Start the runner again if it ends by itself."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self.process.poll() is not None:
                log.warning("the runner of worker %s ended with %s", worker, self.process.returncode)
                self._let_go()
                await asyncio.sleep(AGAIN_SECONDS)
                self.process = self._start(worker)


@contextlib.contextmanager
def runners(address: str, plugin: Beside) -> Iterator[int]:
    """Have a runner beside each worker of the cluster at `address` while the context lasts; yields how many workers there are now.

    Raises
    ------
    Unavailable
        Nobody answers there, or the workers can't start a runner (their environment lacks `cellwork`).
    """
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except OSError as error:
        raise Unavailable("Dask scheduler", address, f"does not answer ({error})", "name the address it prints, such as tcp://host:8786") from None  # fmt: skip
    with client:
        try:
            client.register_plugin(plugin)
            yield len(client.scheduler_info(n_workers=-1)["workers"])
        except ModuleNotFoundError as error:
            raise Unavailable("Dask workers", address, f"can't be runners: {error}", "install cellwork[all] in their environment") from None  # fmt: skip
        finally:
            with contextlib.suppress(OSError):  # a scheduler that is gone has no workers
                client.unregister_worker_plugin(NAME)


def serve(address: str, plugin: Beside) -> None:
    """Have runners beside the workers until SIGTERM or SIGINT."""
    with runners(address, plugin) as count:
        log.info("runs execute beside %d Dask workers at %s", count, address)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
