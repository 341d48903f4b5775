"""What an endpoint predicts from beside its training data, over a real prediction log: windows, days, hours, seasons."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
import serving_world as world
from log_world import DAY, ENDPOINT, World
from monitor_world import DATASET, HOUR, predict, rows, trained, watch
from sqlalchemy import text

from cellwork import clock, errors
from cellwork.client import Client
from cellwork.data import sketches
from cellwork.models import package
from cellwork.wire.drift import Beside
from cellwork_hub.platform import drift, serving_hours


@pytest.fixture
def shop(tmp_path: Path) -> World:
    made = World(tmp_path)
    trained(made)
    return made


@pytest.fixture
def client(shop: World) -> Iterator[Client]:
    with world.running(shop.service, shop.port) as address, world.caller(address, "admin") as client:
        yield client


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


def amounts(count: int) -> list[dict[str, float]]:
    """Rows of a model that takes one of its dataset's two columns."""
    return [{"amount": row["amount"]} for row in rows(count, seed=2)]


def taking(shop: World, *columns: str) -> None:
    """Let the platform have a copy of the version's folder, whose model takes `columns`."""
    folder = shop.state.home.models() / "abc"
    folder.mkdir(parents=True)
    told = {"kind": "classifier", "columns": [{"name": name, "kind": "number"} for name in columns], "example": []}
    (folder / package.MANIFEST).write_bytes(msgspec.json.encode(told))
    with shop.state.engine.begin() as db:
        db.execute(text("UPDATE evaluations SET digest = 'abc'"))


@pytest.mark.parametrize("known", [False, True])
def test_a_column_of_the_dataset_that_the_model_does_not_take_is_not_compared(
    shop: World, client: Client, known: bool
) -> None:
    if known:
        taking(shop, "amount")
    predict(shop, amounts(600))
    [day] = client.monitors.drift_by_day(ENDPOINT)
    for found in (client.monitors.drift(ENDPOINT), client.monitors.drift(ENDPOINT, beside="training"), day):
        assert {c.column: c.verdict for c in found.columns} == {"amount": "stable"}


def test_a_column_that_the_model_takes_and_that_no_request_has_any_more_is_said(shop: World, client: Client) -> None:
    taking(shop, "amount", "shop")
    predict(shop, amounts(600))
    [day] = client.monitors.drift_by_day(ENDPOINT)
    for found in (client.monitors.drift(ENDPOINT), day):
        assert {c.column: c.reasons for c in found.columns} == {"amount": [], "shop": ["is not in the window"]}


def test_a_column_that_is_gone_since_the_window_before_is_said(shop: World, client: Client) -> None:
    predict(shop, rows(300, seed=1))
    predict(shop, amounts(300), hour=24 * 7)
    found = client.monitors.drift(ENDPOINT, start=DAY + 7 * 24 * HOUR, end=DAY + 14 * 24 * HOUR, beside="before")
    assert {c.column: c.reasons for c in found.columns if c.verdict == "drift"} == {"shop": ["is not in the window"]}


def test_a_single_prediction_gives_no_verdict(shop: World, client: Client) -> None:
    taking(shop, "amount", "shop")
    predict(shop, amounts(1))
    assert {c.verdict for c in client.monitors.drift(ENDPOINT).columns} == {"not enough data"}
    watch(client, kind="drift", then="rollback")
    assert client.monitors.check("shop/m").state == "unknown"
    assert list(client.monitors.alerts("shop")) == []


@pytest.mark.parametrize(("key", "beside"), [("end", "season"), ("start", "season"), ("start", "before")])
def test_a_window_at_the_beginning_of_all_years_is_refused(
    shop: World, client: Client, key: str, beside: Beside
) -> None:
    predict(shop, rows(200, seed=2))
    with pytest.raises(errors.BadInput, match="outside the years 1678 to 2261"):
        client.monitors.drift(ENDPOINT, beside=beside, **{key: clock.utc("0001-01-03T00:00:00Z")})


def test_an_endpoint_without_predictions_or_dataset_says_so(shop: World, client: Client) -> None:
    with pytest.raises(errors.NotFound, match="has no prediction yet"):
        client.monitors.drift(ENDPOINT)
    predict(shop, rows(10, seed=1), version=7)
    with pytest.raises(errors.NotFound, match="was not evaluated here"):
        client.monitors.drift(ENDPOINT)
    with pytest.raises(errors.NotFound, match="those that did: 7"):
        client.monitors.drift(ENDPOINT, version=3)
