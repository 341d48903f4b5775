"""Pipeline runs that fail, wait, crash and are executed again; the worker that executes them."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from feature_world import definitions, flights, new_state, service, work
from sqlalchemy import text

from cellwork.cli import main
from cellwork.client import Client
from cellwork.errors import Conflict, Unavailable
from cellwork.wire.batches import Batch, RawDataset
from cellwork.wire.features import Definitions
from cellwork_hub.loop import Loop
from cellwork_hub.platform import feature_queue, features
from cellwork_hub.platform.feature_queue import Rests
from cellwork_hub.platform.feature_worker import Worker, execute, step
from cellwork_hub.platform.state import State


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


def served(client: Client, state: State) -> int | None:
    """Return which revision of `late` readers see; it has values."""
    assert client.features.online("air", ["late"], {"origin": ["JFK"]}).views["late"][0].event
    with features.opened(state, "air") as store:
        return store.active("late")


def test_a_correction_of_a_view_that_changed_does_not_bring_its_old_definition_back(client, state):
    ingest(client, 0)
    client.features.apply(definitions())
    work(state)
    ingest(client, 0, delay=20.0)
    client.features.apply(definitions(window="3h"))
    assert work(state) == 2, "of the old definition nothing is left to do"
    assert served(client, state) == 2


def test_a_batch_that_waited_for_its_schedule_does_not_bring_an_old_definition_back(client, state):
    ingest(client, 0)
    scheduled = definitions()
    scheduled.views[0].schedule = "520w"
    client.features.apply(scheduled)
    work(state)
    ingest(client, 1)
    client.features.apply(definitions(window="3h"))
    work(state)
    assert feature_queue.queue_due(state) == 0
    work(state)
    assert served(client, state) == 2


def test_a_source_that_is_no_longer_needed_does_not_bring_an_old_definition_back(client, state):
    for name in ("flights", "airports"):
        client.batches.declare("air", RawDataset(name=name))
    client.features.apply(joined())
    ingest(client, 0)
    work(state)
    client.features.apply(definitions())
    work(state)
    client.batches.ingest("air", "airports", AIRPORTS, "all")
    work(state)
    assert served(client, state) == 2


def test_a_run_that_began_before_its_view_changed_does_not_bring_its_old_definition_back(client, state):
    ingest(client, 0)
    client.features.apply(definitions())
    work(state)
    ingest(client, 1)
    run = feature_queue.claim(state)
    client.features.apply(definitions(window="3h"))
    work(state)
    assert (run.view, run.revision, served(client, state)) == ("late", 1, 2)
    execute(state, run)
    assert served(client, state) == 2


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
    client.features.wait("air", timeout=60, progress=seen.append)
    worker.stop()
    worker.stop()
    assert seen[-1] == 0
    assert client.features.rows("air", "late").height
    assert not any(thread.name == "feature-pipelines" for thread in threading.enumerate())


def test_a_damaged_online_file_of_one_project_ends_nobodys_pipelines(client, state):
    for project in ("air", "sea"):
        client.batches.ingest(project, "flights", flights(0), "day0")
        client.features.apply(definitions(project))
    work(state)
    online = state.home.online("air")
    for end in ("-wal", "-shm"):
        Path(f"{online}{end}").unlink(missing_ok=True)
    online.write_bytes(b"not a database" * 1000)
    client.batches.ingest("sea", "flights", flights(1), "day1")
    worker = Worker(state)
    worker.start()
    client.features.wait("sea", timeout=60)
    worker.stop()
    assert {run.state for run in client.features.runs("sea")} == {"succeeded"}


def test_a_loop_goes_on_whatever_its_warming_meets():
    stepped = threading.Event()

    class Cold(Loop):
        def warm(self) -> None:
            raise ValueError("cold")

    loop = Cold("cold", lambda: bool(stepped.set()), idle=0.01)
    loop.start()
    assert stepped.wait(60)
    loop.stop()


def lose(client: Client, state: State) -> tuple[Path, Path]:
    """Queue a batch in `air`, whose file is lost, and one in `sea` behind it; returns where the file was and where it is."""
    for project in ("air", "sea"):
        client.batches.ingest(project, "flights", flights(0), "day0")
        client.features.apply(definitions(project))
    work(state)
    lost = ingest(client, 1)[0]
    raw = Path(state.raw_table("air", "flights").uri)
    place, aside = raw / f"_batch={lost.id}", raw.parent / "aside"
    shutil.move(place, aside)
    client.batches.ingest("sea", "flights", flights(1), "day1")
    return place, aside


def test_the_worker_goes_on_with_others_while_a_project_lacks_a_file_and_with_it_when_it_is_back(client, state):
    place, aside = lose(client, state)
    worker = Worker(state)
    worker.start()
    client.features.wait("sea", timeout=60)
    assert len(list(client.features.runs("air", state="succeeded"))) == 2
    shutil.move(aside, place)
    client.features.wait("air", timeout=120)
    worker.stop()
    assert {run.state for run in client.features.runs("air")} == {"succeeded"}


def test_a_lost_file_of_one_project_holds_up_no_other(client, state):
    place, aside = lose(client, state)
    now = [0.0]
    rests = Rests(lambda: now[0])

    def states(project: str) -> list[str]:
        return [run.state for run in client.features.runs(project)]

    steps = 0
    while step(state, rests):
        steps += 1
    assert steps == 3, "the lost one, and two of the other project"
    assert states("sea") == ["succeeded"] * 4
    assert states("air") == ["succeeded", "succeeded", "queued", "queued"]
    shutil.move(aside, place)
    assert not step(state, rests)
    now[0] = 1.0
    while step(state, rests):
        pass
    assert states("air") == ["succeeded"] * 4


def test_who_meets_the_same_again_rests_twice_as_long_up_to_a_minute():
    now = [0.0]
    rests = Rests(lambda: now[0])
    for seconds in (1, 2, 4, 8, 16, 32, 60, 60):
        rests.begin("air")
        now[0] += seconds - 0.5
        assert rests.resting() == ["air"]
        now[0] += 0.5
        assert rests.resting() == []
    rests.end("air")
    rests.begin("air")
    now[0] += 1
    assert rests.resting() == []
