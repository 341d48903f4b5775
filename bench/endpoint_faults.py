"""What callers notice of versions that change, harm or die: python bench/endpoint_faults.py [SCALE] [late|poisons|swaps|kills ...]

One service in a process of its own, real registered versions (tests/poisons.py), callers with the quick lane's plain requests:

- late: a live version that takes 5 s on each row, asked 200 times a second at fixed times, whether or not earlier answers have come;
- poisons: each poisoned version as a canary, poked twice a second, beside 50 good requests a second;
- swaps: 20 hot swaps of the live version in 100,000 requests on 64 connections;
- kills: the service is killed (-9) 50 times at seeded moments while 500 requests a second come at fixed times, and started again.

SCALE 1 is the full size, 0.1 a tenth of it. The oracle is the client: it counts every request it sent, and compares what was
acknowledged with the prediction log afterwards.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import poisons
import serving_world as world

from cellwork.client import Client
from cellwork.wire.endpoints import ArmWish, Deploy

DEADLINE = 2.0
SEED = int(os.environ.get("CELLWORK_TEST_SEED", "2013"))
HEADERS = {"authorization": "Bearer deployer"}
PLAIN = {"visits": 3.0, "plan": "free"}
Sent = tuple[float, int, str, str]
"""Seconds, status (0: no answer), the route or version that answered, and the prediction's id."""


class Service:
    """The service as a process on one home."""

    def __init__(self, folder: Path, models: list[Path]) -> None:
        self.home, self.models, self.port = folder / "home", models, world.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [sys.executable, world.__file__, str(self.home), str(self.port), *map(str, self.models)]
        self.process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 90
        while not self._ready():
            assert time.monotonic() < end, "the service did not start"
            time.sleep(0.02)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(60)

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def service(models: Callable[[Path], list[Path]]) -> Iterator[tuple[Service, Client]]:
    with tempfile.TemporaryDirectory() as temporary:
        served = Service(Path(temporary), models(Path(temporary)))
        served.start()
        try:
            with world.caller(served.url) as client:
                yield served, client
        finally:
            served.stop()


async def send(http: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Sent:
    began = time.perf_counter()
    try:
        async with http.post(url, json=body) as answer:
            said = await answer.json(content_type=None)
            if answer.status != 200:
                return time.perf_counter() - began, answer.status, str(said), ""
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return time.perf_counter() - began, 0, type(error).__name__, ""
    who = f"{said['route']} {said['model']['version']}"
    return time.perf_counter() - began, 200, who, said["outputs"][0]["id"]


def session(connections: int) -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=30)
    return aiohttp.ClientSession(headers=HEADERS, connector=aiohttp.TCPConnector(limit=connections), timeout=timeout)


async def at_rate(
    url: str, body: dict[str, Any], *, rate: float, seconds: float, going: list[Sent] | None = None
) -> list[Sent]:
    """Send `rate` requests a second at fixed times; returns what became of each."""
    sent: list[Sent] = [] if going is None else going

    async def one(http: aiohttp.ClientSession) -> None:
        sent.append(await send(http, url, body))

    async with session(2000) as http:
        began, tasks = time.perf_counter(), []
        for k in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + k / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(one(http)))
        await asyncio.gather(*tasks)
    return sent


def quantile(sent: list[Sent], q: float) -> float:
    taken = sorted(each[0] for each in sent)
    return taken[min(len(taken) - 1, int(q * len(taken)))] * 1e3


def failed(sent: list[Sent]) -> int:
    return sum(each[1] != 200 for each in sent)


def one_row(row: dict[str, Any], unit: str) -> dict[str, Any]:
    return {"rows": [{"features": row}], "unit": unit}


def log_of(client: Client, endpoint: str) -> list[Any]:
    found: list[Any] = []
    while page := client.endpoints.predictions(endpoint, after=found[-1].seq if found else 0, limit=10_000, brief=True):
        found += page
    return found


def poisoned(folder: Path) -> list[Path]:
    bad = [poisons.registered(name, folder / str(k)) for k, name in enumerate(poisons.POISONS)]
    return [poisons.good(folder / "good"), *bad]


