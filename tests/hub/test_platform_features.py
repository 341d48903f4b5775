"""Features in the platform service: over HTTP where a client is concerned, on real tables and databases throughout."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import polars as pl
import pytest
from click.testing import CliRunner
from feature_world import DAY, definitions, flights, new_state, service, work
from sqlalchemy import text

from cellwork import errors
from cellwork import features as author
from cellwork import project as projects
from cellwork.cli import main
from cellwork.client import Client
from cellwork.errors import BadInput, Conflict, NotFound, Unavailable
from cellwork.features import history
from cellwork.wire.batches import Batch, RawDataset, Seal
from cellwork.wire.features import Definitions, Field, PushRequest, Select, View
from cellwork_hub import records
from cellwork_hub.platform import feature_queue, features
from cellwork_hub.platform.feature_worker import Worker, execute
from cellwork_hub.platform.state import State

HOUR = timedelta(hours=1)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return new_state(tmp_path / "home")


@pytest.fixture
def client(state: State) -> Iterator[Client]:
    with service(state) as connected:
        yield connected


def ingest(client: Client, *days: int, delay: float = 10.0) -> list[Batch]:
    return [client.batches.ingest("air", "flights", flights(day, delay=delay), f"day{day}").batch for day in days]


def view(name: str = "late"):
    return next(v for v in definitions().views if v.name == name)


def ordered(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.sort("origin", "event_timestamp", "created_timestamp")


def test_batches_become_feature_rows_that_know_their_batch(client, state):
    first, second = ingest(client, 0, 1)
    client.features.apply(definitions())
    assert work(state) == 4
    rows = client.features.rows("air", "late")
    assert set(rows["_batch"]) == {first.id, second.id}
    assert (rows["event_timestamp"] == rows["created_timestamp"]).all()
    at = rows.filter((pl.col("origin") == "JFK") & (pl.col("event_timestamp") == DAY + 9 * HOUR)).row(0, named=True)
    assert (at["flights"], at["delay"]) == (2, 16.0)
    assert (
        client.features.rows("air", "late", batch=first.id).height == rows.filter(pl.col("_batch") == first.id).height
    )
    assert client.features.rows("air", "plan", limit=3).height == 3
    runs = list(client.features.runs("air", view="late"))
    assert [run.state for run in runs] == ["succeeded", "succeeded"]
    assert runs[1].inputs == [first.id, second.id]


def test_batch_after_batch_gives_the_rows_of_all_at_once(client, state, tmp_path):
    client.batches.declare("air", RawDataset(name="flights"))
    client.features.apply(definitions())
    for day in range(4):
        ingest(client, day)
        work(state)
    other = new_state(tmp_path / "other")
    with service(other) as whole:
        ingest(whole, 0, 1, 2, 3)
        whole.features.apply(definitions())
        work(other)
        assert ordered(client.features.rows("air", "late")).equals(ordered(whole.features.rows("air", "late")))


def test_what_is_known_after_a_batchs_last_prediction_is_not_held_against_it(client, state):
    """The last flights of a day land in the next one's step, in time for that day's first predictions, though late in their own."""
    client.batches.declare("air", RawDataset(name="flights"))
    client.features.apply(definitions())
    days = []
    for day in range(2):
        days += ingest(client, day)
        work(state)
    first, second = (client.features.rows("air", "late", batch=day.id) for day in days)
    assert first["event_timestamp"].max() == DAY + 22 * HOUR
    assert second["event_timestamp"].min() == DAY + 23 * HOUR
    rows = pl.concat([first, second])
    counts = rows.filter((pl.col("origin") == "LGA") & (pl.col("event_timestamp") == DAY + 24 * HOUR))["flights"]
    assert counts.item() == 2  # of 20 and 22 o'clock; the one of 0 o'clock has not landed


def test_applying_twice_changes_nothing_and_a_change_starts_a_new_revision(client, state):
    ingest(client, 0)
    assert client.features.apply(definitions()).revision == 1
    work(state)
    again = client.features.apply(definitions())
    assert (again.revision, again.changed, again.removed) == (1, [], [])
    assert work(state) == 0
    changed = client.features.apply(definitions(window="3h"))
    assert (changed.revision, changed.changed) == (2, ["view:late"])
    with pytest.raises(Unavailable, match="still being filled"):
        features.view_rows(state, "air", view())
    assert work(state) == 1
    now, before = features.view_rows(state, "air", view()), features.view_rows(state, "air", view(), revision=1)
    assert now["flights"].max() == 1
    assert before["flights"].max() == 2
    assert client.features.definitions("air", revision=1).views[0].pipeline.window == "6h"


def test_words_about_a_view_do_not_compute_it_anew(client, state):
    ingest(client, 0)
    client.features.apply(definitions())
    work(state)
    told = definitions()
    told.views[0].description, told.views[0].owner = "rolling delay", "ada"
    assert client.features.apply(told).changed == ["view:late"]
    assert work(state) == 0
    assert client.features.rows("air", "late").height


def test_a_correction_writes_new_rows_and_history_still_tells_what_was_known(client, state):
    ingest(client, 0, 1, 2)
    client.features.apply(definitions())
    work(state)
    before = features.view_rows(state, "air", view())
    better = ingest(client, 1, delay=1000.0)[0]
    assert better.supersedes
    work(state)
    after = features.view_rows(state, "air", view())
    added = after.filter(pl.col("_batch") == better.id)
    assert after.filter(pl.col("_batch") != better.id).equals(before)
    assert (added["created_timestamp"] == better.at).all()
    assert (added["event_timestamp"] > DAY + 23 * HOUR).all()
    noon = (pl.col("origin") == "LGA") & (pl.col("event_timestamp") == DAY + 36 * HOUR)
    asked = pl.DataFrame({"origin": ["LGA"], "at": [DAY + 36 * HOUR]})
    joined, _ = history.join(asked, at="at", views=[history.JoinView(view(), {"origin": "origin"}, ["delay"], after)])
    assert joined["late__delay"].item() == before.filter(noon)["delay"].item() < 100
    assert added.filter(noon)["delay"].item() > 1000


def test_a_day_after_a_correction_builds_on_the_corrected_rows(client, state):
    client.batches.declare("air", RawDataset(name="flights"))
    client.features.apply(definitions())
    ingest(client, 0)
    ingest(client, 0, delay=1000.0)
    ingest(client, 1)
    work(state)
    first = client.features.rows("air", "late").filter(
        (pl.col("origin") == "LGA") & (pl.col("event_timestamp") == DAY + 24 * HOUR)
    )
    assert first["delay"].item() > 1000


def aggregates(**changes: object) -> Definitions:
    """Return the definitions without the view that shows a flight's own delay, with the changed fields of the other."""
    known = definitions()
    known.views = [msgspec.structs.replace(known.views[0], **changes)]
    known.services = []
    return known


