"""Requests per second of one row, at 1 and 64 connections: the inference service beside `mlflow models serve`, in one run.

Both serve the same folder of a scikit-learn pipeline (gradient boosting of 100 trees) with one worker. Each request is one of
500 rows in turn. Ours logs every prediction before it answers; MLflow logs none. Run: python bench/serving.py [SECONDS]
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BODIES = 500
CONNECTIONS = (1, 64)
FEATURES = 20
NAME = "bench/model"
TOKEN = "bench"


def make_model(folder: Path) -> None:
    import numpy as np
    import pandas as pd
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    from cellwork.models import columns, package, registry

    dice = np.random.default_rng(0)
    frame = pd.DataFrame(dice.normal(size=(2000, FEATURES)), columns=[f"x{k}" for k in range(FEATURES)])
    labels = (frame.sum(axis=1) > 0).astype(int)
    model = make_pipeline(SimpleImputer(), GradientBoostingClassifier(n_estimators=100)).fit(frame, labels)
    example = frame.head(3).to_dict("records")
    manifest = package.Manifest(kind="classifier", columns=columns.kinds(frame), example=example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        registry.save(model, manifest, folder)


def serve(home: Path, port: int, folder: Path) -> None:
    """Be the inference service, with `folder` as the one version there is."""
    from cellwork.models import package
    from cellwork.scopes import ROLES
    from cellwork.settings import Settings
    from cellwork.wire.evaluations import Gate, VersionRef
    from cellwork.wire.records import Principal
    from cellwork_hub import edge
    from cellwork_hub.context import Context
    from cellwork_hub.inference.app import build

    class One:
        def gate(self, name: str, version: int) -> Gate:
            return Gate(
                version=VersionRef(name=name, version=version, digest=package.digest(folder)), passed=True, checks=[]
            )

        def fetch(self, ref: VersionRef, target: Path) -> None:
            shutil.copytree(folder, target)

        def definitions(self, project: str) -> None:
            return None

    async def authorise(scope: Any) -> Principal:
        return Principal(kind="user", name="bench", scopes=frozenset(ROLES["deployer"]))

    settings = Settings(home=home)
    settings.folder.ensure()
    context = Context(settings, {"public": port, "hub": port, "inference": port})
    edge.serve(build(context, authorise=authorise, registry=One()), "127.0.0.1", port)


@contextmanager
def process(command: list[str], port: int, health: str) -> Iterator[None]:
    import httpx

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            end = time.monotonic() + 120
            while True:
                try:
                    if httpx.get(f"http://127.0.0.1:{port}{health}", trust_env=False).status_code == 200:
                        break
                except httpx.TransportError:
                    if time.monotonic() > end or running.poll() is not None:
                        raise
                    time.sleep(0.2)
            yield
        finally:
            running.terminate()


def requests(path: str, port: int, bodies: list[bytes]) -> list[bytes]:
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\n"
    return [f"{head}content-length: {len(body)}\r\n\r\n".encode() + body for body in bodies]


async def load(port: int, messages: list[bytes], connections: int, seconds: float) -> tuple[float, float, int]:
    """Return answers per second, median milliseconds and the number of answers that were not 200."""
    end, times, wrong, count = time.perf_counter() + seconds, [], 0, 0

    async def connection(first: int) -> None:
        nonlocal wrong, count
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        number = first
        while time.perf_counter() < end:
            began = time.perf_counter()
            writer.write(messages[number % len(messages)])
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
            times.append(time.perf_counter() - began)
            wrong += not head.startswith(b"HTTP/1.1 200")
            count, number = count + 1, number + connections
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(connection(k) for k in range(connections)))
    return count / (time.perf_counter() - began), sorted(times)[len(times) // 2] * 1e3, wrong


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def measure(port: int, messages: list[bytes], seconds: float) -> dict[int, tuple[float, float, int]]:
    asyncio.run(load(port, messages, 4, 1))
    return {connections: asyncio.run(load(port, messages, connections, seconds)) for connections in CONNECTIONS}


def main(seconds: float) -> None:
    import numpy as np

    from cellwork.client import Client
    from cellwork.wire.endpoints import Deploy

    rows = np.random.default_rng(1).normal(size=(BODIES, FEATURES)).tolist()
    names = [f"x{k}" for k in range(FEATURES)]
    split = [json.dumps({"dataframe_split": {"columns": names, "data": [row]}}).encode() for row in rows]
    own = [json.dumps({"rows": [{"features": dict(zip(names, row, strict=True))}]}).encode() for row in rows]
    results: dict[str, dict[int, tuple[float, float, int]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        make_model(folder)
        port = free_port()
        mlflow = [str(Path(sys.executable).with_name("mlflow")), "models", "serve", "-m", str(folder), "-p", str(port)]
        with process([*mlflow, "--env-manager", "local", "--workers", "1"], port, "/ping"):
            results["mlflow models serve, /invocations"] = measure(port, requests("/invocations", port, split), seconds)
        port = free_port()
        command = [sys.executable, __file__, "--serve", f"{temporary}/home", str(port), str(folder)]
        with process(command, port, "/health/ready"), Client(f"http://127.0.0.1:{port}", TOKEN) as client:
            client.endpoints.deploy(NAME, Deploy(version=1))
            for path, bodies in ((f"/invocations/{NAME}", split), (f"/predict/{NAME}", own)):
                results[f"cellwork, {path.split('/')[1]}, logged"] = measure(
                    port, requests(path, port, bodies), seconds
                )
    show(results)


def show(results: dict[str, dict[int, tuple[float, float, int]]]) -> None:
    base = next(iter(results.values()))
    print(
        "| service | connections | requests/s | ratio | median ms | failed |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for name, figures in results.items():
        for connections, (rate, median, wrong) in figures.items():
            print(
                f"| {name} | {connections} | {rate:.0f} | {rate / base[connections][0]:.1f} | {median:.1f} | {wrong} |"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    else:
        main(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0)
