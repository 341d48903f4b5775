"""A live version that raises, dies, hangs or answers nonsense: the one before answers in its place, and nobody else pays for it."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Iterator

import endpoint_house
import pytest
import serving_world as world
from endpoint_house import child, none_started, together, wait_until_ready

from cellwork import errors
from cellwork.client import Client
from cellwork.serving import endpoint
from cellwork.serving.breaker import Breaker
from cellwork.wire.endpoints import Deploy, Request, Row


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> world.Folders:
    return endpoint_house.folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, folders: world.Folders) -> Iterator[Client]:
    """One service for the tests of this module; each changes endpoints of its own. What is taken out stays so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(endpoint, "Breaker", functools.partial(Breaker, seconds=600.0))
        with endpoint_house.served(tmp_path_factory.mktemp("home"), folders) as client:
            yield client


@pytest.fixture(scope="module")
def shaky(client: Client) -> str:
    """An endpoint whose live version can be made to fail; version 1 is at hand."""
    client.endpoints.deploy("shop/shaky", Deploy(version=1, model=world.MODEL))
    return client.endpoints.deploy("shop/shaky", Deploy(version=9, model=world.MODEL)).endpoint


def test_one_callers_row_does_not_spoil_the_answers_of_others(client: Client, shaky: str) -> None:
    """Missing values make this model raise; requests of the same turn are then asked one by one."""
    requests = [Request(rows=[Row(features={"visits": None if k == 3 else 1.0})]) for k in range(8)]
    answers = together([lambda r=r: client.endpoints.predict(shaky, r).route for r in requests])  # type: ignore[misc]
    assert answers == ["live"] * 3 + ["fallback"] + ["live"] * 4


@pytest.mark.parametrize("poison", ["raises", "infinite", "dies", "hangs"])
def test_the_previous_version_answers_when_the_live_one_cannot(client: Client, shaky: str, poison: str) -> None:
    wait_until_ready(client, shaky)
    pid = child(client.endpoints.get(shaky).routes.live.digest)
    visits = {"raises": None, "infinite": 1e5}.get(poison, 1.0)
    request = Request(rows=[Row(features={"visits": visits})], deadline_ms=1000 if poison == "hangs" else None)
    with none_started():
        if poison in ("dies", "hangs"):
            os.kill(pid, signal.SIGKILL if poison == "dies" else signal.SIGSTOP)
        answer = client.endpoints.predict(shaky, request)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    assert (answer.model.version, answer.route) == (1, "fallback")
    reason = {"raises": "raised ValueError", "infinite": "not finite", "dies": "died", "hangs": "did not answer"}
    assert reason[poison] in answer.reason
    assert client.endpoints.prediction(answer.outputs[0].id).route == "fallback"


def test_a_version_that_keeps_failing_is_taken_out_no_request_fails_and_an_event_says_so(
    client: Client, shaky: str
) -> None:
    wait_until_ready(client, shaky)
    routes = [client.endpoints.predict(shaky, Request(rows=[Row(features={"visits": 1e5})])).route for _ in range(6)]
    assert routes == ["fallback"] * 6
    assert client.endpoints.get(shaky).breaker
    spared = client.endpoints.predict(shaky, Request(rows=[Row(features={"visits": 1.0})]))
    assert (spared.route, "is taken out" in spared.reason) == ("fallback", True)
    told = [e for e in client.records.events(service="inference") if e.name == "endpoint.breaker_opened"][-1]
    assert (told.subject, told.data["version"]) == (shaky, f"{world.MODEL}@9")


def test_without_a_previous_version_a_dead_child_is_unavailable_until_it_is_started_again(client: Client) -> None:
    live = client.endpoints.deploy("shop/alone", Deploy(version=9, model=world.MODEL)).live
    request = Request(rows=[Row(features={"visits": 1.0})])
    with none_started():
        os.kill(child(live.digest), signal.SIGKILL)
        with pytest.raises(errors.Unavailable, match="died"):
            client.endpoints.predict("shop/alone", request)
    wait_until_ready(client, "shop/alone")
    assert client.endpoints.predict("shop/alone", request).route == "live"