SECRET = Seal(holdout="secret", partitions=["day1"], columns=["delay"])


def select(field: str, event: str = "asked") -> View:
    pipeline = Select(rows="landed", event=event, known=event)
    return View(name="plan", entities=["flight"], pipeline=pipeline, fields=[Field(name=field, type="Float32")])


@pytest.mark.parametrize(
    ("sql", "view"),
    [
        ("SELECT *, planned AS asked FROM flights", select("delay")),
        ("SELECT *, planned AS asked, CAST(delay > 15 AS INTEGER) AS late FROM flights", select("late")),
        ("SELECT *, planned + to_minutes(CAST(delay AS INTEGER)) AS asked FROM flights", select("id")),
        ("SELECT *, planned AS asked FROM flights WHERE delay > 15", select("id")),
    ],
    ids=["itself", "derived", "as a time", "by its presence"],
)
def test_a_view_that_would_tell_a_sealed_value_by_its_entity_is_refused(client, sql, view):
    """The newest value of each entity is readable online, so the truth of every flight could be asked for."""
    client.batches.declare("air", RawDataset(name="flights", seals=[SECRET]))
    ingest(client, 0, 1)
    wanted = aggregates()
    wanted.views, wanted.observations = [view], []
    wanted.prepared = [msgspec.structs.replace(wanted.prepared[0], sql=sql)]
    with pytest.raises(
        errors.Refused, match=r"view 'plan'.*delay.*'flights', and is sealed \(holdout 'secret'\).*Rolling"
    ):
        client.features.apply(wanted)
    wanted.views, wanted.prepared = (
        [select("id")],
        [msgspec.structs.replace(wanted.prepared[0], sql="SELECT *, planned AS asked FROM flights")],
    )
    assert client.features.apply(wanted).changed


