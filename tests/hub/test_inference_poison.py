"""Poisoned versions: refused where the example shows it, and where only one row does, nobody but that row's caller notices."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import poisons
import pytest
import serving_world as world

from cellwork import errors
from cellwork.client import Client
from cellwork.wire.endpoints import Answer, ArmWish, Deploy, Request, Row
from cellwork_hub.inference.app import build
from cellwork_hub.inference.door import FrontDoor

AT_ONCE = {"damaged": "can't be loaded", "wrong signature": "raised|feature", "not finite": "not finite"}
NAMES = [*poisons.POISONS, *AT_ONCE]
HANGS_MS = 1000
"""What a request may take that a version may hang at."""
PAUSE_SECONDS = 0.01
"""Between a caller's requests: what starts beside them needs the processor too."""
VERSION = {name: number for number, name in enumerate(NAMES, start=2)}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder, folders = tmp_path_factory.mktemp("models"), world.Folders()
    folders.add(poisons.good(folder / "1"), 1)
    for name in poisons.POISONS:
        folders.add(poisons.registered(name, folder / str(VERSION[name])), VERSION[name])
    for name in AT_ONCE:
        folders.add(poisons.wrong_at_once(name, folder / str(VERSION[name])), VERSION[name])
    context = world.context(tmp_path_factory.mktemp("home"))

    def service() -> FrontDoor:
        return build(
            context, authorise=world.authorise, registry=folders, lookup=lambda *_: {}, deadline=world.DEADLINE
        )

    with world.running(service, context.ports["inference"]) as address, world.caller(address) as client:
        client.endpoints.deploy("shop/good", Deploy(version=1, model=world.MODEL))
        yield client


@contextmanager
def good_callers(
    client: Client, endpoint: str, deadline_ms: int | None = None
) -> Iterator[tuple[list[float], list[object]]]:
    """Ask good rows all the time; yields the seconds that each took, and what failed."""
    stop, seconds, failed = threading.Event(), list[float](), list[object]()

    def ask() -> None:
        with world.caller(client.connection.url) as own:
            own.connection.attempts = 1
            while not stop.is_set():
                began = time.perf_counter()
                try:
                    request = Request(rows=[Row(features=poisons.GOOD)], unit="good", deadline_ms=deadline_ms)
                    own.endpoints.predict(endpoint, request)
                except errors.CellworkError as error:
                    failed.append(error)
                seconds.append(time.perf_counter() - began)
                stop.wait(PAUSE_SECONDS)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield seconds, failed
        end = time.monotonic() + 60
        while len(seconds) < 20 and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def ask(client: Client, endpoint: str, row: dict[str, Any], deadline_ms: int | None = HANGS_MS) -> Answer:
    return client.endpoints.predict(endpoint, Request(rows=[Row(features=row)], unit="poison", deadline_ms=deadline_ms))


@pytest.mark.parametrize("kind", AT_ONCE)
def test_a_version_that_is_bad_on_its_example_is_refused_and_the_audit_says_why(client: Client, kind: str) -> None:
    with good_callers(client, "shop/good") as (seconds, failed), pytest.raises(errors.Refused, match=AT_ONCE[kind]):
        client.endpoints.deploy("shop/good", Deploy(version=VERSION[kind], model=world.MODEL))
    assert (failed, len(seconds) > 0) == ([], True)
    row = client.records.audit(service="inference")[-1]
    assert (row.action, row.after) == ("endpoint.refused", f"{world.MODEL}@{VERSION[kind]}")
    assert client.endpoints.get("shop/good").routes.live.version == 1


@pytest.mark.parametrize("poison", poisons.POISONS)
def test_a_poisoned_canary_fails_no_request_and_the_good_version_answers_on(client: Client, poison: str) -> None:
    endpoint = f"shop/p{VERSION[poison]}"
    client.endpoints.deploy(endpoint, Deploy(version=1, model=world.MODEL))
    client.endpoints.put_arm(endpoint, VERSION[poison], ArmWish(model=world.MODEL, units=["poison"]))
    assert ask(client, endpoint, poisons.GOOD, deadline_ms=None).route == "canary"
    with good_callers(client, endpoint) as (seconds, failed):
        answers = [ask(client, endpoint, poisons.POISONS[poison]) for _ in range(3)]
    assert [(answer.model.version, answer.route) for answer in answers] == [(1, "fallback")] * 3
    assert failed == []
    seconds.sort()
    print(
        f"{poison}: {answers[0].reason[:80]}; good version p99 {seconds[int(len(seconds) * 0.99)] * 1e3:.1f} ms of {len(seconds)}"
    )
    client.endpoints.remove_arm(endpoint, VERSION[poison], model=world.MODEL)


def test_a_poisoned_live_version_is_answered_for_by_the_previous_one(client: Client) -> None:
    endpoint, version = "shop/live", VERSION["never returns from C"]
    client.endpoints.deploy(endpoint, Deploy(version=1, model=world.MODEL))
    client.endpoints.deploy(endpoint, Deploy(version=version, model=world.MODEL))
    with good_callers(client, endpoint, HANGS_MS) as (seconds, failed):
        answers = [ask(client, endpoint, poisons.POISONS["never returns from C"]) for _ in range(4)]
    assert {(answer.model.version, answer.route) for answer in answers} == {(1, "fallback")}
    assert (failed, len(seconds) > 0) == ([], True)
