"""Raw data over HTTP: batches are immutable, come once, are corrected in the open, and survive a kill at any point."""

from __future__ import annotations

import io
import json
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import polars as pl
import pytest
from click.testing import CliRunner
from raw_platform import call, serving, state_in
from sqlalchemy import text

from cellwork import client as clients
from cellwork import data
from cellwork.cli import main
from cellwork.client import Client
from cellwork.errors import BadInput, CellworkError, Conflict, NotFound, Refused
from cellwork.wire.batches import RawDataset, Seal
from cellwork_hub import records
from cellwork_hub.platform import batches
from cellwork_hub.platform.state import State

JANUARY = pl.DataFrame({"id": [1, 2, 3], "delay": [5.0, None, 7.5], "carrier": ["UA", "AA", None]})
NOVEMBER = RawDataset(
    name="flights", key=["id"], seals=[Seal(holdout="november", partitions=["2013-11*"], columns=["delay"])]
)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return state_in(tmp_path, [batches])


@pytest.fixture
def url(state: State) -> Iterator[str]:
    with serving(state, [batches]) as address:
        yield address


@pytest.fixture
def author(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """The client of this process, as a notebook would have it."""
    monkeypatch.setenv("CELLWORK_URL", url)
    monkeypatch.setenv("CELLWORK_TOKEN", "author")
    yield clients.connect()
    clients.connect().close()


def test_what_was_sent_comes_back_batch_by_batch(author: Client) -> None:
    first = data.ingest("demo/flights", JANUARY, partition="2013-01").batch
    second = data.ingest("flights", JANUARY.to_pandas(), partition="2013-02", project="demo").batch
    rows = data.rows("demo/flights")
    assert rows.drop("_batch").rows() == JANUARY.rows() * 2
    assert rows["_batch"].to_list() == [first.id] * 3 + [second.id] * 3
    assert data.rows("demo/flights", batch=second.id, limit=1).rows() == [(1, 5.0, "UA", second.id)]
    assert [b.partition for b in data.batches("demo/flights")] == ["2013-01", "2013-02"]
    assert (first.rows, first.origin.user, first.seq < second.seq) == (3, "author", True)
    assert {s.name: s.max for s in first.statistics} == {"id": 3.0, "delay": 7.5, "carrier": "UA"}


def test_the_same_delivery_twice_is_one_batch_and_two_equal_days_are_two(author: Client, state: State) -> None:
    first = author.batches.ingest("demo", "flights", JANUARY, "2013-01")
    again = author.batches.ingest("demo", "flights", JANUARY.reverse().select("carrier", "delay", "id"), "2013-01")
    other = author.batches.ingest("demo", "flights", JANUARY, "2013-02")
    assert (first.new, again.new, other.new) == (True, False, True)
    assert first.batch == again.batch
    assert other.batch.id != first.batch.id
    assert [e.subject for e in records.events(state.engine, 0, "batch.ready")] == [first.batch.id, other.batch.id]


def test_a_correction_takes_the_place_of_a_batch_and_the_past_stays_readable(author: Client, state: State) -> None:
    first = author.batches.ingest("demo", "flights", JANUARY, "2013-01").batch
    second = author.batches.ingest("demo", "flights", JANUARY.head(2), "2013-02").batch
    better = author.batches.ingest("demo", "flights", JANUARY.head(1), "2013-01").batch
    assert better.supersedes == first.id
    assert author.batches.get(first.id).superseded_by == better.id
    assert [b.id for b in author.batches.list("demo", "flights")] == [second.id, better.id]
    assert len(list(author.batches.list("demo", "flights", current=False))) == 3
    assert author.batches.rows("demo", "flights").height == 3
    assert author.batches.rows("demo", "flights", as_of=second.id)["_batch"].unique(maintain_order=True).to_list() == [
        first.id,
        second.id,
    ]
    assert author.batches.rows("demo", "flights", batch=first.id).height == 3
    late = author.batches.ingest("demo", "flights", JANUARY, "2013-01")
    assert (late.new, late.batch.superseded_by) == (False, better.id)
    assert [b.id for b in batches.known_at(state, "demo", "flights", better.id)] == [second.id, better.id]


def test_the_schema_of_the_first_batch_holds_for_all_and_a_refused_batch_leaves_nothing(
    author: Client, state: State
) -> None:
    author.batches.ingest("demo", "flights", JANUARY, "2013-01")
    with pytest.raises(BadInput, match=r"column 'delay' of data set 'demo/flights': is missing"):
        author.batches.ingest("demo", "flights", JANUARY.drop("delay"), "2013-02")
    with pytest.raises(BadInput, match="came as string"):
        author.batches.ingest("demo", "flights", JANUARY.with_columns(delay=pl.lit("late")), "2013-02")
    whole = JANUARY.with_columns(pl.col("delay").cast(pl.Int64))
    assert author.batches.ingest("demo", "flights", whole, "2013-02").batch.columns[1].type == "double"
    assert author.batches.rows("demo", "flights").height == 6
    refused = records.events(state.engine, 0, "batch.rejected")
    assert [e.subject for e in refused] == ["demo/flights/2013-02"] * 2
    assert "came as string" in refused[1].data["reason"]


def test_a_column_that_was_empty_so_far_takes_its_type_from_the_first_value(author: Client) -> None:
    empty = JANUARY.with_columns(gust=pl.lit(None, dtype=pl.String))
    first = author.batches.ingest("demo", "flights", empty, "2013-01").batch
    assert first.columns[3].type == "null"
    author.batches.ingest("demo", "flights", JANUARY.with_columns(gust=pl.lit(9.5)), "2013-02")
    assert author.batches.rows("demo", "flights")["gust"].to_list() == [None] * 3 + [9.5] * 3
    assert author.batches.ingest("demo", "flights", empty, "2013-01").batch == first


def test_rows_in_quarantine_are_counted_and_can_be_looked_at(author: Client) -> None:
    author.batches.declare("demo", NOVEMBER)
    frame = pl.DataFrame({"id": [1, 1, None, 2], "delay": [1.0, 1.0, 2.0, 3.0]})
    batch = author.batches.ingest("demo", "flights", frame, "2013-01").batch
    assert (batch.rows, batch.rejected) == (2, 2)
    seen = data.rejected(batch.id)
    assert dict(seen.select("_reason", "delay").rows()) == {
        "repeats the row of its key (id)": 1.0,
        "key column 'id' is null": 2.0,
    }
    sealed = author.batches.ingest("demo", "flights", frame, "2013-11").batch
    assert data.rejected(sealed.id)["delay"].to_list() == [None, None]
    clean = author.batches.ingest("demo", "flights", frame.tail(1), "2013-02").batch
    assert data.rejected(clean.id).height == 0


def test_sealed_values_are_in_no_answer_and_in_no_file_that_is_open(author: Client, state: State, url: str) -> None:
    data.declare(NOVEMBER, project="demo")
    truth = pl.DataFrame({"id": [1, 2], "delay": [123456.75, None]})
    author.batches.ingest("demo", "flights", truth, "2013-10")
    batch = author.batches.ingest("demo", "flights", truth.with_columns(pl.col("delay") + 1), "2013-11").batch
    assert batch.sealed == "november"
    http = httpx.Client(base_url=url, headers={"authorization": "Bearer author"}, trust_env=False, timeout=60)
    answers = [
        http.get(f"/api/v1/batches/{batch.id}").text,
        http.get("/api/v1/events").text,
        http.get("/api/v1/audit").text,
    ]
    assert not any("123457" in answer for answer in answers)
    for query in ({}, {"batch": batch.id}, {"as_of": batch.id}, {"batch": batch.id, "sealed": "true"}):
        rows = pl.read_parquet(io.BytesIO(http.get("/api/v1/rows/demo/flights", params=query).content))
        assert rows.filter(pl.col("_batch") == batch.id)["delay"].to_list() == [None, None]
    assert batches.raw_rows(state, "demo", "flights", sealed=True)["delay"].to_list() == [
        123456.75,
        None,
        123457.75,
        None,
    ]
    holding = [
        path for path in state.home.root.rglob("*.parquet") if 123457.75 in pl.read_parquet(path).to_series(1).to_list()
    ]
    assert [path.is_relative_to(state.home.sealed("demo")) for path in holding] == [True]
    assert stat.S_IMODE(holding[0].stat().st_mode) == 0o600


def test_seals_can_not_change_what_is_there_already(author: Client) -> None:
    author.batches.declare("demo", NOVEMBER)
    author.batches.declare("demo", NOVEMBER)
    author.batches.ingest("demo", "flights", JANUARY, "2013-01")
    author.batches.ingest("demo", "flights", JANUARY, "2013-11")
    with pytest.raises(Conflict, match="is kept for holdout 'november'"):
        author.batches.declare("demo", RawDataset(name="flights", key=["id"]))
    wider = Seal(holdout="november", partitions=["*"], columns=["delay"])
    with pytest.raises(Conflict, match="is readable since"):
        author.batches.declare("demo", RawDataset(name="flights", key=["id"], seals=[wider]))
    more = Seal(holdout="december", partitions=["2013-12*"], columns=["delay"])
    declared = RawDataset(name="flights", key=["id"], seals=[*NOVEMBER.seals, more], owner="ada")
    assert author.batches.declare("demo", declared) == declared
    assert author.batches.declared("demo") == [declared]


def test_wrong_names_ids_and_bodies_have_their_answers(author: Client, url: str) -> None:
    author.batches.ingest("demo", "flights", JANUARY, "2013-01")
    unknown = "bat_" + "0" * 26
    cases: list[tuple[type[CellworkError], str, object]] = [
        (NotFound, "did you mean 'flights'", lambda: author.batches.rows("demo", "flihgts")),
        (NotFound, "does not exist", lambda: author.batches.rows("demo", "flights", batch=unknown)),
        (NotFound, "does not exist", lambda: author.batches.rows("demo", "flights", as_of=unknown)),
        (
            NotFound,
            "is not of project",
            lambda: author.batches.rows("other", "flights", as_of=next(author.batches.list("demo")).id),
        ),
        (NotFound, "does not exist", lambda: author.batches.get(unknown)),
        (BadInput, "is not an id", lambda: author.batches.get("bat_1")),
        (BadInput, "partition key", lambda: author.batches.ingest("demo", "flights", JANUARY, "-1")),
        (BadInput, "is not a name", lambda: author.batches.ingest("Demo", "flights", JANUARY, "1")),
        (BadInput, "has no rows", lambda: author.batches.ingest("demo", "flights", JANUARY.head(0), "2")),
        (
            BadInput,
            "did you mean 'id'",
            lambda: author.batches.declare("demo", RawDataset(name="flights", key=["idd"])),
        ),
    ]
    for kind, words, attempt in cases:
        with pytest.raises(kind, match=words):
            attempt()  # type: ignore[operator]
    http = httpx.Client(base_url=url, headers={"authorization": "Bearer author"}, trust_env=False, timeout=60)
    broken = http.put("/api/v1/batches/demo/flights/2", content=b"PAR1 and so on PAR1")
    assert (broken.status_code, "not a readable parquet file" in broken.text) == (422, True)
    assert http.put("/api/v1/batches/demo/flights/2", content=b"").status_code == 422
    assert http.put("/api/v1/batches/demo/flights/2", content=b"x" * 1_000_001).status_code == 413
    assert http.get("/api/v1/batches").status_code == 422


def test_a_reader_reads_and_does_not_write(url: str, author: Client) -> None:
    author.batches.ingest("demo", "flights", JANUARY, "2013-01")
    with Client(url, "reader") as reader, Client(url, "nobody") as nobody:
        assert reader.batches.rows("demo", "flights").height == 3
        with pytest.raises(Refused, match="data:write"):
            reader.batches.ingest("demo", "flights", JANUARY, "2013-02")
        with pytest.raises(Refused, match="data:write"):
            reader.batches.declare("demo", NOVEMBER)
        with pytest.raises(Refused, match="credential"):
            nobody.batches.rows("demo", "flights")


def test_lists_go_on_after_a_page(author: Client) -> None:
    for number in range(5):
        author.batches.ingest("demo", "flights", JANUARY, f"p{number}")
    listed = author.connection.listing("cellwork", "/api/v1/batches", dict, project="demo", limit=2)
    assert [row["partition"] for row in listed] == [f"p{number}" for number in range(5)]


def test_what_follows_from_a_batch_is_in_its_transaction(tmp_path: Path) -> None:
    def follow(db: object, state: State, batch: object) -> None:
        raise BadInput("follower", "", "fails", "")

    state = state_in(tmp_path, [batches], on_batch=(follow,))
    with pytest.raises(BadInput, match="fails"):
        batches.ingest(state, call(), "demo", "flights", "2013-01", JANUARY)
    with state.engine.connect() as db:
        counts = [
            db.execute(text(f"SELECT count(*) FROM {table}")).scalar()
            for table in ("batches", "events", "audit", "raw_datasets")
        ]
    assert counts == [0, 0, 0, 0]


def test_the_command_line_ingests_lists_and_shows(author: Client, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,code,delay\n1,007,NA\n1,008,2.5\n2,009,1.5\n")
    (tmp_path / "b.csv").write_text("id,code,delay\n3,010,NA\n")
    author.batches.declare("demo", RawDataset(name="trips", key=["id"]))

    def run(*words: str, code: int = 0) -> str:
        answer = CliRunner().invoke(main, ["batch", *words])
        assert answer.exit_code == code, answer.output
        return answer.output

    options = ["--partition", "d1", "--null", "NA", "--text", "code"]
    said = run("ingest", "demo/trips", str(tmp_path / "a.csv"), *options)
    assert "is new: demo/trips d1, 1 rows" in said
    assert "2 rows are in quarantine" in said
    assert "is there already" in run("ingest", "demo/trips", str(tmp_path / "a.csv"), *options)
    taken = json.loads(
        run("ingest", "demo/trips", str(tmp_path / "b.csv"), "--partition", "d2", "--null", "NA", "--json")
    )
    assert {c["name"]: c["type"] for c in taken["batch"]["columns"]} == {
        "id": "int64",
        "code": "string",
        "delay": "double",
    }
    assert "010" in run("rows", "demo/trips", "--limit", "5")
    listed = json.loads(run("list", "trips", "--project", "demo", "--json"))
    assert [row["partition"] for row in listed] == ["d1", "d2"]
    first = listed[0]["id"]
    assert "has different rows" in run("rejected", first)
    assert "code" in run("show", first)
    assert "did you mean 'trips'" in run("rows", "demo/tripss", code=1)
    assert "does not exist" in run("ingest", "demo/trips", "gone.csv", "--partition", "x", code=1)