def late(scale: float) -> None:
    seconds = max(2.0, 60 * scale)
    with service(poisoned) as (served, client):
        for version in (1, list(poisons.POISONS).index("holds the interpreter") + 2):
            client.endpoints.deploy("shop/slow", Deploy(version=version, model=world.MODEL))
        body = one_row(poisons.slow_row(5.0), "u")
        sent = asyncio.run(at_rate(f"{served.url}/predict/shop/slow", body, rate=200, seconds=seconds))
    inside = sum(each[0] <= DEADLINE + 0.05 and each[1] == 200 for each in sent) / len(sent)
    print("| live version of 5 s | requests | failed | within deadline + 50 ms | p50 ms | p99 ms | answered by |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    by = dict(Counter(each[2] for each in sent))
    print(
        f"| 200 a second | {len(sent)} | {failed(sent)} | {inside:.2%} | {quantile(sent, 0.5):.0f} | {quantile(sent, 0.99):.0f} | {by} |"
    )


async def poked(url: str, poison: dict[str, Any], seconds: float) -> tuple[list[Sent], list[Sent]]:
    good = at_rate(url, one_row(poisons.GOOD, "good"), rate=50, seconds=seconds)
    bad = at_rate(url, one_row(poison, "poison"), rate=2, seconds=seconds)
    one, other = await asyncio.gather(good, bad)
    return one, other


def poison(scale: float) -> None:
    seconds = max(2.0, 30 * scale)
    print(
        "| canary, poked twice a second | its requests | failed | good requests | failed | good p50 ms | good p99 ms |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    with service(poisoned) as (served, client):
        for number, name in enumerate(poisons.POISONS, start=2):
            endpoint = f"shop/p{number}"
            client.endpoints.deploy(endpoint, Deploy(version=1, model=world.MODEL))
            client.endpoints.put_arm(endpoint, number, ArmWish(model=world.MODEL, units=["poison"]))
            good, bad = asyncio.run(poked(f"{served.url}/predict/{endpoint}", poisons.POISONS[name], seconds))
            times = f"{quantile(good, 0.5):.1f} | {quantile(good, 0.99):.1f}"
            print(f"| {name} | {len(bad)} | {failed(bad)} | {len(good)} | {failed(good)} | {times} |", flush=True)


def plain(folder: Path) -> list[Path]:
    return [world.saved(seed, folder / str(seed)) for seed in (1, 2)]


async def many(url: str, count: int, sent: list[Sent]) -> None:
    numbers, body = iter(range(count)), {"rows": [{"features": PLAIN}]}

    async def caller(http: aiohttp.ClientSession) -> None:
        for _ in numbers:
            sent.append(await send(http, url, body))

    async with session(64) as http:
        await asyncio.gather(*(caller(http) for _ in range(64)))


def swaps(scale: float) -> None:
    count, changes = max(2000, int(100_000 * scale)), 20
    with service(plain) as (served, client):
        for version in (1, 2):
            client.endpoints.deploy(world.MODEL, Deploy(version=version))
        sent: list[Sent] = []
        stop, swapped = threading.Event(), list[int]()

        def swap() -> None:
            for number, version in zip(range(1, changes + 1), itertools.cycle((1, 2))):
                while len(sent) < number * count // (changes + 1) and not stop.wait(0.005):
                    continue
                swapped.append(client.endpoints.deploy(world.MODEL, Deploy(version=version)).revision)

        swapper = threading.Thread(target=swap)
        swapper.start()
        asyncio.run(many(f"{served.url}/predict/{world.MODEL}", count, sent))
        stop.set()
        swapper.join()
        logged = {p.id: f"{p.route} {p.version.version}" for p in log_of(client, world.MODEL)}
    wrong = sum(logged.get(each[3]) != each[2] for each in sent if each[1] == 200)
    by = dict(Counter(each[2] for each in sent))
    print(
        "| requests | hot swaps | failed | answered by a version that the log does not name | p50 ms | p99 ms | answered by |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    times = f"{quantile(sent, 0.5):.1f} | {quantile(sent, 0.99):.1f}"
    print(f"| {len(sent)} | {len(swapped)} | {failed(sent)} | {wrong} | {times} | {by} |")


def kills(scale: float) -> None:
    count, dice = max(2, int(50 * scale)), random.Random(SEED)
    with service(plain) as (served, client):
        client.endpoints.deploy(world.MODEL, Deploy(version=1))
        url, body, sent = f"{served.url}/predict/{world.MODEL}", {"rows": [{"features": PLAIN}]}, list[Sent]()
        for _ in range(count):
            seconds = 1 + 2 * dice.random()
            timer = threading.Timer(seconds, served.kill)
            timer.start()
            asyncio.run(at_rate(url, body, rate=500, seconds=seconds + 0.3, going=sent))
            timer.join()
            served.start()
        with world.caller(served.url) as again:
            logged = Counter(p.id for p in log_of(again, world.MODEL))
    acknowledged = [each[3] for each in sent if each[1] == 200]
    lost, twice = sum(name not in logged for name in acknowledged), sum(n > 1 for n in logged.values())
    print("| kills | requests | acknowledged | lost | in the log twice | seed |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    print(f"| {count} | {len(sent)} | {len(acknowledged)} | {lost} | {twice} | {SEED} |")


PARTS = {"late": late, "poisons": poison, "swaps": swaps, "kills": kills}


def main(scale: float, parts: list[str]) -> None:
    for name in parts or PARTS:
        print(f"\n{name}, load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores", flush=True)
        PARTS[name](scale)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 0.1, sys.argv[2:])
