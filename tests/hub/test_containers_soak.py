"""Servers that come and go: whatever order people start and stop them in, nothing is left of a server that ended.

The oracle is the machine: containers and their networks' addresses as the engine tells, processes and listening ports as the
system tells, routes as the proxy tells. The seed is printed; the same seed is the same order.
"""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psutil
import pytest
from crew_world import Crew
from running import board, left_of, wait_for
from team_world import pass_phrase

from cellwork.home import Home

pytestmark = pytest.mark.timeout(3600)


@dataclass(frozen=True)
class Seen:
    """What there is of the platform besides files."""

    containers: frozenset[str]
    addresses: int
    processes: int
    ports: int
    routes: int


def look(crew: Crew) -> Seen:
    assert crew.engine
    instance = board(crew.home)["instance"]
    pids = [int(line.split()[0]) for line in left_of(crew.home, instance)]
    listening = {
        c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in pids
    }
    [network] = [n for n in crew.engine.client.networks.list() if n.name.startswith(crew.prefix)]
    network.reload()
    rules = (Home(crew.home).proxy() / "rules.toml").read_text()
    return Seen(
        frozenset(c.name for c in crew.containers(all=True)), len(network.attrs["Containers"]), len(pids), len(listening),
        rules.count("/user/"),
    )  # fmt: skip


def come_and_go(crew: Crew, person: str, rng: random.Random, times: int) -> int:
    """Start and stop the server of `person`, sometimes with a kernel in it, sometimes stopping what has hardly begun."""
    served = 0
    for _ in range(times):
        answer = crew.ask("tiny", user=person)
        assert answer.status_code in (201, 202, 400), answer.text
        if rng.random() < 0.25:
            time.sleep(rng.uniform(0, 2))
        else:
            told = crew.story(user=person)[-1]
            assert told.get("ready"), told
            served += 1
            if rng.random() < 0.5:
                server = crew.reach(user=person)
                assert server.execute(server.start_kernel(), "6 * 7") == "42"
        stop(crew, person)
    return served


def stop(crew: Crew, person: str) -> None:
    """Stop a server, also one that is still starting: the hub asks to wait then."""

    def stopped() -> bool:
        with crew.hub() as hub:
            hub.delete(f"/users/{person}/server")
            return "" not in hub.get(f"/users/{person}").json()["servers"]

    wait_for(stopped, 180, f"the end of the server of {person}")


def enrol(crew: Crew, name: str) -> str:
    """Make an account whose owner has been here once."""
    made = crew.client().users.add(name)
    with crew.browser() as browser:
        assert crew.redeem(browser, name, made.code, pass_phrase(name)).status_code == 200
    return name


def walk(crew: Crew, people: int, times: int, at_once: int) -> None:
    seed = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(10**6)
    print(f"SEED={seed}")
    names = [enrol(crew, f"soak{seed}x{number}") for number in range(people)]
    before = look(crew)
    with ThreadPoolExecutor(at_once) as pool:
        work = [pool.submit(come_and_go, crew, name, random.Random(f"{seed} {name}"), times) for name in names]
        served = sum(each.result() for each in work)
    wait_for(lambda: look(crew).containers == before.containers, 60, "the end of every container")
    wait_for(lambda: look(crew) == before, 60, f"all as before: {before} (now {look(crew)})")
    print(f"{people} people, {served} servers that answered, nothing left: {before}")


def test_nothing_is_left_of_servers_that_came_and_went(crew: Crew) -> None:
    walk(crew, people=2, times=1, at_once=2)


@pytest.mark.soak
def test_nothing_is_left_of_fifty_peoples_servers_in_half_an_hour(crew: Crew) -> None:
    began = time.monotonic()
    while time.monotonic() - began < float(os.environ.get("SOAK_SECONDS", "1800")):
        walk(crew, people=50, times=2, at_once=4)
