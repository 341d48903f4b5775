"""Features in the platform service: over HTTP where a client is concerned, on real tables and databases throughout."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from feature_world import DAY, definitions, flights, new_state, service, work
from sqlalchemy import text

from cellwork import features as author
from cellwork import project as projects
from cellwork.client import Client
from cellwork.errors import BadInput, NotFound, Unavailable
from cellwork.features import history
from cellwork.wire.batches import Batch, RawDataset
from cellwork.wire.features import Entity, Field, Prepared, PushRequest, Select, View
from cellwork_hub import records
from cellwork_hub.platform import features
from cellwork_hub.platform.feature_worker import Worker
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
        ({"id": "five", "delay": 1.5, "event_timestamp": "2013-06-01T00:00:00Z"}, "not of its key's type"),
        ({"id": 5, "delay": "much", "event_timestamp": "2013-06-01T00:00:00Z"}, "not of its field's type"),
        ({"id": 5, "delay": {"a": 1}, "event_timestamp": "2013-06-01T00:00:00Z"}, "not one value"),
        ({"id": 5, "delay": 10**40, "event_timestamp": "2013-06-01T00:00:00Z"}, "beyond 128 bits"),
        ({"id": [5], "delay": 1.5, "event_timestamp": "2013-06-01T00:00:00Z"}, "not one value"),
        ({"id": 1.9, "delay": 1.5, "event_timestamp": "2013-06-01T00:00:00Z"}, "1.9 is no whole number"),
        ({"id": 2**63, "delay": 1.5, "event_timestamp": "2013-06-01T00:00:00Z"}, "not of its key's type"),
        ({"id": 10**40, "delay": 1.5, "event_timestamp": "2013-06-01T00:00:00Z"}, "beyond 128 bits"),
        ({"id": 5, "delay": 1.5, "event_timestamp": 1757000000000}, "'1757000000000': is no ISO 8601 text"),
        ({"id": 5, "delay": 1.5, "event_timestamp": ["2013"]}, "is no ISO 8601 text"),
        ({"id": 5, "delay": 1.5, "event_timestamp": "2013-06-01T00:00:00Z", "created_timestamp": 5}, "is no ISO 8601"),
        ({"id": 5, "delay": 1.5, "event_timestamp": "2013-06-01T00:00:00Z", "created_timestamp": 0}, "is no ISO 8601"),
    ],
)
def test_a_push_that_makes_no_sense_is_refused(client, state, row, message):
    ingest(client, 0)
    client.features.apply(definitions())
    work(state)
    with pytest.raises(BadInput, match=message):
        client.features.push("plan", PushRequest(project="air", rows=[row]))


PROFILE_TIME = datetime(2013, 6, 2, tzinfo=UTC)


def profiles(client: Client, state: State) -> None:
    """Apply and fill a view whose features are of every kind; user 1 has a row of it."""
    wanted = definitions()
    wanted.entities.append(Entity(name="user", join_keys=["uid"]))
    wanted.prepared.append(Prepared(name="u", sources=["users"], sql="SELECT * FROM users"))
    fields = [Field(name="n", type="Int64"), Field(name="seen", type="UnixTimestamp"), Field(name="ok", type="Bool")]
    pipeline = Select(rows="u", event="t", known="t")
    wanted.views.append(View(name="prof", entities=["user"], pipeline=pipeline, fields=fields))
    ingest(client, 0)
    row = {"uid": 1, "n": 1, "t": DAY, "seen": DAY, "ok": True}
    client.batches.ingest("air", "users", pl.DataFrame([row]), "users0")
    client.features.apply(wanted)
    work(state)


def profile(**values: object) -> dict[str, object]:
    return {"uid": 1, "n": 2, "seen": None, "ok": None, "event_timestamp": PROFILE_TIME.isoformat(), **values}


def test_a_pushed_value_is_kept_as_it_is_or_refused(client, state):
    profiles(client, state)
    for values, why in (
        ([{"uid": 1.9}], "1.9 is no whole number"),
        ([{"n": 5.7}], "5.7 is no whole number"),
        ([{"n": 2.0**53}], "is no whole number below 2"),
        ([{"ok": 7}], "7 is a number"),
        ([{"seen": 1370044800}], "1370044800 is a number"),
        ([{"seen": "2013-06-02T00:00:00"}], "no time zone"),
        ([{"seen": "yesterday"}], "is not ISO 8601"),
        ([{"n": 2**53 + 1}, {"n": 1.0}], "stands beside a fraction"),
        ([{"uid": 2**53 + 3}, {"uid": 10.0}], "stands beside a fraction"),
        ([{"n": 2**64 - 1}], "not of its field's type"),
    ):
        with pytest.raises(BadInput, match=why):
            client.features.push("prof", PushRequest(project="air", rows=[profile(**each) for each in values]))
    assert client.features.rows("air", "prof").height == 1
    taken = [
        profile(uid=2.0, n=3.0, ok=True, seen="2013-06-02T00:00:00+02:00"),
        profile(uid=3, n=None),
        profile(uid=4, n=4),
    ]
    assert client.features.push("prof", PushRequest(project="air", rows=taken)) == 3
    assert client.features.push("prof", PushRequest(project="air", rows=[profile(uid=2**60 + 1, n=2**60 + 3)])) == 1
    rows = client.features.rows("air", "prof").sort("uid").select("uid", "n", "seen", "ok").rows()
    assert rows[1:] == [
        (2, 3, datetime(2013, 6, 1, 22, tzinfo=UTC), True),
        (3, None, None, None),
        (4, 4, None, None),
        (2**60 + 1, 2**60 + 3, None, None),
    ]


def test_a_whole_number_that_no_rolling_feature_holds_is_refused(client, state):
    client.batches.declare("air", RawDataset(name="flights"))
    client.features.apply(definitions())
    row = {"origin": "JFK", "flights": 2**64 - 1, "delay": 1.0, "event_timestamp": "2013-06-01T00:00:00Z"}
    with pytest.raises(BadInput, match="not of its field's type"):
        client.features.push("late", PushRequest(project="air", rows=[row]))
    with pytest.raises(BadInput, match="not of its key's type"):
        client.features.push("late", PushRequest(project="air", rows=[{**row, "origin": 2**64 - 1, "flights": 1}]))
    with pytest.raises(BadInput, match="not one value"):
        client.features.push("late", PushRequest(project="air", rows=[{**row, "origin": ["JFK"], "flights": 1}]))
    ignored = {**row, "flights": 1, "more": {"a": [10**20]}, "most": 10**30}
    assert client.features.push("late", PushRequest(project="air", rows=[ignored])) == 1


def test_an_entity_that_no_store_can_name_is_refused(client, state):
    ingest(client, 0)
    client.features.apply(definitions())
    work(state)
    with pytest.raises(BadInput, match="beyond 64 bits"):
        client.features.online("air", ["plan"], {"id": [1, 10**25]})


def pushed(client: Client, origin: str, count: int, day: int) -> int:
    row = {"origin": origin, "flights": count, "delay": 1.0, "event_timestamp": (DAY + day * 24 * HOUR).isoformat()}
    return client.features.push("late", PushRequest(project="air", rows=[row], distinct=True))


def counts(client: Client, *origins: str) -> list[object]:
    found = client.features.online("air", ["late"], {"origin": list(origins)}).views["late"]
    return [value.values["flights"] for value in found]


def redefine(client: Client) -> None:
    wanted = definitions()
    wanted.views[0].fields[0] = Field(name="flights", type="Int32")
    assert client.features.apply(wanted).changed == ["view:late"]


def test_a_view_fed_by_pushes_goes_on_online_when_its_definition_changes(client, state):
    client.batches.declare("air", RawDataset(name="flights"))
    client.features.apply(definitions())
    pushed(client, "SFO", 3, 1)
    redefine(client)
    assert counts(client, "SFO") == [None], "what nothing fills is served at once, as it is in history"
    pushed(client, "SFO", 9, 2)
    assert counts(client, "SFO") == [9]
    with features.opened(state, "air") as store:
        store.activate("late", 1)  # as when the platform ended right after the definitions were kept
    pushed(client, "LAX", 5, 2)
    assert counts(client, "SFO", "LAX") == [9, 5]


def test_a_push_does_not_let_readers_see_a_view_that_is_still_being_filled(client, state):
    ingest(client, 0)
    client.features.apply(definitions())
    work(state)
    pushed(client, "SFO", 3, 1)
    redefine(client)
    pushed(client, "SFO", 9, 2)
    before = counts(client, "JFK", "SFO")
    assert before[0] is not None
    assert before[1] == 3
    work(state)
    assert counts(client, "JFK", "SFO") == [before[0], 9]


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
    author.wait("air", progress=said.append, client=client, timeout=120)
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
    """Seconds of the processor, however busy it is."""
    ingest(client, *range(20))
    client.features.apply(definitions())
    started = time.process_time()
    assert work(state) == 40
    assert time.process_time() - started < 20