def test_an_aggregate_by_what_identifies_a_row_is_refused(client):
    client.batches.declare("air", RawDataset(name="flights", key=["id"], seals=[SECRET]))
    ingest(client, 0)
    with pytest.raises(errors.Refused, match=r"keys of view 'late'.*id.*identify the rows of 'flights'"):
        client.features.apply(aggregates(entities=["flight"]))
    assert client.features.apply(aggregates()).changed


def test_a_seal_that_is_declared_later_stops_the_runs_that_would_tell(client, state):
    """Without a key and observations nothing says that `id` identifies; the sealed rows do."""
    ingest(client, 0)
    wanted = definitions()
    wanted.observations = []
    client.features.apply(wanted)
    by_id = msgspec.structs.replace(wanted.views[0], name="by_id", entities=["flight"])
    wanted.views.append(by_id)
    client.features.apply(wanted)
    client.batches.declare("air", RawDataset(name="flights", seals=[SECRET]))
    sealed = ingest(client, 1)[0]
    work(state)
    failed = {run.view: run.error for run in client.features.runs("air", batch=sealed.id, state="failed")}
    assert set(failed) == {"plan", "by_id"}
    assert "is sealed (holdout 'secret')" in failed["plan"]
    assert "have 1.0 rows each in sealed batch" in failed["by_id"]
    assert client.features.online("air", ["plan"], {"id": [100]}).views["plan"][0].event is None


def test_rows_of_sealed_batches_are_kept_from_readers(client, state):
    client.batches.declare(
        "air", RawDataset(name="flights", seals=[Seal(holdout="secret", partitions=["day1"], columns=["delay"])])
    )
    _, sealed, later = ingest(client, 0, 1, 2)
    client.features.apply(aggregates())
    work(state)
    assert not client.features.rows("air", "late", batch=sealed.id).height
    hidden = features.view_rows(state, "air", view(), sealed=True).filter(pl.col("_batch") == sealed.id)
    assert hidden["delay"].null_count() < hidden.height
    first_of_later = client.features.rows("air", "late", batch=later.id).sort("event_timestamp").row(0, named=True)
    assert first_of_later["delay"] is not None
    prepared = features.prepared_rows(state, aggregates(), "landed", batches=[sealed])
    assert prepared["delay"].null_count() == prepared.height
    assert (
        features.prepared_rows(state, aggregates(), "landed", batches=[sealed], sealed=True)["delay"].null_count() == 0
    )
    assert client.features.online("air", ["late"], {"origin": ["JFK"]}).views["late"][0].batch == later.id


def test_a_correction_of_an_open_batch_does_not_tell_sealed_values(client, state):
    client.batches.declare(
        "air", RawDataset(name="flights", seals=[Seal(holdout="secret", partitions=["day1"], columns=["delay"])])
    )
    _, sealed = ingest(client, 0, 1)
    client.features.apply(aggregates())
    work(state)
    better = ingest(client, 0, delay=1000.0)[0]
    work(state)
    told = client.features.rows("air", "late", batch=better.id)
    assert told["event_timestamp"].max() <= DAY + 23 * HOUR
    kept = features.view_rows(state, "air", view(), sealed=True).filter(pl.col("_batch") == better.id)
    assert kept["event_timestamp"].max() > DAY + 23 * HOUR
    assert sealed.sealed == "secret"


def test_online_values_are_the_newest_and_only_the_fields_asked(client, state):
    ingest(client, 0, 1)
    client.features.apply(definitions())
    work(state)
    answer = client.features.online("air", ["late:delay", "plan"], {"origin": ["LGA", "XXX"], "id": [105, 999]})
    newest = (
        client.features.rows("air", "late")
        .filter(pl.col("origin") == "LGA")
        .sort("event_timestamp")
        .row(-1, named=True)
    )
    assert answer.views["late"][0].values == {"delay": newest["delay"]}
    assert answer.views["late"][0].event == newest["event_timestamp"]
    assert answer.views["late"][1].values == {"delay": None}
    assert answer.views["plan"][0].values == {"delay": 15.0}
    with pytest.raises(BadInput, match="entities for view 'late' 'origin': is missing; did you mean 'origins'"):
        client.features.online("air", ["late"], {"origins": ["LGA"]})
    with pytest.raises(BadInput, match="did you mean 'late'"):
        client.features.online("air", ["lates"], {"origin": ["LGA"]})


