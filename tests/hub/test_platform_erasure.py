"""A subject is erased from everything a project keeps, once and for good, whenever the process is killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import FrameType

import msgspec
import polars as pl
import pytest
from click.testing import CliRunner
from feature_world import DAY, new_state, service, work
from raw_platform import call

from cellwork.cli import main
from cellwork.client import Client
from cellwork.errors import BadInput, Conflict, Refused
from cellwork.wire.batches import Check, RawDataset, Seal
from cellwork.wire.datasets import Dataset, DatasetRequest
from cellwork.wire.erasures import EraseRequest
from cellwork.wire.features import (
    Aggregate,
    Definitions,
    Entity,
    Field,
    Observations,
    Prepared,
    PushRequest,
    Rolling,
    Select,
    View,
)
from cellwork_hub import records
from cellwork_hub.platform import batches, datasets, erasure, feature_tables, features
from cellwork_hub.platform.state import State

WHO = "user-bob-4711"


def visits(day: int) -> pl.DataFrame:
    """Return a visit an hour; every fourth is of `WHO`."""
    hours = range(16)
    return pl.DataFrame(
        {
            "visit": [day * 100 + hour for hour in hours],
            "user": [WHO if hour % 4 == 0 else f"user-{hour}" for hour in hours],
            "shop": ["north" if hour % 2 else "south" for hour in hours],
            "at": [DAY + timedelta(days=day, hours=hour) for hour in hours],
            "paid": [4711.25 if hour % 4 == 0 else float(hour) for hour in hours],
        },
        schema_overrides={"at": pl.Datetime("us", "UTC")},
    )


def definitions() -> Definitions:
    rolling = Rolling(
        rows="made", event="at", known="at", window="6h", every="1h",
        aggregates={"paid_sum": Aggregate(function="sum", column="paid")},
    )  # fmt: skip
    select = Select(rows="made", event="at", known="at")
    return Definitions(
        project="shop",
        prepared=[Prepared(name="made", sources=["visits"], sql="SELECT * FROM visits")],
        entities=[Entity(name=name, join_keys=[name]) for name in ("user", "visit", "shop")],
        observations=[
            Observations(
                name="visits",
                rows="made",
                id="visit",
                at="at",
                keys={"user": "user", "visit": "visit"},
                inputs=["shop"],
            ),
            Observations(
                name="bare_visits", rows="made", id="visit", at="at", keys={"visit": "visit"}, inputs=["shop"]
            ),
        ],
        views=[
            View(name="of_user", entities=["user"], pipeline=select, fields=[Field(name="paid", type="Float64")]),
            View(name="of_visit", entities=["visit"], pipeline=select, fields=[Field(name="paid", type="Float64")]),
            View(name="of_shop", entities=["shop"], pipeline=rolling, fields=[Field(name="paid_sum", type="Float64")]),
        ],
    )


def filled(state: State, client: Client) -> None:
    """Make a shop: two days, one corrected, one sealed, a held delivery, rows in quarantine, features."""
    seal = Seal(holdout="secret", partitions=["day9"], columns=["shop"])
    check = Check(column="paid", greatest=5000)
    declared = RawDataset(name="visits", key=["visit"], subject="user", seals=[seal], checks=[check])
    client.batches.declare("shop", declared)
    client.batches.declare("shop", RawDataset(name="prices"))
    client.batches.declare("shop", RawDataset(name="weather", erasable=False))
    client.batches.ingest("shop", "visits", visits(0), "day0")
    client.batches.ingest("shop", "visits", visits(0).head(12), "day0")
    client.batches.ingest("shop", "visits", pl.concat([visits(1), visits(1).head(1)]), "day1")
    client.features.apply(definitions())
    work(state)
    client.batches.ingest("shop", "visits", visits(9), "day9")
    with pytest.raises(Refused):
        client.batches.ingest("shop", "visits", visits(2).with_columns(paid=pl.lit(9000.0)), "day2")


def traces(state: State) -> list[str]:
    """Return the files under the home that still tell of `WHO`: by bytes, or by the rows of parquet files."""
    found = []
    for path in state.home.root.rglob("*"):
        if "of_shop" in path.parts:
            continue  # sums over many subjects keep their value, and the tombstone says so
        if path.is_file() and (WHO.encode() in path.read_bytes() or _in_rows(path)):
            found.append(str(path.relative_to(state.home.root)))
    return found


def _in_rows(path: Path) -> bool:
    if path.suffix != ".parquet" or "_delta_log" in path.parts:
        return False
    rows = pl.read_parquet(path, hive_partitioning=False)
    texts = [name for name, dtype in rows.schema.items() if dtype == pl.String]
    numbers = [name for name, dtype in rows.schema.items() if dtype.is_float()]
    return any(WHO in rows[name].to_list() for name in texts) or any(
        4711.25 in rows[name].to_list() for name in numbers
    )


def check_gone(state: State) -> None:
    assert traces(state) == []
    for batch in batches.raw.select(state, "project = 'shop'"):
        rows = batches.raw_rows(state, "shop", "visits", [batch.id])
        assert (batch.rows, WHO in rows["user"].to_list()) == (rows.height, False)
    assert batches.raw_rows(state, "shop", "visits", sealed=True).height == 9 + 12 + 12
    views = {view.name: view for view in definitions().views}
    by_user = feature_tables.read(state, "shop", views["of_user"], 1, sealed=True)
    by_visit = feature_tables.read(state, "shop", views["of_visit"], 1, sealed=True)
    assert by_user.height > 0
    assert set(by_visit["visit"]) & {0, 4, 8, 100, 104, 108} == set()
    assert set(by_visit["visit"]) >= {1, 2, 3, 101, 115}


def test_nothing_of_a_subject_is_left_and_the_rest_stays(client: Client, state: State) -> None:
    filled(state, client)
    assert len(traces(state)) > 5
    before = client.features.rows("shop", "of_shop")
    done = client.batches.erase("shop", WHO, "asked for it")
    check_gone(state)
    assert (done.rows["visits"] >= 11, set(done.views), done.aggregates) == (True, {"of_user", "of_visit"}, ["of_shop"])
    assert (done.undeclared, done.by) == (["prices"], "ada")
    assert client.features.rows("shop", "of_shop").equals(before)
    statistics = {c.name: c for c in client.batches.describe("shop", "visits").columns}
    assert statistics["paid"].max == 15.0
    assert client.batches.sql("shop", f"SELECT * FROM visits WHERE \"user\" = '{WHO}'")[0].height == 0
    assert [h.rows for h in client.batches.held("shop", "visits")] == [12]
    with state.engine.connect() as db:
        audit = db.exec_driver_sql("SELECT reason, after FROM audit WHERE action = 'subject.erase'").one()
    assert audit[0] == "asked for it"
    assert WHO not in audit[1]


def built(state: State, name: str, observations: str) -> Dataset:
    """Build a dataset of day 0 and 1, with the features of users and visits."""
    work(state)
    request = DatasetRequest(
        project="shop", name=name, observations=observations, features=["of_visit"] if name == "bare" else ["of_user", "of_visit"],
        start=DAY, end=DAY + timedelta(days=2), labels=False,
    )  # fmt: skip
    return datasets.build(state, call(), request)


def test_the_tombstone_says_which_places_were_rewritten_and_which_were_not(client: Client, state: State) -> None:
    filled(state, client)
    whole, bare = built(state, "training", "visits"), built(state, "bare", "bare_visits")
    done = client.batches.erase("shop", WHO, "asked for it")
    rewritten = {place.what: place.names for place in done.rewritten}
    assert rewritten == {
        "raw batches": [f"visits: {done.rows['visits']} rows"], "feature views": ["of_user", "of_visit"],
        "datasets": [f"training {whole.id}: 7 rows"], "online values": ["of_user", "of_visit"], "prepared rows and snapshots": [],
    }  # fmt: skip
    untouched = {place.what: place for place in done.untouched}
    assert untouched["datasets without a column of the subject"].names == [f"bare {bare.id}"]
    assert untouched["rolling aggregates"].names == ["of_shop"]
    assert untouched["raw data sets without a subject"].names == ["prices"]
    assert {"topics, route tables, audit and logs of services", "models, notebooks and copies"} < set(untouched)
    assert all(place.said and place.way_out for place in done.untouched)
    with state.engine.connect() as db:
        after = json.loads(db.exec_driver_sql("SELECT after FROM audit WHERE action = 'subject.erase'").scalar_one())
    assert (after["rewritten"], after["untouched"]) == ([*rewritten], [*untouched])
    assert client.batches.erasures("shop") == [done]


def test_rows_of_the_subject_in_a_dataset_are_empty_in_their_place_and_all_others_stay(
    client: Client, state: State
) -> None:
    filled(state, client)
    record = built(state, "training", "visits")
    file = state.home.dataset(record.id) / "data.parquet"
    before = pl.read_parquet(file)
    assert before.filter(pl.col("user") == WHO).height > 0
    for reason in ("asked for it", "again"):
        client.batches.erase("shop", WHO, reason)
        after = pl.read_parquet(file)
        own = before["user"] == WHO
        assert after.select("at", "_batch").equals(before.select("at", "_batch"))
        assert after.filter(~own).equals(before.filter(~own))
        assert after.filter(own).drop("at", "_batch").null_count().row(0) == (own.sum(),) * (after.width - 2)
        kept = datasets.get(state, record.id)
        assert (kept.rows, kept.erased) == (before.height, own.sum())
        assert msgspec.json.decode(file.with_name("manifest.json").read_bytes(), type=Dataset) == kept
    check_gone(state)
    assert [p.what for p in client.batches.erasures("shop")[1].rewritten] == ["prepared rows and snapshots"]


TRAINING = DatasetRequest(
    project="shop", name="training", observations="visits", features=["of_user"], start=DAY, end=DAY + timedelta(days=2), labels=False
)  # fmt: skip


def test_a_dataset_that_was_read_before_an_erasure_is_not_stored_after_it(client: Client, state: State) -> None:
    filled(state, client)
    work(state)
    asked = datasets.planned(state, TRAINING)
    rows = datasets.observations(state, asked)
    assert WHO in rows["user"]
    client.batches.erase("shop", WHO, "asked for it")
    with pytest.raises(Conflict, match="was read before a subject was erased"):
        datasets.make(state, call(), asked, rows)
    assert traces(state) == []
    assert (
        WHO
        not in pl.read_parquet(state.home.dataset(datasets.build(state, call(), TRAINING).id) / "data.parquet")["user"]
    )


def test_an_erasure_that_took_nothing_lets_what_is_being_built_be_stored(client: Client, state: State) -> None:
    filled(state, client)
    work(state)
    asked = datasets.planned(state, TRAINING)
    rows = datasets.observations(state, asked)
    assert client.batches.erase("shop", "nobody-here", "asked for it").rows == {}
    assert datasets.make(state, call(), asked, rows).rows == rows.height


def test_online_values_of_the_subject_are_forgotten_and_others_stay(client: Client, state: State) -> None:
    from cellwork.wire.features import OnlineRequest

    filled(state, client)
    asked = OnlineRequest(
        project="shop", features=["of_user", "of_visit"], entities={"user": [WHO, "user-1"], "visit": [104, 101]}
    )
    before = client.features.online("shop", asked.features, asked.entities)
    assert [value.values.get("paid") for value in before.views["of_user"]] == [4711.25, 1.0]
    client.batches.erase("shop", WHO, "asked for it")
    read = client.features.online("shop", asked.features, asked.entities)
    assert [value.values.get("paid") for value in read.views["of_user"]] == [None, 1.0]
    assert [value.values.get("paid") for value in read.views["of_visit"]] == [None, 1.0]


@pytest.mark.parametrize("pushed_to", [0, 1], ids=["taken out by key", "made anew"])
def test_rows_pushed_while_an_erasure_clears_a_table_stay(client: Client, state: State, pushed_to: int) -> None:
    """At each table the push comes after the erasure has read it, and before it removes the files that it does not know."""
    filled(state, client)
    known = definitions().views[pushed_to]
    pushed: list[Future[int]] = []

    def push(number: int) -> int:
        row = {"user": "other", "visit": 9000, "paid": 9000.0 + number, "event_timestamp": DAY.isoformat()}
        return features.push(state, call(), known.name, PushRequest(project="shop", rows=[row]))

    def trace(frame: FrameType, event: str, _: object) -> None:
        if event == "return" and frame.f_code.co_name == "set_table_properties":
            pushed.append(pool.submit(push, len(pushed)))
            futures.wait(pushed, timeout=1)  # it is through, or waits for the erasure

    with ThreadPoolExecutor(1) as pool:
        sys.setprofile(trace)
        try:
            erasure.erase_subject(state, call(), "shop", EraseRequest(value=WHO, reason="asked for it"))
        finally:
            sys.setprofile(None)
        assert [future.result() for future in pushed] == [1] * len(pushed)
    rows = feature_tables.read(state, "shop", known, 1, sealed=False)
    there = rows["paid"].filter(rows["paid"] >= 9000)
    assert sorted(there) == [9000.0 + number for number in range(len(pushed))] != []


def test_erasing_twice_finds_nothing_and_the_same_delivery_brings_nothing_back(client: Client, state: State) -> None:
    filled(state, client)
    client.batches.erase("shop", WHO, "asked for it")
    assert client.batches.erase("shop", WHO, "again").rows == {}
    assert not client.batches.ingest("shop", "visits", pl.concat([visits(1), visits(1).head(1)]), "day1").new
    check_gone(state)
    assert [e.reason for e in client.batches.erasures("shop")] == ["asked for it", "again"]


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (RawDataset(name="visits", subject="usr"), "did you mean 'user'"),
        (RawDataset(name="visits", subject="paid"), "is of type double"),
        (RawDataset(name="visits", subject="user", erasable=False), "contradicts erasable=False"),
        (
            RawDataset(name="visits", subject="user", seals=[Seal(holdout="h", partitions=["x"], columns=["user"])]),
            "sealed",
        ),
    ],
)
def test_a_subject_that_could_not_be_erased_is_refused_when_it_is_declared(
    client: Client, declared: RawDataset, words: str
) -> None:
    client.batches.ingest("shop", "visits", visits(0), "day0")
    with pytest.raises(BadInput, match=words):
        client.batches.declare("shop", declared)


def test_an_erasure_without_subject_or_reason_is_refused(client: Client) -> None:
    client.batches.ingest("shop", "visits", visits(0), "day0")
    with pytest.raises(BadInput, match="has no data set with a subject"):
        client.batches.erase("shop", WHO, "asked")
    with pytest.raises(BadInput, match="lacks the subject or the reason"):
        client.batches.erase("shop", WHO, " ")


def test_a_subject_of_a_project_without_definitions_is_erased(client: Client, state: State) -> None:
    client.batches.declare("shop", RawDataset(name="visits", subject="user"))
    client.batches.ingest("shop", "visits", visits(0), "day0")
    done = client.batches.erase("shop", WHO, "asked")
    assert (done.state, done.rows, traces(state)) == ("done", {"visits": 4}, [])


def test_the_command_line_erases_after_a_question(client: Client, state: State) -> None:
    filled(state, client)
    asked = ["data", "erase", WHO, "--reason", "letter", "--project", "shop"]
    assert CliRunner().invoke(main, asked, input="n\n").exit_code == 1
    assert traces(state) != []
    said = CliRunner().invoke(main, [*asked, "--yes"])
    lines = said.output.splitlines()
    assert lines[0].endswith(" rows of visits")
    assert [line.partition(":")[2].partition("(")[0].strip() for line in lines if line.startswith("rewritten")][:3] == [
        "raw batches", "feature views", "online values",
    ]  # fmt: skip
    left = "\n".join(lines[lines.index(next(line for line in lines if line.startswith("NOT touched"))) :])
    for words in (
        "rolling aggregates (of_shop)",
        "topics, route tables, audit and logs of services",
        "raw data sets without a subject (prices)",
    ):
        assert f"NOT touched: {words}" in left
    assert traces(state) == []


# A kill at any point

NURSERY = """
import json, os, signal, sys
from pathlib import Path
from cellwork_hub.platform import erasure
from feature_world import new_state
from raw_platform import call
from test_platform_erasure import WHO
from cellwork.wire.erasures import EraseRequest

