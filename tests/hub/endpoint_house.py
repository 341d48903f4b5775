"""A real inference service with models of five kinds, a lookup of two customers' values, and what its tests do with it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import serving_world as world

from cellwork import errors
from cellwork.client import Client
from cellwork.serving.plan import Key
from cellwork.serving.predictor import Predictor
from cellwork.wire.endpoints import Row
from cellwork.wire.features import OnlineValue
from cellwork_hub.edge import Service
from cellwork_hub.inference.app import build

NOW = datetime.now(UTC)
ONLINE = {
    ("c1",): OnlineValue(values={"age": 3.0}, event=NOW - timedelta(hours=1), batch="bat_1"),
    ("old",): OnlineValue(values={"age": 3.0}, event=NOW - timedelta(days=30), batch="bat_0"),
}


def lookup(project: str, needed: dict[str, list[Key]]) -> dict[str, dict[Key, OnlineValue]]:
    return {view: {key: ONLINE[key] for key in keys if key in ONLINE} for view, keys in needed.items()}


def folders(place: Path) -> world.Folders:
    """Return a registry whose versions 1 to 3 score, 4 is damaged and 9 fails at a missing value."""
    found = world.Folders()
    for version in (1, 2, 3):
        found.add(world.saved(version, place / str(version)), version)
    found.add(world.save(world.fragile(), world.FRAME[["visits"]], place / "9"), 9)
    damaged = shutil.copytree(place / "2", place / "4")
    (damaged / "model.skops").write_bytes(b"no archive")
    found.add(damaged, 4)
    return found


@contextmanager
def served(home: Path, folders: world.Folders) -> Iterator[Client]:
    """Serve the versions of `folders` and yield a client of the service."""
    context = world.context(home)

    def made() -> Service:
        return build(context, authorise=world.authorise, registry=folders, lookup=lookup, deadline=world.DEADLINE)

    with world.running(made, context.ports["inference"]) as address, world.caller(address) as client:
        yield client


def row(visits: float | None = 3.0, customer: str = "c1", **more: Any) -> Row:
    return Row(entities={"customer_id": customer}, features={"visits": visits, "plan": "free"}, **more)


def child(digest: str) -> int:
    """Return the pid of the newest child process of this one that holds the model of `digest`."""

    def holds(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return digest in " ".join(process.cmdline())
        return False

    return max(process.pid for process in psutil.Process().children() if holds(process))


@contextmanager
def none_started() -> Iterator[None]:
    """Within the block no child process of a model is started: one that ends stays away."""
    launch, over = Predictor._launch, threading.Event()

    async def later(predictor: Predictor, seconds: float) -> None:
        while not over.is_set():
            await asyncio.sleep(0.05)
        await launch(predictor, seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "_launch", later)
        try:
            yield
        finally:
            over.set()


def wait_until_ready(client: Client, endpoint: str) -> None:
    end = time.monotonic() + 60
    while not client.endpoints.get(endpoint).ready:
        assert time.monotonic() < end, client.endpoints.get(endpoint).predictor
        time.sleep(0.05)


def together(calls: list[Callable[[], object]]) -> list[object]:
    """Make the calls at once and return what each gave or raised."""
    results: list[object] = [None] * len(calls)

    def make(k: int) -> None:
        try:
            results[k] = calls[k]()
        except errors.CellworkError as error:
            results[k] = error

    threads = [threading.Thread(target=make, args=(k,)) for k in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    return results
