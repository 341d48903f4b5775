"""Clusters from a Dask Gateway: the gateway starts workers where it runs them (YARN, Slurm, Kubernetes), for as long as they are needed.

A cluster is asked for, given its workers, and shut down when the block ends, whatever ended it. Who asks is said by the hub's token where this process
has one (a gateway beside a JupyterHub takes that), else by Dask's configuration (``gateway.auth``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from cellwork.errors import Unavailable

PREFIX = "gateway+"
"""An address begins with it: ``gateway+https://gateway.example.org``."""
WORKERS = 2


@contextmanager
def opened(address: str, workers: int | None, timeout: float) -> Iterator[Any]:
    """Yield the Dask client of a new cluster of the gateway at `address`, with `workers` workers (default 2).

    Raises
    ------
    Unavailable
        dask-gateway is not installed; or the gateway does not answer, does not know who asks, or gives no cluster within `timeout` seconds.
    """
    try:
        from dask_gateway import Gateway, GatewayClusterError, GatewayServerError
    except ImportError:
        raise Unavailable("Dask Gateway", address, "needs dask-gateway", "pip install 'cellwork[gateway]'") from None
    from aiohttp import ClientError

    auth = "jupyterhub" if os.environ.get("JUPYTERHUB_API_TOKEN") else None
    place = address.removeprefix(PREFIX)
    with ExitStack() as stack:
        try:
            gateway = stack.enter_context(Gateway(place, auth=auth))
            cluster = stack.enter_context(gateway.new_cluster(shutdown_on_close=True))
            cluster.scale(workers or WORKERS)
            client = stack.enter_context(cluster.get_client())
            client.wait_for_workers(1, timeout=timeout)
        except (GatewayClusterError, GatewayServerError, ClientError, OSError, TimeoutError) as error:
            said = f"gave no cluster ({type(error).__name__}: {error})"
            raise Unavailable(
                "Dask Gateway", place, said, "check its address, and gateway.auth of Dask's configuration"
            ) from None
        yield client
