"""An erasure reaches what was predicted of a subject: log, outcomes, feedback, hours and snapshots; and waits for whom it needs."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from click.testing import CliRunner
from feature_world import DAY, Predicted, new_state, service
from raw_platform import call
from test_platform_erasure import WHO, built, filled, killed, nursery, traces

from cellwork import ids
from cellwork.cli import main
from cellwork.client import Client
from cellwork.errors import Conflict
from cellwork.lineage import why
from cellwork.serving import compaction
from cellwork.wire.business import FeedbackRequest
from cellwork.wire.endpoints import Prediction, RouteTable
from cellwork.wire.erasures import Erasure
from cellwork.wire.evaluations import VersionRef
from cellwork.wire.outcomes import Outcome, OutcomesRequest
from cellwork_hub import records
from cellwork_hub.platform import erasure, feedback, outcomes, serving_hours
from cellwork_hub.platform.snapshots import Snapshots
from cellwork_hub.platform.state import State

__all__ = ["nursery"]
ENDPOINT = "shop/churn"
OWN_VISIT, OTHER_VISIT = "104", "101"
MARK = "spoor-0815"
"""What stands in the features of the subject's predictions."""


@dataclass
class Shop:
    state: State
    client: Client
    twin: Predicted
    own: list[str] = field(default_factory=list)
    others: list[Prediction] = field(default_factory=list)

    def predict(self, name: str, *, own: bool, hour: int = 0, **said: Any) -> None:
        at = DAY + timedelta(days=20, hours=hour)
        made = Prediction(
            id=ids.of_key("pred", name), seq=0, at=at, logged_at=at, endpoint=ENDPOINT, revision=1, deployment="dep_1", route="live",
            version=VersionRef(name=ENDPOINT, version=1), reason="", feature_events={}, feature_batches={}, defaults=[], latency_us=1,
            caller="ada", score=0.25, **{"entities": {}, "features": {"plan": MARK if own else "free"}, **said},
        )  # fmt: skip
        self.twin.log.write([made])
        if own:
            self.own.append(made.id)
        else:
            self.others.append(self.twin.log.get(made.id))


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    state = new_state(tmp_path / "home")
    twin = Predicted(state)
    with service(state, twin) as client:
        made = Shop(state, client, twin)
        _fill(made)
        yield made
    twin.engine.dispose()
    state.close()


def _fill(shop: Shop) -> None:
    """Predict by entity, by feature and by observation alone, for the subject and others; say what came of it, and look at it."""
    state = shop.state
    filled(state, shop.client)
    dataset = built(state, "training", "visits")
    with state.engine.begin() as db:
        records.edge(db, f"{ENDPOINT}@1", "trained_on", dataset.id)
    live = VersionRef(name=ENDPOINT, version=1)
    shop.twin.tables = [RouteTable(endpoint=ENDPOINT, revision=1, live=live), RouteTable(endpoint="shop/new", revision=1, live=VersionRef(name="shop/new", version=1))]  # fmt: skip
    shop.predict("a", own=True, entities={"user": WHO})
    shop.predict("b", own=False, entities={"user": "user-1"})
    compaction.compact(shop.twin.engine, state.home.archived_predictions(), datetime.now(UTC))
    shop.predict("c", own=True, features={"of_user__user": WHO, "plan": MARK})
    shop.predict("d", own=True, observation=OWN_VISIT, batch_run="run_1")
    shop.predict("e", own=False, observation=OTHER_VISIT, batch_run="run_1")
    shop.predict("f", own=True, hour=3, entities={"user": WHO}, observation="both")
    shop.predict("g", own=False, hour=3, entities={"user": "user-2"}, observation="both")
    outcomes.mirror(state)
    serving_hours.follow(state)
    said = [Outcome(value=1.0, observed_at=DAY, prediction=ids.of_key("pred", name), source="till") for name in "ab"]
    said += [Outcome(value=0.5, observed_at=DAY, endpoint=ENDPOINT, observation=name, source="till") for name in (OWN_VISIT, OTHER_VISIT, "both", "100")]  # fmt: skip
    outcomes.take(state, call(), OutcomesRequest(project="shop", outcomes=said))
    for name in "ab":
        request = FeedbackRequest(prediction=ids.of_key("pred", name), wrong=True, comment=f"{name}: {MARK if name == 'a' else 'no'}")  # fmt: skip
        feedback.give(state, _asking(request))
    Snapshots(state).get([("shop", "predictions", "churn")])


def _asking(request: FeedbackRequest) -> Any:
    made = call()
    made.body = request
    return made


def left(state: State) -> list[str]:
    """Return the files that tell of the subject, by its name or by what its predictions were made from."""
    found = [*traces(state)]
    for path in (state.home.root / "predictions").rglob("*.parquet"):
        if MARK in repr(pl.read_parquet(path, hive_partitioning=False).rows()):
            found.append(path.name)
    return found + [path.name for path in state.home.root.rglob("*") if path.is_file() and MARK.encode() in path.read_bytes()]  # fmt: skip


def check(shop: Shop) -> None:
    assert left(shop.state) == []
    for one in shop.others:
        assert shop.twin.log.get(one.id) == one
    assert {each.id for each in shop.twin.log.after(0) if each.erased} == set(shop.own)
    known = shop.state.outcomes.rows("SELECT id, observation, score FROM predictions ORDER BY seq").rows()
    assert [(name, seen) for name, seen, score in known if score is not None] == [(p.id, p.observation) for p in shop.others]  # fmt: skip
    assert {name for name, seen, score in known if score is None and seen == ""} == set(shop.own)
    values = shop.state.outcomes.rows("SELECT observation, prediction FROM outcomes ORDER BY seq").rows()
    assert values == [("", ids.of_key("pred", "b")), (OTHER_VISIT, ""), ("both", "")]
    assert shop.state.outcomes.rows("SELECT count(*) FROM joined").item() == 3
    with shop.state.engine.connect() as db:
        assert db.exec_driver_sql("SELECT prediction FROM feedback").scalars().all() == [ids.of_key("pred", "b")]


