"""Raw batches on an object store: what holds under home holds there, commits of two writers included, and credentials stay a reference."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from feature_world import definitions, flights, new_state, service, work
from s3_server import s3_server

from cellwork.client import Client
from cellwork.data import tables
from cellwork.data.location import Location, address
from cellwork.errors import BadInput, Refused, Unavailable
from cellwork.wire.batches import RawDataset
from cellwork_hub.platform.state import State


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    with s3_server() as options:
        yield options


def on(s3: dict[str, str], folder: Path, name: str = "air") -> State:
    """A platform whose raw store is the bucket, with its credentials in a file of its secrets."""
    state = new_state(folder / "home")
    secret = state.home.secret("raw-store")
    secret.touch(0o600)
    secret.write_text(json.dumps(s3))
    settings = replace(state.context.settings, raw_url=f"s3://raw/{name}", raw_credentials="raw-store")
    return replace(state, context=replace(state.context, settings=settings))


@pytest.fixture
def state(s3: dict[str, str], tmp_path: Path) -> State:
    return on(s3, tmp_path, tmp_path.name)


@pytest.fixture
def client(state: State) -> Iterator[Client]:
    with service(state) as connected:
        yield connected


def bat(number: int) -> str:
    return f"bat_{number:026d}"


def frame(*values: int) -> pl.DataFrame:
    return pl.DataFrame({"x": values, "_row": range(len(values))}, schema={"x": pl.Int64, "_row": pl.Int64})


def test_batches_lie_in_the_store_by_batch_and_nothing_of_them_under_home(client: Client, state: State) -> None:
    first = client.batches.ingest("air", "flights", flights(0), "day0")
    assert not client.batches.ingest("air", "flights", flights(0), "day0").new
    other = client.batches.ingest("air", "flights", flights(0), "day1")
    assert other.batch.id != first.batch.id
    assert client.batches.rows("air", "flights", batch=first.batch.id)["id"].to_list() == flights(0)["id"].to_list()
    table = state.raw_table("air", "flights").table()
    assert {part["_batch"] for part in table.partitions()} == {first.batch.id, other.batch.id}
    assert not list((state.home.root / "data").rglob("*.parquet"))


def test_corrections_time_travel_sql_statistics_and_compaction_are_those_of_a_folder(client: Client) -> None:
    first = client.batches.ingest("air", "flights", flights(0), "day0").batch
    client.batches.ingest("air", "flights", flights(0, delay=50.0), "day0")
    assert client.batches.rows("air", "flights")["delay"].min() == 50.0
    assert client.batches.rows("air", "flights", as_of=first.id)["delay"].min() == 10.0
    rows, _ = client.batches.sql("air", "SELECT count(*) AS n, min(delay) AS least FROM flights")
    assert rows.rows() == [(24, 50.0)]
    described = client.batches.describe("air", "flights")
    assert (described.rows, described.bytes > 0) == (24, True)
    assert client.batches.compact("air", "flights").files == 2
    assert client.batches.rows("air", "flights")["delay"].min() == 50.0


def test_what_is_refused_is_in_quarantine_there_and_an_erased_subject_is_in_no_object(
    client: Client, state: State, s3: dict[str, str]
) -> None:
    client.batches.declare("air", RawDataset(name="people", key=["id"], subject="who"))
    rows = pl.DataFrame({"id": [1, 2, None], "who": ["ada@example.org", "bob@example.org", "ada@example.org"]})
    batch = client.batches.ingest("air", "people", rows, "d").batch
    assert client.batches.rejected(batch.id)["who"].to_list() == ["ada@example.org"]
    client.batches.erase("air", "ada@example.org", "asked")
    assert client.batches.rows("air", "people")["who"].to_list() == ["bob@example.org"]
    for where in (state.raw_table("air", "people"), state.quarantine("air", "people")):
        left = "".join(map(str, where.scan().collect().rows()))
        assert "ada" not in left
        assert all(b"ada@example.org" not in content for content in objects(s3, where))


def objects(s3: dict[str, str], where: Location) -> list[bytes]:
    """Return what stands in every object below `where`."""
    from pyarrow import fs

    there = fs.S3FileSystem(
        access_key=s3["aws_access_key_id"], secret_key=s3["aws_secret_access_key"], region=s3["aws_region"],
        endpoint_override=s3["aws_endpoint_url"],
    )  # fmt: skip
    found = there.get_file_info(fs.FileSelector(where.uri.removeprefix("s3://"), recursive=True))
    paths = [each.path for each in found if each.type == fs.FileType.File]
    assert paths
    return [there.open_input_file(path).read() for path in paths]


def test_pipelines_run_on_it(client: Client, state: State) -> None:
    client.batches.ingest("air", "flights", flights(0), "day0")
    client.features.apply(definitions())
    work(state)
    assert client.features.rows("air", "late").height > 0


WRITER = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import polars as pl
from cellwork.data import tables
from cellwork.data.location import Location

where = Location(sys.argv[2], json.loads(sys.argv[3]))
for number in range(int(sys.argv[4]), int(sys.argv[5])):
    rows = pl.DataFrame({"x": [number], "_row": [0]})
    tables.write(where, rows, f"bat_{number:026d}", known=[])
    print(number, flush=True)
"""


