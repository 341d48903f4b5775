"""Outcomes join predictions whichever comes first, corrections hold, repeats change nothing; against a real prediction log."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import serving_world as world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from log_world import DAY, ENDPOINT, World
from ports import free_port
from sqlalchemy import text

from cellwork import clock, errors
from cellwork.client import Client
from cellwork.client.outcomes import PARQUET
from cellwork.monitoring.ranking import auc
from cellwork.wire.outcomes import Outcome
from cellwork_hub import records
from cellwork_hub.context import Context
from cellwork_hub.platform import outcomes
from cellwork_hub.platform.outcome_store import SCHEMA, OutcomeStore
from cellwork_hub.platform.state import State


@pytest.fixture
def shop(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def client(shop: World) -> Iterator[Client]:
    with world.running(shop.service, shop.port) as address, world.caller(address, "admin") as client:
        yield client


def truth(observation: str, value: float, **more: object) -> Outcome:
    return Outcome(value=value, observed_at=DAY, endpoint=ENDPOINT, observation=observation, **more)  # type: ignore[arg-type]


def told(client: Client) -> list[tuple[int, int, float | None]]:
    return [(p.predictions, p.outcomes, p.rate) for p in client.outcomes.quality(ENDPOINT).points]


def test_an_outcome_meets_its_prediction_whichever_comes_first(shop: World, client: Client) -> None:
    shop.predict("first")
    answer = client.outcomes.send("shop", [truth("first", 1), truth("later", 0)])
    assert (answer.taken, answer.matched, answer.repeated) == (2, 1, 0)
    shop.predict("later")
    assert told(client) == [(2, 2, 0.5)]


def test_an_outcome_by_prediction_id_holds_for_the_observation(shop: World, client: Client) -> None:
    shop.predict("a", version=2)
    name = shop.predict("a", version=1)
    later = shop.predict("b")
    client.outcomes.send("shop", [Outcome(prediction=name, value=1, observed_at=DAY)])
    assert told(client)[1] == (1, 1, 1.0), "the other version's prediction of the observation is joined too"
    assert [o.value for o in client.outcomes.list("", prediction=name)] == [1.0]
    assert list(client.outcomes.list("", prediction=later)) == []


def test_an_outcome_by_an_id_that_appears_later_is_joined_then(shop: World, client: Client) -> None:
    name = "pred_" + "0" * 26
    assert client.outcomes.send("shop", [Outcome(prediction=name, value=1, observed_at=DAY)]).matched == 0
    prediction = shop.log.get(shop.predict("a"))
    prediction.id, prediction.observation = name, "b"
    shop.log.write([prediction])
    assert told(client) == [(2, 1, 1.0)]


def test_a_correction_holds_and_a_repeat_changes_nothing(shop: World, client: Client) -> None:
    shop.predict("a")
    assert client.outcomes.send("shop", [truth("a", 0)]).taken == 1
    assert client.outcomes.send("shop", [truth("a", 0)]).repeated == 1
    assert told(client) == [(1, 1, 0.0)]
    client.outcomes.send("shop", [truth("a", 1)])
    assert told(client) == [(1, 1, 1.0)]
    client.outcomes.send("shop", [truth("a", 0)])
    assert told(client) == [(1, 1, 0.0)], "a correction may take a correction back"
    assert [o.value for o in client.outcomes.list(ENDPOINT)] == [0.0, 1.0, 0.0]


def test_an_outcome_that_arrived_earlier_does_not_replace_a_later_one(shop: World, client: Client) -> None:
    shop.predict("a")
    client.outcomes.send("shop", [truth("a", 1, arrived_at=DAY + timedelta(hours=2))])
    client.outcomes.send("shop", [truth("a", 0, arrived_at=DAY + timedelta(hours=1))])
    assert told(client) == [(1, 1, 1.0)]


def test_only_the_first_prediction_of_an_observation_and_version_counts(shop: World, client: Client) -> None:
    for version, score in ((1, 0.1), (1, 0.9), (2, 0.3)):
        shop.predict("a", score, version=version)
    shop.predict("", 0.5)
    points = client.outcomes.quality(ENDPOINT).points
    assert [(p.version, p.predictions, round(p.mean_score, 3)) for p in points] == [(1, 2, 0.3), (2, 1, 0.3)]


def test_what_another_model_predicted_under_the_same_number_is_told_apart(shop: World, client: Client) -> None:
    """The endpoint went over from one model to another: both predicted the observation with their version 1."""
    shop.predict("a", 0.1), shop.predict("a", 0.9, model="shop/churn-trees")
    client.outcomes.send("shop", [truth("a", 1)])
    points = [(p.model, p.predictions, p.outcomes, p.mean_score) for p in client.outcomes.quality(ENDPOINT).points]
    assert points == [("shop/churn", 1, 1, 0.1), ("shop/churn-trees", 1, 1, 0.9)]
    assert client.outcomes.joined(ENDPOINT)["model"].to_list() == ["shop/churn", "shop/churn-trees"]


def test_a_file_of_before_models_were_told_apart_is_made_from_the_log_again(tmp_path: Path) -> None:
    """What came of the predictions stays: only the log's mirror is made anew, from its beginning."""
    old = tmp_path / "outcomes.duckdb"
    with duckdb.connect(str(old)) as db:
        db.execute(SCHEMA.replace("model VARCHAR,", ""))
        db.execute("INSERT INTO cursors VALUES ('inference', 9)")
        db.execute("INSERT INTO outcomes VALUES (1, 7, 'shop', ?, 'a', '', 1, 0, 0, 'till')", [ENDPOINT])
    for _ in range(2):
        store = OutcomeStore(old)
        assert store.rows("SELECT source FROM outcomes").rows() == [("till",)]
        assert store.cursor("inference") == 0
        store.close()
    store = OutcomeStore(old)
    store.keep(pl.DataFrame(schema=outcomes.SCORED), "inference", 9)
    store.close()
    store = OutcomeStore(old)
    assert store.cursor("inference") == 9, "once made anew, it is no longer"
    store.close()


