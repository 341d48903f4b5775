"""Monitors over a real prediction log: what drifted, fell or stayed away becomes one alert, and resolves when it is over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import serving_world as world
from log_world import DAY, ENDPOINT, World
from monitor_world import HOUR, do_waiting, due, predict, rows, told, trained, truths, watch
from ports import free_port
from sqlalchemy import text

from cellwork import clock, errors
from cellwork.client import Client
from cellwork.wire.evaluations import Metric
from cellwork.wire.monitors import Monitor
from cellwork_hub.platform import alert_deeds, judgements, monitors


@pytest.fixture
def shop(tmp_path: Path) -> World:
    made = World(tmp_path)
    trained(made)
    return made


@pytest.fixture
def client(shop: World) -> Iterator[Client]:
    with world.running(shop.service, shop.port) as address, world.caller(address, "admin") as client:
        yield client


def test_drift_is_one_alert_that_is_counted_and_resolves_itself(shop: World, client: Client) -> None:
    predict(shop, rows(600, seed=8, shift=1.0))
    watch(client, kind="drift", window="1d")
    assert client.monitors.check("shop/m").state == "alert"
    assert client.monitors.check("shop/m").state == "alert"
    [alert] = client.monitors.alerts("shop")
    assert (alert.state, alert.times, alert.severity, alert.subject) == ("open", 2, "critical", ENDPOINT)
    assert alert.words.startswith(f"{ENDPOINT}@1: amount distributed otherwise, PSI")
    assert alert.evidence["columns"][0]["column"] == "amount"
    predict(shop, rows(600, seed=9), hour=30)
    fine = client.monitors.check("shop/m")
    assert (fine.state, "0 of 2 columns drifted" in fine.words) == ("fine", True)
    [alert] = client.monitors.alerts("shop")
    assert (alert.state, alert.by) == ("resolved", "monitor")
    assert told(client) == [("alert.raised", "critical"), ("alert.resolved", "critical")]
    assert [e.name for e in client.records.events()].count("drift.found") == 1


def test_a_silenced_monitor_keeps_its_alerts_and_tells_nobody(shop: World, client: Client) -> None:
    predict(shop, rows(600, seed=8, shift=1.0))
    watch(client, kind="drift")
    client.monitors.silence("shop/m", clock.now() + HOUR, "known")
    assert client.monitors.check("shop/m").state == "alert"
    assert [a.state for a in client.monitors.alerts("shop", "open")] == ["open"]
    assert told(client) == []
    assert client.monitors.silence("shop/m", clock.now()).silenced_until is None


@pytest.mark.parametrize(("right", "state"), [(0.95, "fine"), (0.6, "alert")])
def test_quality_that_is_surely_below_the_evaluation_is_an_alert(
    shop: World, client: Client, right: float, state: str
) -> None:
    scores = {f"o{k}": k / 400 for k in range(400)}
    shop.log.write([shop.prediction(name, score) for name, score in scores.items()])
    watch(client, kind="quality", drop=0.1)
    assert client.monitors.check("shop/m").state == "unknown"
    truths(client, scores, right=right)
    found = client.monitors.check("shop/m")
    assert found.state == state, found.words
    assert "of 400 outcomes" in found.words


def test_an_evaluation_with_rows_of_training_in_it_is_no_measure_for_quality(shop: World, client: Client) -> None:
    """Its model has seen some of those rows: what it says of them it does not say of new ones."""
    scores = {f"o{k}": k / 400 for k in range(400)}
    shop.log.write([shop.prediction(name, score) for name, score in scores.items()])
    truths(client, scores, right=0.9)
    [evaluation] = judgements.select(shop.state, "name = :n", 9, n=ENDPOINT)
    seen = Metric(value=1.0, low=1.0, high=1.0)
    report = msgspec.structs.replace(evaluation, id="eval_report", also=evaluation.dataset, metrics={"roc_auc": seen})
    with shop.state.engine.begin() as db:
        db.execute(
            text("INSERT INTO evaluations (id, name, version, digest, holdout, champion, record) VALUES (:id, :n, 1, '', :h, 0, :r)"),
            {"id": report.id, "n": ENDPOINT, "h": judgements.asked_of(report), "r": msgspec.json.encode(report).decode()},
        )  # fmt: skip
    watch(client, kind="quality", drop=0.05)
    found = client.monitors.check("shop/m")
    assert found.state == "fine", found.words


def test_quality_is_that_of_the_model_that_answers_now_not_of_another_ones_version_with_its_number(
    shop: World, client: Client
) -> None:
    before, now = {f"o{k}": k / 400 for k in range(400)}, {f"n{k}": 1 - k / 400 for k in range(400)}
    shop.log.write([shop.prediction(name, score) for name, score in before.items()])
    at = DAY + HOUR
    shop.log.write([shop.prediction(name, score, model="shop/churn-trees", at=at) for name, score in now.items()])
    truths(client, before, right=0.95)
    truths(client, {name: 1 - score for name, score in now.items()}, right=0.95)
    watch(client, kind="quality", least=0.7)
    found = client.monitors.check("shop/m")
    assert found.state == "alert", found.words
    assert "of 400 outcomes" in found.words


def test_what_stays_away_is_an_alert_by_the_clock(shop: World, client: Client) -> None:
    watch(client, kind="predictions", window="1h", severity="critical")
    unknown = client.monitors.check("shop/m")
    assert (unknown.state, "never came" in unknown.words) == ("unknown", True)
    prediction = shop.prediction("now", features={})
    shop.log.write([msgspec.structs.replace(prediction, logged_at=clock.now() - timedelta(minutes=1))])
    assert client.monitors.check("shop/m").state == "fine"
    watch(client, kind="predictions", window="1s", severity="critical")
    found = client.monitors.check("shop/m")
    assert (found.state, found.words.startswith("the newest prediction of shop/churn came")) == ("alert", True)


def test_the_thread_lets_monitors_look_when_they_are_due(shop: World, client: Client) -> None:
    predict(shop, rows(600, seed=8, shift=1.0))
    watcher = monitors.Watch(shop.state)
    watcher.start()
    try:
        watch(client, kind="drift", every="1h")
        until = time.monotonic() + 60
        while client.monitors.list("shop")[0].state == "new" and time.monotonic() < until:
            time.sleep(0.1)
    finally:
        watcher.stop()
    assert client.monitors.list("shop")[0].state == "alert"


def test_outcomes_that_arrive_let_the_monitors_of_their_endpoint_look_at_once(shop: World, client: Client) -> None:
    shop.log.write([shop.prediction(f"o{k}", k / 400, features={}) for k in range(400)])
    fine = [
        msgspec.convert({"name": n, "endpoint": "churn", "kind": "quality", "drop": 0.1, "every": "1d"}, Monitor)
        for n in "ab"
    ]
    client.monitors.apply("shop", [fine[0], msgspec.structs.replace(fine[1], endpoint="other")])
    for name in "ab":
        client.monitors.check(f"shop/{name}")
    with shop.state.engine.begin() as db:  # they looked some time ago
        db.execute(text("UPDATE monitors SET checked = checked - 60000000"))
    seen = monitors.hurry(shop.state, 0)
    assert due(shop) == []
    truths(client, {f"o{k}": k / 400 for k in range(400)}, right=0.6)
    assert monitors.hurry(shop.state, seen) > seen
    assert due(shop) == ["a"]


def test_a_new_version_that_is_no_better_is_the_same_alert(shop: World, client: Client) -> None:
    """So a retraining that the alert starts does not start the next one by its own result."""
    trained(shop, version=2)
    predict(shop, rows(600, seed=8, shift=1.0))
    watch(client, kind="drift", window="1d")
    client.monitors.check("shop/m")
    predict(shop, rows(600, seed=9, shift=1.0), hour=3, version=2)
    client.monitors.check("shop/m")
    [alert] = client.monitors.alerts("shop")
    assert (alert.times, alert.evidence["version"]) == (2, f"{ENDPOINT}@2")
    assert len(told(client)) == 1


def test_taking_a_monitor_down_resolves_its_alerts_and_an_unchanged_one_keeps_what_it_found(
    shop: World, client: Client
) -> None:
    predict(shop, rows(600, seed=8, shift=1.0))
    watch(client, kind="drift")
    client.monitors.check("shop/m")
    watch(client, kind="drift")
    assert client.monitors.list("shop")[0].state == "alert"
    client.monitors.apply("shop", [])
    assert [a.state for a in client.monitors.alerts("shop")] == ["resolved"]
    assert client.monitors.list("shop") == []


def test_a_monitor_that_meets_a_fault_keeps_no_other_from_looking(shop: World, client: Client) -> None:
    """A prediction of the calendar's last hour, as the log took it once: its window ends where no time is."""
    shop.log.write([shop.prediction("odd", at=datetime(9999, 12, 31, 23, 30, tzinfo=UTC), features={"amount": 1.0})])
    wanted = [{"name": "a", "kind": "drift", "endpoint": "churn"}, {"name": "b", "kind": "disk"}]
    client.monitors.apply("shop", [msgspec.convert(each, Monitor) for each in wanted])
    watcher = monitors.Watch(shop.state)
    watcher.start()
    try:
        until = time.monotonic() + 60
        while "new" in {m.state for m in client.monitors.list("shop")} and time.monotonic() < until:
            time.sleep(0.1)
    finally:
        watcher.stop()
    odd, disk = client.monitors.list("shop")
    assert (odd.state, "could not look" in odd.words) == ("unknown", True)
    assert disk.state in ("fine", "alert")
    assert due(shop) == []


