"""What predictions are worth and what people say of them: business metrics by a function of one's own, feedback, and what came true beside what was learned."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
import serving_world as world
from log_world import DAY, ENDPOINT, World
from monitor_world import DATASET, TRAINED, predict, rows, trained, watch
from sqlalchemy import text

from cellwork import errors
from cellwork.client import Client
from cellwork.monitoring import business
from cellwork.wire.business import FeedbackRequest, MetricPoint, MetricRequest
from cellwork.wire.datasets import Dataset
from cellwork.wire.outcomes import Outcome
from cellwork_hub.platform import drift


@pytest.fixture
def shop(tmp_path: Path) -> World:
    made = World(tmp_path)
    trained(made)
    return made


@pytest.fixture
def client(shop: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    with world.running(shop.service, shop.port) as address, world.caller(address, "admin") as client:
        monkeypatch.setenv("CELLWORK_URL", address)
        monkeypatch.setenv("CELLWORK_TOKEN", "admin")
        yield client


def truths(client: Client, days: dict[str, float]) -> None:
    """Send the outcome 1 or 0 of observations."""
    client.outcomes.send(
        "shop", [Outcome(value=v, observed_at=DAY, endpoint=ENDPOINT, observation=o) for o, v in days.items()]
    )


def test_a_word_with_the_truth_is_an_outcome_and_one_without_counts_for_nothing(shop: World, client: Client) -> None:
    first, second = shop.predict("a", 0.9), shop.predict("b", 0.2)
    said = client.outcomes.say(FeedbackRequest(prediction=first, value=0.0, comment="never came"))
    client.outcomes.say(FeedbackRequest(prediction=second))
    assert (said.endpoint, said.observation, said.score, said.wrong) == (ENDPOINT, "a", 0.9, True)
    assert client.outcomes.quality(ENDPOINT).outcomes == 1
    [outcome] = client.outcomes.list("", prediction=first)
    assert (outcome.value, outcome.source) == (0.0, "feedback")
    assert [each.prediction for each in client.outcomes.feedback(ENDPOINT)] == [second, first]


def test_what_one_person_says_last_of_a_prediction_holds(shop: World, client: Client) -> None:
    prediction = shop.predict("a", 0.9)
    client.outcomes.say(FeedbackRequest(prediction=prediction))
    client.outcomes.say(FeedbackRequest(prediction=prediction, wrong=False, comment="I was mistaken"))
    [kept] = client.outcomes.feedback(ENDPOINT)
    assert (kept.wrong, kept.comment) == (False, "I was mistaken")


def test_a_word_about_no_prediction_is_refused(client: Client) -> None:
    with pytest.raises(errors.NotFound):
        client.outcomes.say(FeedbackRequest(prediction="pred_" + "0" * 26))


def test_a_function_of_ones_own_gives_a_number_a_day_and_a_monitor_looks_at_the_newest(
    shop: World, client: Client
) -> None:
    for k in range(6):
        shop.predict(f"o{k}", 0.9 if k % 2 else 0.1, at=DAY + timedelta(days=k // 3))
    truths(client, {f"o{k}": float(k % 2) for k in range(6)})

    def saved(rows: pl.DataFrame) -> float:
        """What the warnings saved."""
        return 40.0 * rows.filter(pl.col("score") > 0.5)["outcome"].sum()

    found = business.measure(ENDPOINT, saved, unit="EUR")
    assert [(p.day, p.value, p.rows) for p in found.points] == [("2024-05-01", 40.0, 3), ("2024-05-02", 80.0, 3)]
    assert (found.name, found.unit, found.words) == ("saved", "EUR", "What the warnings saved.")
    watch(client, kind="metric", metric="saved", least=100)
    assert client.monitors.check("shop/m").state == "alert"
    [alert] = client.monitors.alerts("shop")
    assert alert.words == "saved of shop/churn was 80 EUR on 2024-05-02: below 100"
    client.outcomes.keep_metric(ENDPOINT, "saved", MetricRequest(points=[MetricPoint(day="2024-05-03", value=120.0)]))
    assert client.monitors.check("shop/m").state == "fine"


def test_a_metric_by_version_is_judged_by_every_version_of_its_newest_day(shop: World, client: Client) -> None:
    day, before = "2024-05-03", "2024-05-02"
    points = [
        MetricPoint(day=before, value=1.0, version=4),
        MetricPoint(day=day, value=100.0, version=1),
        MetricPoint(day=day, value=-900.0, version=2),
        MetricPoint(day=day, value=-5.0, version=3),
    ]
    client.outcomes.keep_metric(ENDPOINT, "saved", MetricRequest(points=points, unit="EUR"))
    watch(client, kind="metric", metric="saved", least=50, most=1000)
    assert client.monitors.check("shop/m").state == "alert"
    [alert] = client.monitors.alerts("shop")
    assert alert.words == (
        "saved of shop/churn@2 was -900 EUR on 2024-05-03: below 50; saved of shop/churn@3 was -5 EUR on 2024-05-03: below 50"
    )
    assert [(p["version"], p["value"]) for p in alert.evidence["points"]] == [(2, -900.0), (3, -5.0)]
    better = [MetricPoint(day=day, value=60.0, version=number) for number in (2, 3)]
    client.outcomes.keep_metric(ENDPOINT, "saved", MetricRequest(points=better, unit="EUR"))
    fine = client.monitors.check("shop/m")
    assert (fine.state, "shop/churn@3 was 60 EUR" in fine.words) == ("fine", True)


@pytest.mark.parametrize("odd", [{"version": 2**31}, {"version": 2**70}, {"version": -1}, {"rows": 2**70}])
def test_a_number_that_no_database_keeps_is_refused(client: Client, odd: dict[str, int]) -> None:
    with pytest.raises(errors.BadInput, match=next(iter(odd))):
        client.outcomes.keep_metric(
            ENDPOINT, "saved", MetricRequest(points=[MetricPoint(day="2024-05-03", value=1.0, **odd)])
        )
    assert client.outcomes.metrics(ENDPOINT) == []


def test_a_function_that_fails_names_the_day(shop: World, client: Client) -> None:
    shop.predict("a", 0.9)
    truths(client, {"a": 1.0})
    with pytest.raises(errors.BadInput, match=r"metric 'share'.*2024-05-01.*ZeroDivisionError"):
        business.measure(ENDPOINT, lambda rows: rows.height / 0, name="share")


def test_a_metric_that_was_never_sent_names_the_near_one(client: Client) -> None:
    client.outcomes.keep_metric(ENDPOINT, "saved", MetricRequest(points=[MetricPoint(day="2024-05-03", value=1.0)]))
    watch(client, kind="metric", metric="saves", least=1)
    found = client.monitors.check("shop/m")
    assert found.state == "unknown"
    assert "saved" in found.words


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_what_is_in_use_of_the_machine_is_watched(client: Client, kind: str) -> None:
    watch(client, kind=kind, endpoint="", most=0.000001)
    assert client.monitors.check("shop/m").state == "alert"
    assert [alert.subject for alert in client.monitors.alerts("shop")] == [f"machine:{kind}"]
    watch(client, kind=kind, endpoint="", most=1)
    assert client.monitors.check("shop/m").state == "fine"


def learned(shop: World, share: float) -> None:
    """Let the training dataset have labels, of which so many are 1."""
    folder = shop.state.home.dataset(DATASET)
    happened = np.random.default_rng(3).random(TRAINED) < share
    frame = pl.read_parquet(folder / "data.parquet").with_columns(churned=pl.Series(happened.astype(int)))
    frame.write_parquet(folder / "data.parquet")
    with shop.state.engine.connect() as db:
        record = db.execute(text("SELECT record FROM datasets WHERE id = :id"), {"id": DATASET}).scalar_one()
    assert msgspec.json.decode(record, type=Dataset).label == "churned"


@pytest.mark.parametrize(("share", "verdict"), [(0.3, "stable"), (0.8, "drift")])
def test_what_came_true_is_compared_with_what_the_version_learned(
    shop: World, client: Client, share: float, verdict: str
) -> None:
    learned(shop, 0.3)
    predict(shop, rows(400, seed=2))
    happened = np.random.default_rng(4).random(400) < share
    assert drift.LABEL not in {c.column for c in client.monitors.drift(ENDPOINT).columns}  # nothing is known yet
    truths(client, {f"0-{k}": float(one) for k, one in enumerate(happened)})
    [label] = [c for c in client.monitors.drift(ENDPOINT).columns if c.column == drift.LABEL]
    assert (label.verdict, label.window, label.reference) == (verdict, 400, TRAINED)
    [day] = client.monitors.drift_by_day(ENDPOINT)
    assert next(c.verdict for c in day.columns if c.column == drift.LABEL) == verdict
    watch(client, kind="drift", columns=[drift.LABEL])
    assert client.monitors.check("shop/m").state == ("alert" if verdict == "drift" else "fine")


@pytest.mark.parametrize("day", ["20240503", "2024-W18-5", "2024-5-3", "yesterday"])
def test_a_day_is_written_in_one_way_because_days_are_compared_as_texts(client: Client, day: str) -> None:
    with pytest.raises(errors.BadInput, match="is no day"):
        client.outcomes.keep_metric(ENDPOINT, "saved", MetricRequest(points=[MetricPoint(day=day, value=1.0)]))
