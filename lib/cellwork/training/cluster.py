"""Workers to train on: processes of this machine, or any Dask scheduler by its address, with TLS where it wants that; or a Dask Gateway's.

A local cluster listens on 127.0.0.1 only, takes free ports, and ends with the `with` block, at once: what its workers are at
then is not waited for. A cluster by address stays, and nothing of ours stays on it. Dask's workers give memory back at once
(MALLOC_TRIM_THRESHOLD_), which makes each large array of a fit a third slower to come by; ours leave that to the C library.
"""

from __future__ import annotations

import html
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellwork.errors import BadInput, Unavailable
from cellwork.training import gateway

START_SECONDS = 60
TRIM = {"distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None}
"""Unset in the workers of this machine.

Measured: 24 logistic regressions on 66,667 x 20 take 2.2 s of processor without, 3.0 to 3.3 s with it.
"""


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


@dataclass(frozen=True)
class Tls:
    """Who we are to a scheduler that speaks TLS: the authority that signed its certificate, our certificate, its key."""

    authority: Path
    certificate: Path
    key: Path

    def security(self) -> Any:
        from distributed.security import Security

        for path in (self.authority, self.certificate, self.key):
            if not Path(path).is_file():
                raise BadInput("TLS file", path, "is not there", "ask whoever runs the scheduler for it")
        return Security(
            require_encryption=True,
            tls_ca_file=str(self.authority),
            tls_client_cert=str(self.certificate),
            tls_client_key=str(self.key),
        )


@contextmanager
def cluster(
    address: str = "", *, tls: Tls | None = None, workers: int | None = None, threads: int = 1
) -> Iterator[Cluster]:
    """Yield a cluster: the one at `address`, else `workers` processes (default: one a core) of `threads` threads here.

    Parameters
    ----------
    address : ``tcp://host:8786`` or ``tls://host:8786``; or of a Dask Gateway, ``gateway+https://host``, which starts `workers` for us.
    tls : for a ``tls://`` address; default: what Dask's configuration says (``distributed.comm.tls``).

    Raises
    ------
    BadInput
        A file of `tls` is not there.
    Unavailable
        No scheduler answers at `address`, or no worker comes up, within a minute.
    """
    import dask
    import distributed  # noqa: F401 (its defaults are there before ours are set: what is set goes again)

    with ExitStack() as stack:
        with dask.config.set(
            {"distributed.dashboard.link": dashboard_link(), "distributed.scheduler.allowed-failures": 0, **TRIM}
        ):  # read when things are made; other clusters of this process keep their own
            opened = _client(stack, address, tls, workers, threads)
            made = Cluster(opened, opened.dashboard_link or "")
        yield made


def _client(stack: ExitStack, address: str, tls: Tls | None, workers: int | None, threads: int) -> Any:
    from dask.distributed import Client

    if address.startswith(gateway.PREFIX):
        return stack.enter_context(gateway.opened(address, workers, START_SECONDS))
    place = address or stack.enter_context(_local(workers, threads))
    try:
        client = stack.enter_context(Client(place, timeout=START_SECONDS, security=tls.security() if tls else None))
        client.wait_for_workers(1, timeout=START_SECONDS)
    except (OSError, TimeoutError) as error:
        raise Unavailable(
            "Dask scheduler",
            address or "of this machine",
            f"gave no worker within {START_SECONDS} s ({error})",
            "check its address, or leave it out to train here",
        ) from None
    return client


@contextmanager
def _local(workers: int | None, threads: int) -> Iterator[Any]:
    from dask.distributed import LocalCluster
    from dask.system import CPU_COUNT

    with LocalCluster(
        n_workers=workers or max(1, CPU_COUNT // threads), threads_per_worker=threads, processes=True, host="127.0.0.1",
        dashboard_address="127.0.0.1:0", silence_logs=logging.ERROR,
    ) as opened:  # fmt: skip
        yield opened
        for nanny in opened.workers.values():
            _end(nanny)


def _end(nanny: Any) -> None:
    """Kill the nanny's worker, for good: a thread that fits a model can't be asked to stop."""
    nanny.auto_restart = False
    if nanny.pid:
        with suppress(ProcessLookupError):
            os.kill(nanny.pid, signal.SIGKILL)


def dashboard_link() -> str:
    """Return Dask's template of the dashboard's address: through the user's server on a hub, else direct."""
    prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX", "")
    return prefix + "proxy/{port}/status" if prefix else "http://{host}:{port}/status"