def test_an_erasure_waits_for_an_inference_service_that_is_away_and_then_leaves_nothing_of_what_was_predicted(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(left(shop.state)) > 5
    shop.twin.away = True
    waiting = shop.client.batches.erase("shop", WHO, "asked for it")
    assert (waiting.state, "is away" in waiting.waits_for) == ("waiting", True)
    assert [(each.id, each.state) for each in shop.client.batches.erasures("shop")] == [(waiting.id, "waiting")]
    monkeypatch.setenv("CELLWORK_URL", shop.client.connection.url)
    monkeypatch.setenv("CELLWORK_TOKEN", "token")
    listed = CliRunner().invoke(main, ["data", "erasures", "--project", "shop"]).output
    assert "waiting" in listed
    assert "is away" in listed
    again = erasure.Again(shop.state)
    assert again.step() is False
    assert shop.client.batches.erasures("shop")[0].state == "waiting"
    shop.twin.away = False
    again.step()
    again.step()
    done = shop.client.batches.erasures("shop")
    assert [(each.id, each.state, each.predictions) for each in done] == [(waiting.id, "done", 4)]
    assert done[0].rows == waiting.rows
    assert list(shop.state.home.erasing().iterdir()) == []
    check(shop)
    _tells_what_it_did(shop, done[0])
    more = shop.client.batches.erase("shop", WHO, "once more")
    assert (more.predictions, [p.what for p in more.rewritten]) == (0, ["prepared rows and snapshots"])
    check(shop)
    _says_that_it_was_erased(shop, done[0])


def _tells_what_it_did(shop: Shop, done: Erasure) -> None:
    assert (done.state, done.predictions) == ("done", 4)
    rewritten = {place.what: place.names for place in done.rewritten}
    assert rewritten["prediction logs"] == [f"{ENDPOINT}: 4 predictions"]
    assert (rewritten["outcomes"], rewritten["feedback"]) == (["3"], ["1"])
    assert "1 of them in 1 Parquet files" in next(p.said for p in done.rewritten if p.what == "prediction logs")
    assert {p.what: p.names for p in done.untouched}["observations"] == ["shop/new"]
    quality = outcomes.quality_of(shop.state.outcomes, ENDPOINT)
    assert (quality.predictions, quality.outcomes) == (6, 3)  # each observation once, and of two the one that stays
    hours = serving_hours.between(shop.state, ENDPOINT, ENDPOINT, 1, DAY, DAY + timedelta(days=40))
    assert [(sketch.rows, sketch.columns["plan"].nulls) for _, sketch in hours] == [(5, 3), (2, 1)]


def _says_that_it_was_erased(shop: Shop, done: Erasure) -> None:
    assert f"erased ({done.id})" in str(why(shop.client, shop.own[0]))
    with pytest.raises(Conflict, match="was erased"):
        feedback.give(shop.state, _asking(FeedbackRequest(prediction=shop.own[0], wrong=True)))
    late = Outcome(value=1.0, observed_at=DAY, prediction=shop.own[0])
    assert outcomes.take(shop.state, call(), OutcomesRequest(project="shop", outcomes=[late])).matched == 0


@pytest.mark.parametrize(
    "point",
    [
        "cellwork_hub.platform.erasure._from_data#1",
        "cellwork.client.endpoints.forget#1",
        "cellwork_hub.platform.outcome_erasure.empty#1",
        "cellwork_hub.platform.outcome_erasure._sync#1",
        "cellwork_hub.platform.erasure_served._feedback#1",
        "cellwork_hub.platform.serving_hours._replace#1",
        "cellwork_hub.platform.snapshots.drop#1",
    ],
)
@pytest.mark.soak
def test_an_erasure_killed_at_what_was_predicted_is_finished_by_the_next_start(
    shop: Shop, nursery: subprocess.Popen[str], point: str
) -> None:
    _killed_and_finished(shop, nursery, point)


def test_an_erasure_killed_when_outcomes_are_rewritten_is_finished_by_the_next_start(
    shop: Shop, nursery: subprocess.Popen[str]
) -> None:
    _killed_and_finished(shop, nursery, "cellwork_hub.platform.outcome_erasure._sync#1")


def _killed_and_finished(shop: Shop, nursery: subprocess.Popen[str], point: str) -> None:
    shop.state.close()  # the file of outcomes is one process's
    assert killed(nursery, shop.state, point) == -signal.SIGKILL
    again = new_state(shop.state.home.root)
    again.context.ports.update(shop.state.context.ports)
    erasure.resume(again)
    shop.state = again
    check(shop)
    with again.engine.connect() as db:
        assert db.exec_driver_sql("SELECT count(*) FROM audit WHERE action = 'subject.erase'").scalar() == 1
    assert [each.predictions for each in _tombstones(again)] == [4]


def _tombstones(state: State) -> list[Erasure]:
    with state.engine.connect() as db:
        rows = db.exec_driver_sql("SELECT record FROM erasures").scalars()
        return [msgspec.json.decode(row, type=Erasure) for row in rows]