def run(folder, port, point):
    state, seen = new_state(Path(folder)), []
    state.context.ports["public"] = port
    def trace(frame, event, argument):
        name = frame.f_globals.get("__name__", "") + "." + frame.f_code.co_name
        if event == "return" and name.startswith("cellwork"):
            seen.append(name)
            if point == f"{name}#{seen.count(name)}":
                os.kill(os.getpid(), signal.SIGKILL)
    if point:
        sys.setprofile(trace)
    erasure.erase_subject(state, call(), "shop", EraseRequest(value=WHO, reason="asked"))

for line in sys.stdin:
    child = os.fork()
    if not child:
        run(*json.loads(line))
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
POINTS = [
    "cellwork_hub.platform.erasure_datasets._rewrite#1",
    "cellwork.data.erase.from_file#2",
    "cellwork.data.erase.from_table#2",
    "cellwork_hub.platform.feature_worker.execute#1",
    "cellwork_hub.records.audit#1",
]


@pytest.fixture(scope="module")
def nursery() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", NURSERY]
    made = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    yield made
    made.communicate(timeout=60)


def killed(nursery: subprocess.Popen[str], state: State, point: str, after: float | None = None) -> int:
    """Return the exit code of an erasure that is killed when the function `point` returns, or `after` so many seconds."""
    assert nursery.stdin
    assert nursery.stdout
    nursery.stdin.write(json.dumps([str(state.home.root), state.context.ports["public"], point]) + "\n")
    nursery.stdin.flush()
    process = int(nursery.stdout.readline())
    if after is not None:
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):  # it was through before its moment came
            os.kill(process, signal.SIGKILL)
    return int(nursery.stdout.readline())