def test_an_older_push_does_not_overwrite_a_newer_one(client, state):
    ingest(client, 0)
    client.features.apply(definitions())
    work(state)
    stamp = (DAY + 100 * HOUR).isoformat()
    new = PushRequest(project="air", rows=[{"id": 5, "delay": 1.5, "event_timestamp": stamp}])
    old = PushRequest(project="air", rows=[{"id": 5, "delay": 9.0, "event_timestamp": DAY.isoformat()}])
    assert client.features.push("plan", new) == 1
    assert client.features.push("plan", old) == 1
    value = client.features.online("air", ["plan"], {"id": [5]}).views["plan"][0]
    assert value.values == {"delay": 1.5}
    assert client.features.rows("air", "plan").filter(pl.col("id") == 5).height == 3
    assert client.features.rows("air", "plan", batch=value.batch).height == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 5, "delay": 1.5}, "has no event_timestamp"),
        ({"id": 5, "delay": 1.5, "event_timestamp": "2013-06-01T00:00:00"}, "no time zone"),
        ({"id": 5, "delays": 1.5, "event_timestamp": "2013-06-01T00:00:00Z"}, "did you mean 'delays'"),
        ({"id": None, "delay": 1.5, "event_timestamp": "2013-06-01T00:00:00Z"}, "have no key of its type"),
        ({"id": "five", "delay": 1.5, "event_timestamp": "2013-06-01T00:00:00Z"}, "have no key of its type"),
        ({"id": 5, "delay": "much", "event_timestamp": "2013-06-01T00:00:00Z"}, "not of its field's type"),
    ],
)
def test_a_push_that_makes_no_sense_is_refused(client, state, row, message):
    ingest(client, 0)
    client.features.apply(definitions())
    work(state)
    with pytest.raises(BadInput, match=message):
        client.features.push("plan", PushRequest(project="air", rows=[row]))


def test_mistakes_against_the_data_are_found_when_definitions_are_applied(client):
    with pytest.raises(NotFound, match="data set of project 'air' 'flights'"):
        client.features.apply(definitions())
    ingest(client, 0)
    wrong = definitions()
    wrong.prepared[0].sql = "SELECT *, planed AS landed FROM flights"
    with pytest.raises(BadInput, match=r'"planed" not found'):
        client.features.apply(wrong)
    wrong = definitions()
    wrong.views[0].pipeline.known = "landing"
    with pytest.raises(BadInput, match="'landing': is a column they lack; did you mean 'landed'"):
        client.features.apply(wrong)
    wrong = definitions()
    wrong.views[1].fields.append(Field(name="delays", type="Float32"))
    with pytest.raises(BadInput, match="did you mean 'delay'"):
        client.features.apply(wrong)
    wrong = definitions()
    wrong.observations[0].label = "late"
    with pytest.raises(BadInput, match="'late': is a column they lack"):
        client.features.apply(wrong)
    with pytest.raises(NotFound, match="were never applied"):
        client.features.definitions("air")


def test_a_failure_is_told_with_its_reason_and_mended_by_a_correction(client, state):
    client.batches.declare("air", RawDataset(name="flights"))
    client.features.apply(definitions())
    ingest(client, 0)
    twice = flights(1).with_columns(delay=pl.when(pl.col("id") == 105).then(1e30).otherwise("delay"))
    client.batches.ingest("air", "flights", twice, "day1")
    ingest(client, 2)
    work(state)
    assert [run.state for run in client.features.runs("air", view="late")] == ["succeeded", "failed", "failed"]
    with pytest.raises(Conflict, match=r"beyond 1e\+24"):
        client.features.wait("air", timeout=5)
    ingest(client, 1)
    work(state)
    client.features.wait("air", timeout=5)
    runs = list(client.features.runs("air", view="late"))
    assert [run.state for run in runs] == ["succeeded"] * 3
    assert client.features.rows("air", "late")["event_timestamp"].n_unique() > 60


