"""A real Dask Gateway with processes of this machine behind it: what it gives is a cluster like any other, and it is given back."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import httpx
import numpy as np
import pytest
import tied
from need import need
from ports import free_port
from sklearn.linear_model import LogisticRegression

from cellwork import training
from cellwork.errors import Unavailable

SERVER = Path(sys.executable).parent / "dask-gateway-server"
CONFIG = """
c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.DaskGateway.authenticator_class = "dask_gateway_server.auth.SimpleAuthenticator"
c.SimpleAuthenticator.password = "one of the test"
c.Proxy.address = "127.0.0.1:{port}"
c.UnsafeLocalBackend.clusters_directory = "{folder}"
c.UnsafeLocalBackend.cluster_start_timeout = c.UnsafeLocalBackend.worker_start_timeout = 240
c.UnsafeLocalBackend.cluster_heartbeat_timeout = 240
c.ClusterConfig.scheduler_cmd = ["{python}", "-m", "dask", "scheduler"]
c.ClusterConfig.worker_cmd = ["{python}", "-m", "dask", "worker"]
"""
"""Its own default, dask-scheduler, is no command of today's Dask any more."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a gateway that listens on 127.0.0.1 only; it and what it started end with the module."""
    need(SERVER.is_file(), "dask-gateway-server")
    folder, port = tmp_path_factory.mktemp("gateway"), free_port()
    (folder / "config.py").write_text(CONFIG.format(port=port, folder=folder / "clusters", python=sys.executable))
    (folder / "clusters").mkdir()
    with (folder / "log").open("wb") as log:
        process = tied.start([SERVER, "-f", folder / "config.py"], cwd=folder, stdout=log, stderr=log)
        end = time.monotonic() + 240
        while not _answers(port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.2)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            tied.stop(process)


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/api/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_a_search_runs_on_a_gateways_cluster_which_is_gone_afterwards(
    gateway: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dask_gateway import BasicAuth, Gateway

    monkeypatch.delenv("JUPYTERHUB_API_TOKEN", raising=False)
    X = np.random.default_rng(0).normal(size=(400, 3))
    password = {"username": "ada", "password": "one of the test"}
    with dask.config.set({"gateway.auth.type": "basic", "gateway.auth.kwargs": password}):
        with training.cluster(f"gateway+{gateway}", workers=1) as opened:
            assert opened.workers == 1
            found = training.search(
                LogisticRegression(),
                {"C": [0.1, 1.0]},
                X,
                (X[:, 0] > 0).astype(int),
                cluster=opened,
                progress=lambda step: None,
            )
            assert found.score > 0.95
        with Gateway(gateway, auth=BasicAuth(**password)) as asked:
            assert asked.list_clusters() == []


def test_a_gateway_that_does_not_know_who_asks_or_is_not_there_is_unavailable(
    gateway: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUPYTERHUB_API_TOKEN", raising=False)
    wrong = {"gateway.auth.type": "basic", "gateway.auth.kwargs": {"username": "ada", "password": "wrong"}}
    for address in (gateway, "http://127.0.0.1:9"):
        with (
            dask.config.set(wrong),
            pytest.raises(Unavailable, match=r"Dask Gateway.*gave no cluster"),
            training.cluster(f"gateway+{address}"),
        ):
            pass