def writer(where: Location, first: int, end: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, json.dumps(sys.path), where.uri, json.dumps(dict(where.options))]
    return subprocess.Popen([*command, str(first), str(end)], stdout=subprocess.PIPE, text=True)


def test_two_writers_at_once_lose_no_commit_of_each_other(s3: dict[str, str], tmp_path: Path) -> None:
    where = Location(f"s3://raw/{tmp_path.name}/two", s3)
    tables.write(where, frame(0), bat(0), known=[])
    both = [writer(where, 1, 9), writer(where, 101, 109)]
    for process in both:
        assert process.wait(120) == 0
    batches = [bat(n) for n in (0, *range(1, 9), *range(101, 109))]
    assert tables.read(where, batches)["x"].to_list() == [0, *range(1, 9), *range(101, 109)]
    assert where.table().version() == 16


def test_a_writer_killed_at_seeded_moments_leaves_a_table_that_reads_and_takes_the_batch_again(
    s3: dict[str, str], tmp_path: Path
) -> None:
    where, generator, known = Location(f"s3://raw/{tmp_path.name}/killed", s3), random.Random(4), []
    tables.write(where, frame(0), bat(0), known=[])
    for attempt in range(3):
        first = 1 + 20 * attempt
        process = writer(where, first, first + 20)
        assert process.stdout
        process.stdout.readline()
        time.sleep(generator.random() * 0.2)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(60)
        said = [int(line) for line in process.stdout]
        last = max([first, *said])
        known += [bat(n) for n in range(first, last + 1)]
        for number in range(first, last + 2):
            tables.write(where, frame(number), bat(number), known=known)
        found = tables.read(where, [bat(0), *known, bat(last + 1)])
        assert found["_batch"].to_list() == [bat(0), *known, bat(last + 1)]
        known.append(bat(last + 1))


def test_a_store_that_does_not_answer_is_named_and_nothing_is_published(state: State) -> None:
    settings = replace(state.context.settings, raw_credentials="gone")
    secret = state.home.secret("gone")
    secret.touch(0o600)
    gone = {"aws_endpoint_url": "http://127.0.0.1:1", "aws_allow_http": "true", "aws_region": "x", "aws_access_key_id": "a",
            "aws_secret_access_key": "b", "max_retries": "0", "retry_timeout": "1s"}  # fmt: skip
    secret.write_text(json.dumps(gone))
    with service(replace(state, context=replace(state.context, settings=settings))) as client:
        with pytest.raises(Unavailable, match=r"raw store 's3://raw/.*does not answer"):
            client.batches.ingest("air", "flights", flights(0), "day0")
        assert list(client.batches.list("air")) == []


@pytest.mark.parametrize(
    ("url", "said"),
    [("s3://key:word@bucket/x", "holds a credential"), ("s3://bucket/x?token=1", "holds a credential"), ("ftp://host/x", "no address"), ("s3:///x", "no address")],
)  # fmt: skip
def test_an_address_that_is_none_or_holds_a_credential_is_refused_without_repeating_it(url: str, said: str) -> None:
    with pytest.raises(BadInput, match=said) as refused:
        address(url)
    assert "word" not in str(refused.value)


@pytest.mark.parametrize("fault", ["readable by others", "no JSON", "not there"])
def test_credentials_are_a_file_only_its_owner_reads_and_no_repr_shows_them(
    s3: dict[str, str], tmp_path: Path, fault: str
) -> None:
    state = on(s3, tmp_path)
    assert "no-secret-at-all" not in repr(state.raw_table("air", "flights"))
    secret: Any = state.home.secret("raw-store")
    if fault == "readable by others":
        secret.chmod(0o644)
    elif fault == "no JSON":
        secret.write_text("key=word")
    else:
        secret.unlink()
    again = replace(state)
    with pytest.raises((BadInput, Refused), match=r"only its owner reads|is open to others"):
        again.raw_table("air", "flights")
