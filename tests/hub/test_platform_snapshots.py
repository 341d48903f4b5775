"""Parts of dashboards: computed once for all who look, as they last were when they can't be computed, and no page waits for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import serving_world as world
from log_world import DAY, World

from cellwork import errors, scopes
from cellwork.client import Client
from cellwork.wire.monitors import Alert
from cellwork.wire.outcomes import Outcome, Quality
from cellwork.wire.records import Principal
from cellwork.wire.snapshots import Snapshot
from cellwork_hub.edge import Service
from cellwork_hub.platform import alerts, snapshots
from cellwork_hub.platform.snapshots import PARTS, Snapshots

KEY = ("shop", "quality", "churn")


@pytest.fixture
def shop(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.predict("a", 0.9)
    return made


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is computed is waited for, however busy the machine is."""
    monkeypatch.setattr(snapshots, "PATIENCE_SECONDS", 60.0)


@pytest.fixture
def client(shop: World) -> Iterator[Client]:
    with world.running(shop.service, shop.port) as address, world.caller(address, "admin") as client:
        yield client


def quality(client: Client) -> tuple[Snapshot, Quality | None]:
    [found] = client.snapshots.get("shop", ["quality"], "churn")
    return found, msgspec.json.decode(found.value, type=Quality | None)  # type: ignore[arg-type]


class Asked:
    """The real question of a part, counted; it fails or hangs when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, part: str = "quality") -> None:
        self.times, self.fails, self.may_go = 0, False, threading.Event()
        self.may_go.set()
        self.real = PARTS[part].ask
        monkeypatch.setitem(PARTS, part, replace(PARTS[part], ask=self))

    def __call__(self, *arguments: Any) -> Any:
        self.times += 1
        self.may_go.wait(60)
        if self.fails:
            raise ZeroDivisionError("the secret of the traceback")
        return self.real(*arguments)


def test_many_who_look_at_once_cause_one_computation(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    monkeypatch.setattr(snapshots, "REFRESH_SECONDS", 600)
    asked.may_go.clear()
    with ThreadPoolExecutor(12) as viewers:
        looking = [viewers.submit(quality, client) for _ in range(12)]
        asked.may_go.set()
        found = [each.result()[1] for each in looking]
    assert asked.times == 1
    assert {each.predictions for each in found if each} == {1}


def test_what_is_old_is_computed_anew(shop: World, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "REFRESH_SECONDS", 0)
    before, _ = quality(client)
    client.outcomes.send("shop", [Outcome(value=1, observed_at=DAY, endpoint="shop/churn", observation="a")])
    after, found = quality(client)
    assert found
    assert found.outcomes == 1
    assert before.as_of
    assert after.as_of
    assert before.as_of < after.as_of


def test_what_can_not_be_computed_is_shown_as_it_last_was(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "REFRESH_SECONDS", 0)
    asked = Asked(monkeypatch)
    good, _ = quality(client)
    asked.fails = True
    shown, found = quality(client)
    assert (shown.as_of, found and found.predictions) == (good.as_of, 1)
    assert shown.error == "part 'quality' could not be computed (ZeroDivisionError)"
    assert "the secret of the traceback" in shown.traceback
    asked.fails = False
    assert quality(client)[0].error == ""


def test_the_traceback_is_for_admins_where_there_are_others(shop: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    asked.fails = True
    [route] = snapshots.routes(shop.state)
    for role, seen in (("viewer", False), ("admin", True)):
        groups = frozenset({"project:shop", f"{scopes.ROLE_GROUP}{role}"})
        who = Principal(kind="user", name="eve", scopes=scopes.READ, groups=groups)
        call = replace(
            world.call(),
            principal=who,
            path={"project": "shop"},
            query={"parts": "quality", "of": "churn"},
            bounded=True,
        )
        [shown] = route.handler(call)  # type: ignore[misc]
        assert shown.error
        assert ("secret" in shown.traceback, shown.owner) == (seen, seen)


def test_what_was_last_good_is_there_after_a_restart(
    shop: World, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, _ = quality(client)
    asked = Asked(monkeypatch)
    asked.fails = True
    [held] = Snapshots(shop.state).get([KEY])
    assert held.error
    assert msgspec.json.decode(held.value, type=Quality).predictions == 1
    assert held.at
    assert good.as_of


def test_a_part_that_hangs_holds_up_no_page(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "REFRESH_SECONDS", 0)
    asked = Asked(monkeypatch)
    good, _ = quality(client)
    monkeypatch.setattr(snapshots, "PATIENCE_SECONDS", 0.2)
    asked.may_go.clear()
    try:
        shown = [quality(client)[0] for _ in range(3)]
        assert [each.as_of for each in shown] == [good.as_of] * 3
        assert asked.times == 2  # the good one, and the one that hangs
    finally:
        asked.may_go.set()


def test_an_endpoint_that_is_not_there_says_so_and_keeps_nothing(client: Client) -> None:
    [found] = client.snapshots.get("shop", ["window"], "nobody")
    assert found.as_of is None
    assert "shop/nobody" in found.error


def test_a_part_that_is_not_known_names_the_near_one(client: Client) -> None:
    with pytest.raises(errors.BadInput, match="quality"):
        client.snapshots.get("shop", ["qualty"], "churn")


def test_a_part_needs_the_scope_of_its_own_route(shop: World) -> None:
    [route] = snapshots.routes(shop.state)
    who = Principal(kind="key", name="k", scopes=frozenset({"monitors:read"}))
    call = replace(world.call(), principal=who, path={"project": "shop"}, query={"parts": "jobs"})
    with pytest.raises(errors.Refused, match="jobs:read"):
        route.handler(call)


def test_the_service_answers_while_its_own_threads_are_busy_with_parts(shop: World, client: Client) -> None:
    """Parts are asked of the services over HTTP, of this one too; nothing waits for itself."""
    with ThreadPoolExecutor(30) as viewers:
        parts = [["quality"], ["alerts"], ["monitors"], ["predictions"]]
        looks = [viewers.submit(client.snapshots.get, "shop", parts[k % 4], "churn") for k in range(60)]
        assert all(look.result(timeout=60)[0].as_of for look in looks)
    assert isinstance(shop.service(), Service)


def test_an_open_alert_stays_in_view_however_many_newer_ones_came_and_went(shop: World, client: Client) -> None:
    bad = alerts.Finding(subject="shop/churn", severity="critical", words="bad")
    with shop.state.engine.begin() as db:
        alerts.keep(db, "shop", "drift", [bad], silent=True)
        for _ in range(60):
            alerts.keep(db, "shop", "flapping", [msgspec.structs.replace(bad, subject="shop/other")], silent=True)
            alerts.keep(db, "shop", "flapping", [], silent=True)
    [found] = client.snapshots.get("shop", ["alerts"])
    first, *others = msgspec.json.decode(found.value, type=list[Alert])
    assert (first.subject, first.state) == ("shop/churn", "open")
    assert [alert.state for alert in others] == ["resolved"] * 50