def joined() -> Definitions:
    """Return definitions whose rows need a second source."""
    known = definitions()
    known.prepared[0].sources.append("airports")
    known.prepared[0].sql += " LEFT JOIN airports ON faa = origin"
    return known


AIRPORTS = pl.DataFrame({"faa": ["JFK", "LGA"], "height": [13, 22]})


def test_a_view_waits_for_the_first_batch_of_a_source_and_goes_on_by_itself(client, state, monkeypatch):
    for name in ("flights", "airports"):
        client.batches.declare("air", RawDataset(name=name))
    client.features.apply(joined())
    ingest(client, 0, 1)
    assert work(state) == 4
    assert {run.error for run in client.features.runs("air", state="waiting")} == {"waits for a batch of 'airports'"}
    with pytest.raises(Unavailable, match=r"view '\w+'.*waits for a batch of 'airports'.*go on by themselves"):
        client.features.wait("air", timeout=5)
    with pytest.raises(Unavailable, match="waits for a batch of 'airports'"):
        client.features.rows("air", "late")
    monkeypatch.setenv("CELLWORK_URL", client.connection.url)
    monkeypatch.setenv("CELLWORK_TOKEN", "author")
    listed = CliRunner().invoke(main, ["feature", "list", "--project", "air"]).output
    assert listed.count("waits for a batch of 'airports'") == 2

    client.batches.ingest("air", "airports", AIRPORTS, "all")
    work(state)
    client.features.wait("air", timeout=5)
    assert client.features.rows("air", "late").height > 20
    views = json.loads(CliRunner().invoke(main, ["feature", "list", "--project", "air", "--json"]).output)
    assert {view["name"]: view["state"] for view in views} == {"late": "ready", "plan": "ready"}


def test_a_source_that_arrives_while_its_run_is_looked_at_is_not_missed(client, state):
    for name in ("flights", "airports"):
        client.batches.declare("air", RawDataset(name=name))
    client.features.apply(joined())
    ingest(client, 0)
    run = feature_queue.claim(state)
    client.batches.ingest("air", "airports", AIRPORTS, "all")
    assert feature_queue.hold(state, run, ["airports"]) is False
    execute(state, run)
    work(state)
    assert not list(client.features.runs("air", state="waiting"))


def test_what_waits_when_the_platform_stops_is_looked_at_again(client, state):
    for name in ("flights", "airports"):
        client.batches.declare("air", RawDataset(name=name))
    client.features.apply(joined())
    ingest(client, 0)
    work(state)
    feature_queue.recover(state)
    assert work(state) == 2
    assert len(list(client.features.runs("air", state="waiting"))) == 2


def test_a_run_that_a_crash_left_is_executed_again_with_the_same_result(client, state):
    ingest(client, 0, 1)
    client.features.apply(definitions())
    crashed = feature_queue.claim(state)
    assert crashed is not None
    execute(state, crashed)  # all but the record survives
    with state.engine.begin() as db:
        db.execute(
            text("UPDATE pipeline_runs SET state = 'running', step_until = NULL WHERE id = :id"), {"id": crashed.id}
        )
    feature_queue.recover(state)
    work(state)
    rows = client.features.rows("air", "late")
    assert not rows.select("origin", "event_timestamp").is_duplicated().any()
    assert {run.state for run in client.features.runs("air")} == {"succeeded"}


def test_a_correction_that_a_crash_left_is_executed_again_with_the_same_result(client, state):
    ingest(client, 0, 1)
    client.features.apply(definitions())
    work(state)
    better = ingest(client, 0, delay=1000.0)[0]
    work(state)
    whole = ordered(client.features.rows("air", "late", batch=better.id))
    with state.engine.begin() as db:
        db.execute(text("UPDATE pipeline_runs SET state = 'running' WHERE batch = :b"), {"b": better.id})
    feature_queue.recover(state)
    work(state)
    assert whole.height
    assert ordered(client.features.rows("air", "late", batch=better.id)).equals(whole)


