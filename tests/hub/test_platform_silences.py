"""A silence ends: what it kept from being told and is still found is told then, and what was never raised is not resolved aloud."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import serving_world as world
from log_world import ENDPOINT, World
from monitor_world import HOUR, predict, rows, told, trained, watch
from sqlalchemy import text

from cellwork import clock
from cellwork.client import Client
from cellwork.wire.monitors import Severity
from cellwork_hub.platform import alert_deeds, alerts

HOOK = [{"webhook": "http://127.0.0.1:9/x"}]


@pytest.fixture
def shop(tmp_path: Path) -> World:
    made = World(tmp_path)
    trained(made)
    return made


@pytest.fixture
def client(shop: World) -> Iterator[Client]:
    with world.running(shop.service, shop.port) as address, world.caller(address, "admin") as client:
        yield client


def find(shop: World, *severities: Severity, silent: bool = False) -> None:
    """Let a monitor find its subject this bad, once for each; none finds nothing."""
    with shop.state.engine.begin() as db:
        for severity in severities:
            finding = alerts.Finding(subject=ENDPOINT, severity=severity, words="bad")
            alerts.keep(db, "shop", "m", [finding], silent=silent)
        if not severities:
            alerts.keep(db, "shop", "m", [], silent=silent)


def test_what_was_found_in_a_silence_is_told_once_when_it_is_still_found_afterwards(
    shop: World, client: Client
) -> None:
    predict(shop, rows(600, seed=8, shift=1.0))
    watch(client, kind="drift", window="1d", tell=HOOK)
    client.monitors.silence("shop/m", clock.now() + HOUR, "known")
    client.monitors.check("shop/m")
    client.monitors.silence("shop/m", clock.now())
    assert told(client) == []
    client.monitors.check("shop/m")
    client.monitors.check("shop/m")
    assert told(client) == [("alert.raised", "critical")]
    [alert] = client.monitors.alerts("shop")
    assert [(deed.event, deed.what) for deed in alert_deeds.of(shop.state, alert.id)] == [("raised", "webhook")]


def test_what_became_critical_in_a_silence_is_told_afterwards(shop: World, client: Client) -> None:
    find(shop, "warning")
    find(shop, "critical", silent=True)
    find(shop, "critical", "critical")
    assert told(client) == [("alert.raised", "warning"), ("alert.raised", "critical")]


def test_what_becomes_critical_again_is_told_again(shop: World, client: Client) -> None:
    find(shop, "critical", "warning", "critical")
    assert told(client) == [("alert.raised", "critical"), ("alert.raised", "critical")]


@pytest.mark.parametrize("by_hand", [True, False])
def test_what_was_never_told_of_is_not_told_to_be_over(shop: World, client: Client, by_hand: bool) -> None:
    find(shop, "critical", silent=True)
    if by_hand:
        [alert] = client.monitors.alerts("shop")
        client.monitors.resolve(alert.id)
    else:
        find(shop)
    assert [alert.state for alert in client.monitors.alerts("shop")] == ["resolved"]
    assert told(client) == []


def test_a_monitor_taken_down_in_its_silence_resolves_only_what_was_told(shop: World, client: Client) -> None:
    predict(shop, rows(600, seed=8, shift=1.0))
    watch(client, kind="drift", window="1d", tell=HOOK)
    client.monitors.silence("shop/m", clock.now() + HOUR, "known")
    client.monitors.check("shop/m")
    client.monitors.apply("shop", [])
    assert [alert.state for alert in client.monitors.alerts("shop")] == ["resolved"]
    assert told(client) == []


def test_an_alert_from_before_it_was_noted_what_is_told_counts_as_told(shop: World, client: Client) -> None:
    find(shop, "warning")
    with shop.state.engine.begin() as db:
        db.execute(text("UPDATE alerts SET told = NULL"))
    find(shop, "warning")
    find(shop, "critical", silent=True)
    find(shop, "critical")
    find(shop)
    assert [name for name, _ in told(client)] == ["alert.raised", "alert.raised", "alert.resolved"]
