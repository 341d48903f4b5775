"""Monitors over a real prediction log: what drifted, fell or stayed away becomes one alert, and resolves when it is over."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
import serving_world as world
from log_world import DAY, ENDPOINT, World
from sqlalchemy import text

from cellwork import clock, errors, notify
from cellwork.client import Client
from cellwork.data import sketches
from cellwork.wire.datasets import Dataset
from cellwork.wire.evaluations import Evaluation, Metric, VersionRef
from cellwork.wire.monitors import Monitor
from cellwork.wire.origin import Origin
from cellwork.wire.outcomes import Outcome
from cellwork_hub import records
from cellwork_hub.platform import alert_deeds, drift, monitors, serving_hours

DATASET = "ds_" + "1" * 26
TRAINED = 2_000
HOUR = timedelta(hours=1)


@pytest.fixture
def shop(tmp_path: Path) -> World:
    made = World(tmp_path)
    trained(made)
    return made


@pytest.fixture
def client(shop: World) -> Iterator[Client]:
    with world.running(shop.service, shop.port) as address, world.caller(address, "admin") as client:
        yield client


def rows(count: int, *, seed: int, shift: float = 0.0) -> list[dict[str, Any]]:
    dice = np.random.default_rng(seed)
    amounts, shops = dice.normal(shift, 1, count), dice.choice(["north", "south"], count)
    return [{"amount": float(a), "shop": str(s)} for a, s in zip(amounts, shops, strict=True)]


def trained(shop: World, version: int = 1) -> None:
    """Let `version` be trained on a dataset of the platform, and evaluated with ROC AUC 0.9."""
    dataset = Dataset(
        id=DATASET, project="shop", name="train", rows=TRAINED, observations="visits", id_column="id", time_column="at",
        inputs=["amount"], features=["shop"], label="churned", labelled=TRAINED, start=DAY, end=DAY, content_sha256="",
        revision=1, batches=[], coverage=[], at=DAY, origin=Origin(),
    )  # fmt: skip
    evaluation = Evaluation(
        id="eval_1", version=VersionRef(name=ENDPOINT, version=version), holdout="may", question_no=1, rows=500,
        metrics={"roc_auc": Metric(value=0.9, low=0.85, high=0.95)}, baseline={}, champion={}, dataset=DATASET, by="ada", at=DAY, origin=Origin(),
    )  # fmt: skip
    folder = shop.state.home.dataset(DATASET)
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows(TRAINED, seed=1)).write_parquet(folder / "data.parquet")
    with shop.state.engine.begin() as db:
        values = {"id": DATASET, "record": msgspec.json.encode(dataset).decode()}
        db.execute(
            text(
                "INSERT INTO datasets (id, project, name, record) VALUES (:id, 'shop', 'train', :record) ON CONFLICT DO NOTHING"
            ),
            values,
        )
        records.edge(db, f"{ENDPOINT}@{version}", "trained_on", DATASET)
        values = {
            "n": ENDPOINT,
            "v": version,
            "record": msgspec.json.encode(evaluation).decode(),
            "id": f"eval_{version}",
        }
        db.execute(
            text("INSERT INTO evaluations (id, name, version, digest, holdout, champion, record) VALUES (:id, :n, :v, '', 'may', '', :record)"),
            values,
        )  # fmt: skip


def predict(shop: World, features: list[dict[str, Any]], *, hour: int = 0, **more: Any) -> None:
    at = DAY + hour * HOUR
    shop.log.write([shop.prediction(f"{hour}-{k}", at=at, features=row, **more) for k, row in enumerate(features)])


def watch(client: Client, **fields: Any) -> None:
    client.monitors.apply("shop", [msgspec.convert({"name": "m", "endpoint": "churn", **fields}, Monitor)])


def told(client: Client) -> list[tuple[str, str]]:
    return [(e.name, e.data["severity"]) for e in client.records.events() if e.name.startswith("alert.")]


def test_predictions_like_the_training_data_do_not_drift_and_others_do(shop: World, client: Client) -> None:
    predict(shop, rows(600, seed=2))
    found = client.monitors.drift(ENDPOINT)
    assert (found.subject, found.reference, found.rows) == (f"{ENDPOINT}@1", DATASET, 600)
    assert {c.column: c.verdict for c in found.columns} == {"amount": "stable", "shop": "stable"}
    predict(shop, rows(600, seed=3, shift=1.0), hour=24)
    by_day = client.monitors.drift_by_day(ENDPOINT)
    moved = [[c.column for c in day.columns if c.verdict == "drift"] for day in by_day]
    assert moved == [[], ["amount"]]
    [amount] = [c for c in by_day[1].columns if c.column == "amount"]
    assert amount.reasons[0].startswith("distributed otherwise, PSI")
    first = client.monitors.drift(ENDPOINT, end=DAY + 12 * HOUR)
    assert (first.rows, {c.verdict for c in first.columns}) == (600, {"stable"})


def weekdays(hours: int, *, seed: int, shift: float = 0.0) -> pl.DataFrame:
    """Rows of so many hours from `DAY` on, 10 each, whose text is their weekday."""
    every = pl.DataFrame(rows(10 * hours, seed=seed, shift=shift)).with_columns(
        at=pl.Series([DAY + k // 10 * HOUR for k in range(10 * hours)])
    )
    return every.with_columns(shop=pl.col("at").dt.weekday().cast(pl.String))


def test_a_single_day_is_compared_with_the_same_weekday_of_the_training_data(shop: World, client: Client) -> None:
    """Its weekday is constant, so beside all weekdays it would always drift; what really moved that day still does."""
    weekdays(24 * 70, seed=1).write_parquet(shop.state.home.dataset(DATASET) / "data.parquet")
    later = weekdays(24 * 70 + 48, seed=2).tail(480).drop("at").to_dicts()
    for hour in range(48):
        day = later[10 * hour : 10 * hour + 10]
        moved = [{**row, "amount": row["amount"] + 2} for row in day] if hour >= 24 else day
        predict(shop, moved, hour=24 * 70 + hour)
    first, start = DAY + 24 * 70 * HOUR, DAY + 24 * 71 * HOUR
    calm = client.monitors.drift(ENDPOINT, start=first, end=first + 24 * HOUR)
    assert ({c.verdict for c in calm.columns}, calm.season) == ({"stable"}, "its hours of Wed, Thu")
    plain = client.monitors.drift(ENDPOINT, start=first, end=first + 24 * HOUR, beside="training")
    assert ([c.column for c in plain.columns if c.verdict == "drift"], plain.season) == (["shop"], "")
    loud = client.monitors.drift(ENDPOINT, start=start, end=start + 24 * HOUR)
    assert [c.column for c in loud.columns if c.verdict == "drift"] == ["amount"]


def test_a_window_can_be_compared_with_the_one_before_and_then_its_scores_too(shop: World, client: Client) -> None:
    for week, score in ((0, 0.2), (1, 0.2), (2, 0.8)):
        predict(shop, rows(300, seed=week), hour=24 * 7 * week, score=score)
    second = client.monitors.drift(ENDPOINT, start=DAY + 7 * 24 * HOUR, end=DAY + 14 * 24 * HOUR, beside="before")
    assert (second.reference, second.reference_rows) == ("2024-05-01 to 2024-05-08", 300)
    assert {c.verdict for c in second.columns} == {"stable"}
    third = client.monitors.drift(ENDPOINT, beside="before")
    assert [c.column for c in third.columns if c.verdict == "drift"] == ["_score"]
    with pytest.raises(errors.NotFound, match="wait for a second window"):
        client.monitors.drift(ENDPOINT, end=DAY + 24 * HOUR, beside="before")


def test_a_version_with_too_few_predictions_leaves_the_word_to_the_one_before(shop: World, client: Client) -> None:
    trained(shop, version=2)
    predict(shop, rows(600, seed=2))
    predict(shop, rows(3, seed=3), hour=1, version=2)
    assert client.monitors.drift(ENDPOINT).subject == f"{ENDPOINT}@1"
    assert client.monitors.drift(ENDPOINT, version=2).rows == 3
    assert [day.subject for day in client.monitors.drift_by_day(ENDPOINT)] == [f"{ENDPOINT}@1"]
    predict(shop, rows(700, seed=4), hour=2, version=2)
    assert client.monitors.drift(ENDPOINT).subject == f"{ENDPOINT}@2"
    assert [day.subject for day in client.monitors.drift_by_day(ENDPOINT)] == [f"{ENDPOINT}@2"]


def test_hours_are_what_one_sketch_of_their_rows_would_be_in_whatever_pages_they_came(
    shop: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_hours, "PAGE", 7)
    every = rows(60, seed=4)
    with world.running(shop.service, shop.port):
        for start in range(0, 60, 20):
            predict(shop, every[start : start + 20], hour=start // 40)
            serving_hours.follow(shop.state)
        assert serving_hours.follow(shop.state) == 0
    hours = serving_hours.between(shop.state, ENDPOINT, ENDPOINT, 1, DAY, DAY + 9 * HOUR)
    assert [sketch.rows for _, sketch in hours] == [40, 20]
    together, whole = sketches.merge([sketch for _, sketch in hours]), sketches.of(pl.DataFrame(every))
    for name in ("amount", "shop"):
        assert (together[name].values, together[name].distinct.count) == (60, whole[name].distinct.count)
    assert together["shop"].counts == whole["shop"].counts
    assert np.allclose(together["amount"].ranks.values, whole["amount"].ranks.values)  # type: ignore[union-attr]


def test_times_and_fallbacks_of_each_hour_come_from_its_sketch(shop: World, client: Client) -> None:
    times = [1000 * k for k in range(1, 101)]
    shop.log.write([shop.prediction(f"o{k}", features={}, latency_us=us) for k, us in enumerate(times)])
    later = [shop.prediction(f"p{k}", features={}, at=DAY + HOUR, route="fallback", latency_us=7000) for k in range(3)]
    shop.log.write([*later, shop.prediction("q", features={}, at=DAY + HOUR, latency_us=9000)])
    first, second = client.monitors.service(ENDPOINT).hours
    assert (first.start, first.version, first.predictions, first.fallbacks) == (DAY, 1, 100, 0)
    assert (first.least_ms, first.mean_ms, first.greatest_ms) == (1.0, 50.5, 100.0)
    exact = np.quantile(np.array(times) / 1000, [0.5, 0.95, 0.99])
    assert [first.p50_ms, first.p95_ms, first.p99_ms] == pytest.approx(exact, abs=1.0)
    assert (second.predictions, second.fallbacks, second.least_ms) == (4, 3, 7.0)
    assert [hour.start for hour in client.monitors.service(ENDPOINT, days=1).hours] == [DAY, DAY + HOUR]
    with pytest.raises(errors.NotFound, match="has no prediction yet"):
        client.monitors.service("shop/other")


def test_only_days_with_new_predictions_are_compared_anew(
    shop: World, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(3):
        predict(shop, rows(200, seed=day), hour=24 * day)
    first = client.monitors.drift_by_day(ENDPOINT)
    compared, of_day = [], drift._of_day
    monkeypatch.setattr(drift, "_of_day", lambda *args: compared.append(args[-1]) or of_day(*args))
    assert client.monitors.drift_by_day(ENDPOINT) == first
    predict(shop, rows(300, seed=9, shift=2.0), hour=24 * 2 + 1)
    later = client.monitors.drift_by_day(ENDPOINT)
    assert (len(compared), later[:2]) == (1, first[:2])
    assert (later[2].rows, later[2].columns[0].verdict) == (500, "drift")


def test_a_page_whose_cursor_was_not_moved_counts_once(shop: World, monkeypatch: pytest.MonkeyPatch) -> None:
    predict(shop, rows(30, seed=5))

    def broken(*_: object) -> None:
        raise RuntimeError("killed here")

    with world.running(shop.service, shop.port):
        with monkeypatch.context() as patched:
            patched.setattr(serving_hours, "_add", broken)
            with pytest.raises(RuntimeError, match="killed here"):
                serving_hours.follow(shop.state)
        assert serving_hours.follow(shop.state) == 30
    [(_, sketch)] = serving_hours.between(shop.state, ENDPOINT, ENDPOINT, 1, DAY, DAY + HOUR)
    assert sketch.rows == 30


def test_shadow_answers_are_left_out_and_mixed_kinds_count_as_missing(shop: World, client: Client) -> None:
    predict(shop, rows(200, seed=6))
    predict(shop, rows(50, seed=7, shift=9.0), hour=1, route="shadow")
    predict(shop, [{"amount": "many", "shop": "north"}] * 50, hour=2)
    found = client.monitors.drift(ENDPOINT)
    [amount] = [c for c in found.columns if c.column == "amount"]
    assert found.rows == 250
    assert amount.missing_window == pytest.approx(0.2)
    assert amount.reasons == ["missing in 20.0%, was 0.0%"]


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


def truths(client: Client, scores: Mapping[str, float], *, right: float) -> None:
    dice = np.random.default_rng(0)
    known = [
        Outcome(
            value=float((score > 0.5) == (dice.random() < right)), observed_at=DAY, endpoint=ENDPOINT, observation=name
        )
        for name, score in scores.items()
    ]
    client.outcomes.send("shop", known)


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


def test_what_stays_away_is_an_alert_by_the_clock(shop: World, client: Client) -> None:
    watch(client, kind="predictions", window="10s", severity="critical")
    unknown = client.monitors.check("shop/m")
    assert (unknown.state, "never came" in unknown.words) == ("unknown", True)
    prediction = shop.prediction("now", features={})
    shop.log.write([msgspec.structs.replace(prediction, logged_at=clock.now())])
    assert client.monitors.check("shop/m").state == "fine"
    watch(client, kind="predictions", window="1s", severity="critical")
    time.sleep(1.1)
    found = client.monitors.check("shop/m")
    assert (found.state, found.words.startswith("the newest prediction of shop/churn came")) == ("alert", True)


def test_the_thread_lets_monitors_look_when_they_are_due(shop: World, client: Client) -> None:
    predict(shop, rows(600, seed=8, shift=1.0))
    watcher = monitors.Watch(shop.state)
    watcher.start()
    try:
        watch(client, kind="drift", every="1h")
        until = time.monotonic() + 20
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


def due(shop: World) -> list[str]:
    with shop.state.engine.connect() as db:
        query = text("SELECT name FROM monitors WHERE next <= :now")
        return list(db.execute(query, {"now": records.micros(clock.now())}).scalars())


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


class Hook(BaseHTTPRequestHandler):
    """Takes webhooks; the first one gets an error."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.seen.append((body, self.headers["x-cellwork-signature"]))  # type: ignore[attr-defined]
        self.send_response(500 if len(self.server.seen) == 1 else 204)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Hook)
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(20)