def test_what_was_known_at_a_time_can_still_be_asked(shop: World, client: Client) -> None:
    shop.predict("a", 0.2), shop.predict("b", 0.8)
    client.outcomes.send("shop", [truth("a", 1, arrived_at=DAY), truth("b", 1, arrived_at=DAY + timedelta(hours=2))])
    client.outcomes.send("shop", [truth("a", 0, arrived_at=DAY + timedelta(hours=1))])
    known = [
        [(p.outcomes, p.rate) for p in client.outcomes.quality(ENDPOINT, as_of=f"2024-05-01T{hour}:30:00Z").points]
        for hour in (11, 12, 13, 14)
    ]
    assert known == [[(0, None)], [(1, 1.0)], [(1, 0.0)], [(2, 0.5)]]


def test_what_is_estimated_is_estimated_from_what_was_known(shop: World, client: Client) -> None:
    def estimated(as_of: str = "") -> float | None:
        [point] = client.outcomes.quality(ENDPOINT, as_of=as_of).points
        return point.estimated_auc

    shop.log.write([shop.prediction(f"o{k}", k / 400) for k in range(400)])
    before, at = estimated(), DAY + timedelta(hours=2)
    client.outcomes.send("shop", [truth(f"o{k}", float(k < 200), arrived_at=at) for k in range(400)])
    assert estimated() != before
    assert estimated((at - timedelta(minutes=1)).isoformat()) == before
    assert estimated((at + timedelta(minutes=1)).isoformat()) == estimated()


@pytest.mark.parametrize("ahead", [timedelta(minutes=10), timedelta(days=365 * 180)])
def test_an_arrival_that_is_still_to_come_is_refused_since_no_correction_would_ever_hold(
    shop: World, client: Client, ahead: timedelta
) -> None:
    shop.predict("a")
    later = clock.now() + ahead
    with pytest.raises(errors.BadInput, match="later than now"):
        client.outcomes.send("shop", [truth("a", 1, arrived_at=later)])
    with pytest.raises(errors.BadInput, match="later than now"):
        client.outcomes.load(ENDPOINT, frame(observation=["a", "b"], arrived_at=[DAY, later]))
    assert told(client) == [(1, 0, None)]


def test_a_sender_whose_clock_is_a_minute_ahead_is_heard(shop: World, client: Client) -> None:
    shop.predict("a"), shop.predict("b")
    soon = clock.now() + timedelta(minutes=1)
    client.outcomes.send("shop", [truth("a", 1, arrived_at=soon)])
    client.outcomes.load(ENDPOINT, frame(observation=["b"], arrived_at=[soon]))
    assert told(client) == [(2, 2, 1.0)]


def frame(**columns: list[object]) -> pl.DataFrame:
    rows = len(next(iter(columns.values())))
    return pl.DataFrame({"value": [1.0] * rows, "observed_at": [DAY] * rows, **columns})


def test_a_frame_of_outcomes_joins_like_single_ones_and_repeats_change_nothing(shop: World, client: Client) -> None:
    names = [shop.predict(f"o{k}", k / 10) for k in range(10)]
    sent = frame(observation=[f"o{k}" for k in range(12)])
    answer = client.outcomes.load(ENDPOINT, sent)
    assert (answer.taken, answer.matched, answer.repeated) == (12, 10, 0)
    assert client.outcomes.load(ENDPOINT, sent).repeated == 12
    by_id = client.outcomes.load(ENDPOINT, frame(prediction=names[:3], value=[0.0, 1.0, 0.0]))
    assert (by_id.taken, by_id.matched, by_id.repeated) == (2, 2, 1), "of the same observations: two corrections"
    assert told(client) == [(10, 10, 0.8)]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "+02:00"])