def test_a_feature_with_a_name_of_the_statistics_stops_nobodys(shop: World, client: Client) -> None:
    predict(shop, [{**row, "_score": 1.0, "_route": "x"} for row in rows(600, seed=8)])
    watch(client, kind="drift", window="1d")
    assert client.monitors.check("shop/m").state == "fine"


@pytest.mark.parametrize("kind", ["drift", "quality"])
def test_a_prediction_for_a_time_to_come_does_not_silence_a_monitor(shop: World, client: Client, kind: str) -> None:
    shop.log.write(
        [shop.prediction(f"o{k}", k / 400, features=row) for k, row in enumerate(rows(400, seed=8, shift=1.0))]
    )
    shop.log.write([shop.prediction("future", at=datetime(2099, 1, 1, tzinfo=UTC), features={"amount": 1.0})])
    truths(client, {"future": 0.1, **{f"o{k}": k / 400 for k in range(400)}}, right=0.6)
    watch(client, kind=kind, window="3650d", **({"drop": 0.1} if kind == "quality" else {}))
    assert client.monitors.check("shop/m").state == "alert"


def test_a_deed_that_can_not_be_done_counts_its_try_and_keeps_no_other_from_being_done(
    shop: World, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address that was taken before it was looked at closely."""
    monkeypatch.setattr("cellwork.notify.check_address", lambda url: None)
    tell = [{"webhook": "http://[x"}, {"webhook": f"http://127.0.0.1:{free_port()}/"}]
    watch(client, kind="disk", most=1e-9, tell=tell)
    client.monitors.check("shop/m")
    do_waiting(shop.state)
    [alert] = client.monitors.alerts("shop")
    assert [(deed.to, deed.tries) for deed in alert_deeds.of(shop.state, alert.id)] == [
        ("[x", 1),
        (tell[1]["webhook"][7:-1], 1),
    ]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kind": "drift", "endpoint": ""}, "needs its endpoint"),
        ({"kind": "batches"}, "needs its dataset"),
        ({"kind": "quality"}, "needs a bound"),
        ({"kind": "drift", "every": "1s"}, "too often"),
        ({"kind": "predictions", "then": "rollback"}, "does not go with predictions"),
        ({"kind": "quality", "drop": 0.1, "then": "rollback"}, "write severity: critical"),
        ({"kind": "drift", "tell": [{"webhook": "file:///etc/passwd"}]}, "is not an address"),
        ({"kind": "drift", "tell": [{"webhook": "http://[x"}]}, "is not an address"),
        ({"kind": "drift", "tell": [{"webhook": "http://host:port/x"}]}, "is not an address"),
        ({"kind": "drift", "tell": [{"webhook": "http://host", "mail": ["a@b"]}]}, "is not one address"),
        ({"kind": "drift", "tell": [{"mail": ["a\nBcc: b@c"]}]}, "mail .*is not an address"),
        ({"kind": "drift", "every": "999999999d"}, "over a thousand years"),
        ({"kind": "drift", "window": "99999999999999999999d"}, "over a thousand years"),
        ({"kind": "drift", "rules": {"least_rows": 0}}, "least_rows"),
        ({"kind": "drift", "window": "week"}, "not a positive number with a unit"),
    ],
)
def test_a_monitor_that_could_not_work_is_refused(client: Client, fields: dict[str, Any], says: str) -> None:
    with pytest.raises((errors.BadInput, msgspec.ValidationError), match=says):
        watch(client, **fields)