def test_a_webhook_is_told_of_an_alert_signed_and_until_it_listens(
    shop: World, client: Client, hook: HTTPServer
) -> None:
    predict(shop, rows(600, seed=8, shift=1.0))
    url = f"http://127.0.0.1:{hook.server_port}/told?key=hidden"
    watch(client, kind="drift", window="1d", tell=[{"webhook": url}, {"webhook": url, "on": ["resolved"]}])
    client.monitors.check("shop/m")
    client.monitors.check("shop/m")
    done = []
    for _ in range(3):
        done.append(alert_deeds.do_waiting(shop.state))
        with shop.state.engine.begin() as db:
            db.execute(text("UPDATE alert_deeds SET next = 0"))
    assert done == [0, 1, 0], "once refused, then taken, then over"
    (first, _), (body, signature) = hook.seen  # type: ignore[attr-defined]
    assert first == body, "the same notice each time"
    said = msgspec.json.decode(body)
    assert (said["event"], said["subject"], said["severity"]) == ("alert.raised", ENDPOINT, "critical")
    assert said["url"].endswith("overview.ipynb?endpoint=shop/churn")
    key = notify.signing_key(shop.state.home).encode()
    assert signature == "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest()
    [deed] = client.monitors.deeds(said["alert"])
    assert (deed.what, deed.tries, deed.words, deed.to) == ("webhook", 2, "arrived", f"127.0.0.1:{hook.server_port}")
    client.monitors.apply("shop", [])
    assert [d.event for d in client.monitors.deeds(said["alert"])] == ["raised", "resolved", "resolved"]


