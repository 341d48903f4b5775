"""Workers to train on: processes of this machine, or any Dask scheduler by its address.

A local cluster listens on 127.0.0.1 only, takes free ports, and ends with the `with` block.
"""

from __future__ import annotations

import html
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from cellwork.errors import Unavailable

START_SECONDS = 60


@dataclass(frozen=True)
class Cluster:
    """A Dask client with the link to its dashboard."""

    client: Any
    dashboard: str

    @property
    def workers(self) -> int:
        return len(self.client.scheduler_info(n_workers=-1)["workers"])

    def __repr__(self) -> str:
        return f"Dask cluster of {self.workers} workers, dashboard {self.dashboard or 'none'}"

    def _repr_html_(self) -> str:
        link = html.escape(self.dashboard)
        return f'Dask cluster of {self.workers} workers, <a href="{link}" target="_blank">dashboard</a>'


@contextmanager
def cluster(address: str = "", *, workers: int | None = None, threads: int = 1) -> Iterator[Cluster]:
    """Yield a cluster: the one at `address`, else `workers` processes (default: one a core) of `threads` threads here.

    Raises
    ------
    Unavailable
        No scheduler answers at `address`, or no worker comes up, within a minute.
    """
    import dask
    from dask.distributed import Client

    with ExitStack() as stack:
        chosen = {"distributed.dashboard.link": dashboard_link(), "distributed.scheduler.allowed-failures": 0}
        stack.enter_context(dask.config.set(chosen))
        place = address or stack.enter_context(_local(workers, threads))
        try:
            client = stack.enter_context(Client(place, timeout=START_SECONDS))
            client.wait_for_workers(1, timeout=START_SECONDS)
        except (OSError, TimeoutError) as error:
            raise Unavailable(
                "Dask scheduler",
                address or "of this machine",
                f"gave no worker within {START_SECONDS} s ({error})",
                "check its address, or leave it out to train here",
            ) from None
        yield Cluster(client, client.dashboard_link or "")


def _local(workers: int | None, threads: int) -> Any:
    from dask.distributed import LocalCluster
    from dask.system import CPU_COUNT

    return LocalCluster(
        n_workers=workers or max(1, CPU_COUNT // threads), threads_per_worker=threads, processes=True, host="127.0.0.1",
        dashboard_address="127.0.0.1:0", silence_logs=logging.ERROR,
    )  # fmt: skip


def dashboard_link() -> str:
    """Return Dask's template of the dashboard's address: through the user's server on a hub, else direct."""
    prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX", "")
    return prefix + "proxy/{port}/status" if prefix else "http://{host}:{port}/status"