def test_the_worker_follows_batches_and_stops_twice(client, state):
    client.batches.declare("air", RawDataset(name="flights"))
    client.features.apply(definitions())
    worker = Worker(state)
    worker.start()
    worker.start()
    ingest(client, 0, 1)
    seen: list[int] = []
    client.features.wait("air", timeout=30, progress=seen.append)
    worker.stop()
    worker.stop()
    assert seen[-1] == 0
    assert client.features.rows("air", "late").height
    assert not any(thread.name == "feature-pipelines" for thread in threading.enumerate())


FILE = """
from cellwork.features import Aggregate, Prepared, RawDataset, Rolling
from cellwork.features.feast import PipelineSource
from feast import Entity, FeatureView, Field, ValueType
from feast.types import Int64

flights = RawDataset(name="flights", key=["id"], owner="ada")
landed = Prepared(name="landed", sources=["flights"], sql="SELECT *, planned + INTERVAL 2 HOUR AS landed FROM flights")
origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
pipeline = Rolling(rows="landed", event="planned", known="landed", window="6h", every="1h", aggregates={"n": Aggregate(function="count")})
late = FeatureView(name="late", entities=[origin], schema=[Field(name="n", dtype=Int64)], source=PipelineSource(pipeline))
"""


def test_an_author_applies_a_definitions_file_waits_and_reads(client, state, tmp_path):
    (tmp_path / "cellwork.toml").write_text('[project]\nname = "air"\n')
    (tmp_path / "definitions.py").write_text(FILE)
    project, said, worker = projects.read(tmp_path), [], Worker(state)
    worker.start()
    applied = author.apply(project, client)
    assert applied.changed == ["prepared:landed", "entity:origin", "view:late"]
    assert client.batches.declared("air")[0].owner == "ada"
    ingest(client, 0)
    author.wait("air", progress=said.append, client=client, timeout=30)
    worker.stop()
    assert not said or said[-1] == "feature pipelines: done"
    assert author.read_online(["late"], {"origin": ["LGA"]}, "air", client=client).views["late"][0].values == {"n": 2}
    assert author.rows("late", "air", client=client).height
    assert [view.name for view in author.views("air", client=client)] == ["late"]
    assert author.apply(project, client).changed == []
    assert state.home.feast_registry("air").stat().st_size > 100


def test_lineage_leads_from_feature_set_to_batches_and_definition(client, state):
    first, second = ingest(client, 0, 1)
    client.features.apply(definitions())
    work(state)
    run = list(client.features.runs("air", view="late"))[-1]
    with state.engine.connect() as db:
        edges = set(
            db.execute(text("SELECT relation, target FROM edges WHERE source = :s"), {"s": run.feature_set}).all()
        )
    assert edges == {("built_from", first.id), ("built_from", second.id), ("made_by", "view:air/late@1")}
    ready = [event for event in records.events(state.engine, 0, "features.ready") if event.data["view"] == "late"]
    assert [event.subject for event in ready][-1] == run.feature_set


def test_prepared_rows_are_kept_until_a_source_or_the_statement_changes(client, state):
    day = ingest(client, 0)[0]
    client.features.apply(definitions())
    made = features.prepared_rows(state, definitions(), "landed")
    folder = state.home.prepared("air", "landed")
    first = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert features.prepared_rows(state, definitions(), "landed").equals(made)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == first
    other = definitions()
    other.prepared[0].sql += " WHERE id > 5"
    assert features.prepared_rows(state, other, "landed").height == 18
    assert [path.name.split("-")[0] for path in folder.iterdir()] == [day.id]
    assert not features.prepared_rows(state, definitions(), "landed", batches=[]).height


def test_feasts_registry_is_kept_as_it_came(client, state):
    client.batches.declare("air", RawDataset(name="flights"))
    wanted = definitions()
    wanted.feast_registry = base64.b64encode(b"registry").decode()
    client.features.apply(wanted)
    assert state.home.feast_registry("air").read_bytes() == b"registry"
    wanted.feast_registry = "not base64!"
    with pytest.raises(BadInput, match="is not base64"):
        client.features.apply(wanted)


def test_a_month_of_days_is_filled_in_seconds(client, state):
    ingest(client, *range(20))
    client.features.apply(definitions())
    started = time.monotonic()
    assert work(state) == 40
    assert time.monotonic() - started < 20