def test_without_a_mail_server_a_deed_says_what_to_set(shop: World, client: Client) -> None:
    predict(shop, rows(600, seed=8, shift=1.0))
    watch(client, kind="drift", tell=[{"mail": ["ada@example.org"], "least": "critical"}])
    client.monitors.check("shop/m")
    assert alert_deeds.do_waiting(shop.state) == 0
    [alert] = client.monitors.alerts("shop")
    [deed] = client.monitors.deeds(alert.id)
    assert (deed.done, deed.to, "CELLWORK_MAIL_SERVER" in deed.words) == (None, "ada@example.org", True)


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


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kind": "drift", "endpoint": ""}, "needs its endpoint"),
        ({"kind": "batches"}, "needs its dataset"),
        ({"kind": "quality"}, "needs a bound"),
        ({"kind": "drift", "every": "1s"}, "too often"),
        ({"kind": "predictions", "then": "rollback"}, "does not go with predictions"),
        ({"kind": "drift", "tell": [{"webhook": "file:///etc/passwd"}]}, "is not one address"),
        ({"kind": "drift", "window": "week"}, "not a positive number with a unit"),
    ],
)
def test_a_monitor_that_could_not_work_is_refused(client: Client, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(errors.BadInput, match=says):
        watch(client, **fields)


def test_an_endpoint_without_predictions_or_dataset_says_so(shop: World, client: Client) -> None:
    with pytest.raises(errors.NotFound, match="has no prediction yet"):
        client.monitors.drift(ENDPOINT)
    predict(shop, rows(10, seed=1), version=7)
    with pytest.raises(errors.NotFound, match="was not evaluated here"):
        client.monitors.drift(ENDPOINT)
    with pytest.raises(errors.NotFound, match="those that did: 7"):
        client.monitors.drift(ENDPOINT, version=3)