@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_times_of_a_frame_may_have_any_zone(shop: World, client: Client, unit: str, zone: str) -> None:
    shop.predict("a")
    at = pa.array([DAY], pa.timestamp(unit, zone))
    body = io.BytesIO()
    pq.write_table(pa.table({"observation": ["a"], "value": [1.0], "observed_at": at, "arrived_at": at}), body)
    client.connection.raw("cellwork", "PUT", f"/api/v1/outcomes/{ENDPOINT}", body.getvalue(), PARQUET)
    [kept] = client.outcomes.list(ENDPOINT)
    assert (kept.observed_at, kept.arrived_at) == (DAY, DAY)


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (pl.DataFrame({"value": [1.0], "observation": ["a"]}), "lack the column 'observed_at'"),
        (pl.DataFrame({"value": [1.0], "observed_at": [DAY]}), "lack the column 'observation'"),
        (frame(observation=["a"], observed_at=[DAY.replace(tzinfo=None)]), "no time with a time zone"),
        (frame(observation=["a", ""]), "are missing"),
        (frame(observation=["a"], valeu=[1]), "did you mean 'value'"),
        (frame(observation=["a", "b"], value=[1.0, float("nan")]), "are no finite numbers"),
        (frame(observation=["a"], value=[float("inf")]), "are no finite numbers"),
        (frame(observation=["a"], value=["1"]), "is no number"),
        (frame(observation=[["a"]]), "is no text"),
        (frame(observation=["a"], arrived_at=[datetime(9999, 1, 1, tzinfo=UTC)]), "outside the years"),
        (
            frame(observation=["a"]).with_columns(pl.lit(2**61).cast(pl.Datetime("ms", "UTC")).alias("observed_at")),
            "outside the years",
        ),
    ],
)
def test_a_frame_that_is_no_outcomes_is_refused(client: Client, sent: pl.DataFrame, says: str) -> None:
    with pytest.raises(errors.BadInput, match=says):
        client.outcomes.load(ENDPOINT, sent)


def test_a_small_file_that_unpacks_to_more_than_a_delivery_is_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "ROWS", 100)
    with pytest.raises(errors.TooLarge, match="send them in parts"):
        client.outcomes.load(ENDPOINT, frame(observation=["o"] * 101))


