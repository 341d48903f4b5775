"""What callers notice of versions that do harm: python bench/endpoint_faults.py [SECONDS]

One service in a process of its own, real registered versions (tests/poisons.py). First a live version that takes 5 s on each row,
asked 200 times a second at fixed times, whether or not earlier answers have come; then each poisoned version as a canary, poked twice a
second, beside 50 good requests a second. The oracle is the client: it counts every request it sent.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import poisons
import serving_world as world

from cellwork.wire.endpoints import ArmWish, Deploy

DEADLINE = 2.0
HEADERS = {"authorization": "Bearer deployer"}
Sent = tuple[float, int, str]
"""Seconds, status, and the route that answered."""


@contextmanager
def service(folder: Path, models: list[Path]) -> Iterator[str]:
    port = world.free_port()
    command = [sys.executable, world.__file__, str(folder / "home"), str(port), *map(str, models)]
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 90
        while not _ready(url):
            assert time.monotonic() < end, "the service did not start"
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


async def send(http: httpx.AsyncClient, url: str, row: dict[str, Any], unit: str) -> Sent:
    began = time.perf_counter()
    try:
        answer = await http.post(url, json={"rows": [{"features": row}], "unit": unit})
    except httpx.TransportError:
        return time.perf_counter() - began, 0, ""
    route = answer.json().get("route", "") if answer.status_code == 200 else ""
    return time.perf_counter() - began, answer.status_code, route


async def at_rate(url: str, row: dict[str, Any], unit: str, *, rate: float, seconds: float) -> list[Sent]:
    """Send `rate` requests a second at fixed times; returns what became of each."""
    limits = httpx.Limits(max_connections=2000, max_keepalive_connections=200)
    async with httpx.AsyncClient(headers=HEADERS, timeout=30, limits=limits, trust_env=False) as http:
        began, tasks = time.perf_counter(), []
        for k in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + k / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(send(http, url, row, unit)))
        return list(await asyncio.gather(*tasks))


def quantile(sent: list[Sent], q: float) -> float:
    taken = sorted(seconds for seconds, _, _ in sent)
    return taken[min(len(taken) - 1, int(q * len(taken)))] * 1e3


def late(url: str, seconds: float) -> None:
    row = poisons.slow_row(5.0)
    sent = asyncio.run(at_rate(f"{url}/predict/shop/slow", row, "u", rate=200, seconds=seconds))
    inside = sum(seconds <= DEADLINE + 0.05 and status == 200 for seconds, status, _ in sent) / len(sent)
    routes = Counter(route for _, _, route in sent)
    print("| live version of 5 s | requests | failed | within deadline + 50 ms | p50 ms | p99 ms | answered by |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    failed = sum(status != 200 for _, status, _ in sent)
    print(
        f"| 200 a second | {len(sent)} | {failed} | {inside:.2%} | {quantile(sent, 0.5):.0f} | {quantile(sent, 0.99):.0f} | {dict(routes)} |"
    )


async def poked(url: str, poison: dict[str, Any], seconds: float) -> tuple[list[Sent], list[Sent]]:
    good = at_rate(url, poisons.GOOD, "good", rate=50, seconds=seconds)
    return tuple(await asyncio.gather(good, at_rate(url, poison, "poison", rate=2, seconds=seconds)))  # type: ignore[return-value]


def main(seconds: float) -> None:
    names = list(poisons.POISONS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = [
            poisons.good(folder / "good"),
            *(poisons.registered(name, folder / str(k)) for k, name in enumerate(names)),
        ]
        with service(folder, models) as url, world.caller(url) as client:
            slow = names.index("holds the interpreter") + 2
            for version in (1, slow):
                client.endpoints.deploy("shop/slow", Deploy(version=version, model=world.MODEL))
            late(url, seconds)
            print(
                "\n| canary, poked twice a second | its requests | failed | good requests | failed | good p50 ms | good p99 ms |"
            )
            print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
            for number, name in enumerate(names, start=2):
                endpoint = f"shop/p{number}"
                client.endpoints.deploy(endpoint, Deploy(version=1, model=world.MODEL))
                client.endpoints.put_arm(endpoint, number, ArmWish(model=world.MODEL, units=["poison"]))
                good, bad = asyncio.run(poked(f"{url}/predict/{endpoint}", poisons.POISONS[name], seconds))
                failed = [sum(status != 200 for _, status, _ in sent) for sent in (bad, good)]
                print(
                    f"| {name} | {len(bad)} | {failed[0]} | {len(good)} | {failed[1]} | {quantile(good, 0.5):.1f} | {quantile(good, 0.99):.1f} |",
                    flush=True,
                )
    print(f"\nload {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)