def check_resumed(state: State) -> None:
    again = new_state(state.home.root)
    again.context.ports.update(state.context.ports)
    erasure.resume(again)
    erasure.resume(again)
    check_gone(again)
    assert list(state.home.erasing().iterdir()) == []
    with again.engine.connect() as db:
        assert db.exec_driver_sql("SELECT count(*) FROM audit WHERE action = 'subject.erase'").scalar() == 1
        assert db.exec_driver_sql("SELECT count(*) FROM erasures").scalar() == 1
    assert records.events(again.engine, 0, "batch.ready") != []


@pytest.mark.parametrize("point", POINTS)
def test_an_erasure_killed_anywhere_is_finished_by_the_next_start(
    state: State, client: Client, nursery: subprocess.Popen[str], point: str
) -> None:
    filled(state, client)
    dataset = built(state, "training", "visits").id
    assert killed(nursery, state, point) == -signal.SIGKILL
    check_resumed(state)
    assert [done.emptied for done in client.batches.erasures("shop")] == [[f"training {dataset}: 7 rows"]]
    assert datasets.get(state, dataset).erased == 7


@pytest.mark.soak
def test_erasures_killed_at_seeded_moments_are_finished(tmp_path: Path, nursery: subprocess.Popen[str]) -> None:
    rng = random.Random(4711)
    for number in range(12):
        state = new_state(tmp_path / f"home{number}")
        with service(state) as client:
            filled(state, client)
            killed(nursery, state, "", rng.uniform(0.1, 1.5))
            if list(state.home.erasing().glob("*.json")):
                check_resumed(state)