def test_a_delivery_that_can_not_be_told_keeps_no_other_and_no_start_from_going_on(
    shop: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = records.event

    def picky(db: Any, name: str, project: str, *more: Any, **data: Any) -> None:
        assert project != "odd"
        event(db, name, project, *more, **data)

    monkeypatch.setattr(records, "event", picky)
    for project in ("odd", "shop"):
        sent = {**outcomes._row("shop", 0, truth(f"of-{project}", 1), DAY), "project": project}
        shop.state.outcomes.take(pl.DataFrame([sent], schema=outcomes.SENT), "user:ada", "req_1")
    outcomes.take_over(shop.state)
    assert [done.project for done in shop.state.outcomes.untold()] == ["odd"]


def test_a_file_that_could_not_be_renewed_is_renewed_the_next_time(
    shop: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full: the half copy stayed attached, and each later try met it."""
    sent = pl.DataFrame([outcomes._row("shop", 0, truth("a", 1), DAY)], schema=outcomes.SENT)
    shop.state.outcomes.take(sent, "user:ada", "req_1")
    store = shop.state.outcomes

    class Full:
        def __init__(self, database: Any) -> None:
            self.database = database

        def execute(self, query: str) -> Any:
            if query.startswith("COPY"):
                raise OSError("No space left on device")
            return self.database.execute(query)

    with monkeypatch.context() as patch:
        patch.setattr(store, "_database", Full(store._database))
        with pytest.raises(OSError, match="No space"):
            store._renew()
    store._renew()
    assert store.rows("SELECT count(*) FROM outcomes").item() == 1


def test_a_delivery_that_was_taken_and_not_told_is_told_at_the_next_start(shop: World) -> None:
    """The process dies between the two databases: the event and the audit come later, once."""
    sent = pl.DataFrame([outcomes._row("shop", 0, truth("a", 1), DAY)], schema=outcomes.SENT)
    shop.state.outcomes.take(sent, "user:ada", "req_1")
    for _ in range(2):
        outcomes.take_over(shop.state)
    with shop.state.engine.connect() as db:
        assert db.execute(text("SELECT name FROM events")).scalars().all() == ["outcomes.arrived"]
        assert db.execute(text("SELECT principal, action FROM audit")).all() == [("user:ada", "outcomes.send")]


def test_outcomes_of_a_home_of_before_are_taken_over_once(shop: World) -> None:
    values = {"o": "a", "at": 1_714_564_800_000_000}
    with shop.state.engine.begin() as db:
        db.execute(
            text(
                "INSERT INTO outcomes (project, endpoint, observation, prediction, value, observed_at, arrived_at, source) "
                f"VALUES ('shop', '{ENDPOINT}', :o, '', 1, :at, :at, '')"
            ),
            values,
        )
    for _ in range(2):
        outcomes.take_over(shop.state)
    assert shop.state.outcomes.rows("SELECT observation, value FROM outcomes").rows() == [("a", 1.0)]


def test_quality_is_told_per_day_and_version_with_an_interval_over_all(shop: World, client: Client) -> None:
    for k in range(20):
        shop.predict(f"o{k}", k / 20, at=DAY + timedelta(days=k % 2))
    client.outcomes.send("shop", [truth(f"o{k}", float(k > 8 or k == 3)) for k in range(20)])
    quality = client.outcomes.quality(ENDPOINT)
    expected = auc([float(k > 8 or k == 3) for k in range(20)], [k / 20 for k in range(20)])
    assert quality.auc
    assert expected
    assert msgspec.structs.astuple(quality.auc) == pytest.approx(msgspec.structs.astuple(expected))
    assert [(p.day, p.predictions) for p in quality.points] == [("2024-05-01", 10), ("2024-05-02", 10)]


def test_outcomes_leave_an_event_and_edges_to_what_was_observed(shop: World, client: Client) -> None:
    name = shop.predict("a")
    client.outcomes.send("shop", [truth("a", 1)])
    event = client.records.events(name="outcomes.arrived")[-1]
    assert (event.subject, event.data) == (ENDPOINT, {"taken": 1, "matched": 1})
    edges = client.connection.call("cellwork", "GET", "/api/v1/lineage", list[dict[str, str]], subject=name)
    assert [(edge["relation"], edge["to"]) for edge in edges] == [("observed_as", f"{ENDPOINT}#a")]


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (Outcome(value=1, observed_at=DAY), "names neither"),
        (Outcome(value=1, observed_at=DAY, endpoint="other/churn", observation="a"), "not in project"),
        (Outcome(value=1, observed_at=DAY.replace(tzinfo=None), endpoint=ENDPOINT, observation="a"), "time zone"),
    ],
)
def test_an_outcome_that_belongs_nowhere_is_refused(client: Client, outcome: Outcome, message: str) -> None:
    with pytest.raises(errors.BadInput, match=message):
        client.outcomes.send("shop", [outcome])


def test_outcomes_are_taken_while_the_inference_service_is_away(shop: World) -> None:
    away = Context(shop.state.context.settings, {**shop.state.context.ports, "public": free_port()})
    state = State(shop.state.engine, away.home, away)
    assert outcomes.mirror(state) == 0
    request = outcomes.OutcomesRequest(project="shop", outcomes=[truth("a", 1)])
    assert outcomes.take(state, world.call(), request).taken == 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_order_of_predictions_outcomes_and_mirroring_ends_in_the_same_join(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The oracle is a dictionary: per observation the value with the newest arrival."""
    shop = World(tmp_path_factory.mktemp("any"))
    steps = data.draw(
        st.lists(
            st.one_of(
                st.tuples(st.just("predict"), st.sampled_from("abc"), st.just(0)),
                st.tuples(st.just("outcome"), st.sampled_from("abc"), st.integers(0, 5)),
                st.tuples(st.just("mirror"), st.just(""), st.just(0)),
            ),
            max_size=15,
        )
    )
    after, arrival = 0, 0
    newest: dict[str, float] = {}
    names: dict[str, list[str]] = {}

    def mirror() -> None:
        nonlocal after
        page = shop.log.after(after)
        if page:
            shop.state.outcomes.keep(outcomes.scored(page), outcomes.LOG, page[-1].seq)
            after = page[-1].seq

    call = world.call()
    for step, observation, value in steps:
        if step == "predict":
            names.setdefault(observation, []).append(shop.predict(observation))
        elif step == "mirror":
            mirror()
        else:
            arrival += 1
            newest[observation] = float(value)
            sent = truth(observation, float(value), arrived_at=DAY + timedelta(seconds=arrival))
            outcomes.take(shop.state, call, outcomes.OutcomesRequest(project="shop", outcomes=[sent]))
    mirror()
    joined = dict(
        shop.state.outcomes.rows(
            "SELECT p.id, j.outcome FROM predictions p LEFT JOIN joined j ON j.seq = p.seq AND j.key = p.key"
        ).rows()
    )
    assert joined == {name: newest.get(observation) for observation, ids in names.items() for name in ids}
