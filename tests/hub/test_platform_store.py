"""The raw store: what comes in by file, folder and post, SQL as of a moment, compaction."""

from __future__ import annotations

import gzip
import json
from datetime import date
from pathlib import Path

import httpx
import polars as pl
import pytest
from click.testing import CliRunner
from deltalake import DeltaTable, write_deltalake
from feature_world import flights

from cellwork import clock, data
from cellwork.cli import main
from cellwork.client import Client
from cellwork.data.watch import Folder
from cellwork.errors import BadInput, NotFound, TooBusy, TooLarge
from cellwork.wire.batches import RawDataset, Seal, Sql
from cellwork_hub.platform import batches, store
from cellwork_hub.platform.state import State


def test_sql_sees_the_batches_of_a_moment_and_sealed_values_never(client: Client) -> None:
    seal = Seal(holdout="late", partitions=["day1"], columns=["delay"])
    client.batches.declare("air", RawDataset(name="flights", seals=[seal]))
    first = client.batches.ingest("air", "flights", flights(0).with_columns(gust=pl.lit(None)), "day0").batch
    moment = clock.now()
    client.batches.ingest("air", "flights", flights(0, delay=100.0).with_columns(gust=pl.lit(None)), "day0")
    client.batches.ingest("air", "flights", flights(1).with_columns(gust=pl.lit(None)), "day1")
    statement = "SELECT origin, count(*) AS n, max(delay) AS worst FROM flights GROUP BY origin ORDER BY origin"
    assert data.sql(statement, project="air").rows() == [("JFK", 24, 123.0), ("LGA", 24, 122.0)]
    for past in (first.id, moment.isoformat()):
        assert data.sql(statement, as_of=past, project="air").rows() == [("JFK", 12, 33.0), ("LGA", 12, 32.0)]
    assert data.sql("SELECT count(*) FROM flights", as_of="2001-01-01T00:00:00Z", project="air").item() == 0
    both = "SELECT count(DISTINCT a._batch) FROM flights a JOIN flights b USING (id) WHERE b.gust IS NULL"
    assert data.sql(both, project="air").item() == 2
    rows, more = client.batches.sql("air", "SELECT * FROM flights ORDER BY planned, id", limit=5)
    assert (rows.height, more, rows.columns[-1]) == (5, True, "_batch")
    assert rows["planned"].dtype == pl.Datetime("us", "UTC")


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("SELECT * FROM read_csv('/etc/hostname')", "file system operations are disabled"),
        ("SELECT * FROM '/etc/hostname'", "does not exist"),
        ("COPY flights TO '/tmp/stolen.csv'", "is not one SELECT"),
        ("DELETE FROM flights", "is not one SELECT"),
        ("SELECT 1; SELECT 2", "is not one SELECT"),
        ("ATTACH '/tmp/other.db'", "is not one SELECT"),
        ("SET memory_limit = '100GB'", "is not one SELECT"),
        ("", "is not one SELECT"),
        ("SELEC 1", "syntax error"),
        ("SELECT orign FROM flights", "Candidate bindings.*origin"),
    ],
)
def test_a_statement_that_is_not_one_select_over_batches_is_refused(client: Client, statement: str, words: str) -> None:
    client.batches.ingest("air", "flights", flights(0), "day0")
    with pytest.raises(BadInput, match=f"(?s){words}"):
        data.sql(statement, project="air")


def test_unknown_tables_have_their_near_miss_and_other_projects_are_out_of_reach(client: Client) -> None:
    client.batches.ingest("air", "flights", flights(0), "day0")
    client.batches.ingest("sea", "ships", flights(0), "day0")
    with pytest.raises(BadInput, match=r"(?s)flihgts does not exist.*data sets flights$"):
        data.sql("SELECT * FROM flihgts", project="air")
    with pytest.raises(BadInput, match="ships does not exist"):
        data.sql("SELECT * FROM ships", project="air")
    with pytest.raises(BadInput, match="limit"):
        data.sql("SELECT 1", limit=10**9, project="air")


def test_a_statement_that_runs_too_long_is_stopped_and_only_two_run_at_once(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = "SELECT count(*) FROM range(100000000000) a, range(1000000) b"
    monkeypatch.setattr(store.query.run, "__kwdefaults__", {"seconds": 0.3})
    with pytest.raises(TooLarge, match=r"0\.3 s"):
        store.sql(state, "air", Sql(sql=endless))
    with store._running, store._running, pytest.raises(TooBusy, match="running already"):
        store.sql(state, "air", Sql(sql="SELECT 1"))
    assert store.sql(state, "air", Sql(sql="SELECT 1"))[0].item() == 1


def test_the_command_line_runs_sql(client: Client, tmp_path: Path) -> None:
    client.batches.ingest("air", "flights", flights(0), "day0")
    run = CliRunner().invoke
    asked = ["data", "sql", "SELECT origin, id FROM flights ORDER BY id", "--project", "air", "--limit", "2"]
    shown = run(main, asked)
    assert shown.output.splitlines()[1].split() == ["LGA", "0"]
    assert "more than 2 rows" in shown.stderr
    assert json.loads(run(main, [*asked, "--json"]).stdout) == [{"origin": "LGA", "id": 0}, {"origin": "JFK", "id": 1}]
    assert "2 rows are in" in run(main, [*asked, "--out", str(tmp_path / "rows.parquet")]).output
    assert pl.read_parquet(tmp_path / "rows.parquet").height == 2


# What comes in


def post(client: Client, body: bytes, kind: str, **headers: str) -> httpx.Response:
    url = f"{client.connection.url}/services/cellwork/api/v1/batches/air/codes/day0?nulls=NA"
    return httpx.post(url, content=body, headers={"content-type": kind, **headers}, trust_env=False, timeout=60)


def test_text_is_taken_by_post_with_the_types_of_the_schema(client: Client) -> None:
    first = pl.DataFrame({"code": ["007", "x"], "day": [date(2013, 1, 1)] * 2, "n": [1, None]})
    client.batches.ingest("air", "codes", first, "first")
    csv = b"code,day,n\n008,2013-01-02,NA\n009,2013-01-02,4\n"
    answer = post(client, csv, "text/csv; charset=utf-8")
    assert (answer.status_code, answer.json()["new"]) == (200, True)
    packed = gzip.compress(csv), gzip.compress(csv[:20]) + gzip.compress(b"") + gzip.compress(csv[20:])
    assert not any(post(client, body, "text/csv", **{"content-encoding": "gzip"}).json()["new"] for body in packed)
    lines = b'{"code": "009", "day": "2013-01-02", "n": 4}\n{"code": "008", "day": "2013-01-02", "n": null}\n'
    assert not post(client, lines, "application/x-ndjson").json()["new"], "the same rows in another form and order"
    rows = client.batches.rows("air", "codes").filter(pl.col("_batch") == answer.json()["batch"]["id"])
    assert rows.select("code", "n").rows() == [("008", None), ("009", 4)]


@pytest.mark.parametrize(
    ("body", "kind", "encoding", "words"),
    [
        (b"", "text/csv", "", "is empty"),
        (b"a,b\n1,2,3\n", "text/csv", "", "can't be read as csv"),
        (b'{"a": ', "application/x-ndjson", "", "can't be read as jsonl"),
        (b"no gzip", "text/csv", "gzip", "is not gzip"),
        (gzip.compress(b"a\n1\n", mtime=0)[:-6], "text/csv", "gzip", "cut off"),
        (gzip.compress(b"a\n1\n", mtime=0) + gzip.compress(b"2\n", mtime=0)[:-6], "text/csv", "gzip", "cut off"),
        (gzip.compress(b"a\n1\n", mtime=0) + b"2\n", "text/csv", "gzip", "is not gzip throughout"),
        (b"a\n1\n", "application/parquet", "", "not a readable parquet"),
    ],
)
def test_a_broken_body_is_refused_and_leaves_nothing(
    client: Client, body: bytes, kind: str, encoding: str, words: str
) -> None:
    answer = post(client, body, kind, **({"content-encoding": encoding} if encoding else {}))
    assert (answer.status_code, words in answer.text) == (422, True)
    assert list(client.batches.list("air")) == []


def test_what_unpacks_to_too_much_is_refused_however_many_members_it_has(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, rest = gzip.compress(b"a\n" + b"1\n" * 100), gzip.compress(b"2\n" * 100)
    monkeypatch.setattr(batches, "MOST_PLAIN", 402)
    encoding = {"content-encoding": "gzip"}
    assert post(client, first + rest, "text/csv", **encoding).json()["batch"]["rows"] == 200
    answer = post(client, first + rest + gzip.compress(b"\n"), "text/csv", **encoding)
    assert (answer.status_code, "more than 402 bytes" in answer.text) == (413, True)


def test_files_at_urls_and_in_folders_become_batches_named_after_them(client: Client, tmp_path: Path) -> None:
    for day in range(3):
        flights(day).write_csv(tmp_path / f"2013-01-0{day}.csv", datetime_format="%Y-%m-%dT%H:%M:%SZ")
    (tmp_path / "notes.txt").write_text("not data")
    (tmp_path / ".2013-01-09.csv").write_text("half")
    url = (tmp_path / "2013-01-01.csv").as_uri()
    assert data.ingest("air/flights", url, "2013-01-01").new
    taken = data.ingest_folder("air/flights", tmp_path)
    assert [(t.batch.partition, t.new) for t in taken] == [
        ("2013-01-00", True),
        ("2013-01-01", False),
        ("2013-01-02", True),
    ]
    with pytest.raises(NotFound, match="does not exist"):
        data.ingest("air/flights", "file:///nowhere/at/all.csv", "x")
    with pytest.raises(BadInput, match="can't be read"):
        data.ingest("air/flights", "nonsense://a.csv", "x")
    (tmp_path / "none").mkdir()
    with pytest.raises(BadInput, match="holds no data file"):
        data.ingest_folder("air/flights", tmp_path / "none")
    listed = CliRunner().invoke(main, ["batch", "ingest", "air/flights", str(tmp_path), "--json"])
    assert [t["new"] for t in json.loads(listed.output)] == [False] * 3


def test_a_watched_folder_sends_what_stands_still_and_names_what_can_not_be_taken(
    client: Client, tmp_path: Path
) -> None:
    looking = Folder("air/flights", tmp_path)
    flights(0).write_parquet(tmp_path / "day0.parquet")
    assert looking.look() == [], "it may still be growing"
    assert "24 rows" in looking.look()[0]
    assert looking.look() == []
    flights(0, delay=99.0).write_parquet(tmp_path / "day0.parquet")
    (tmp_path / "day1.csv").write_text("id\n1\n")
    looking.look()
    said = looking.look()
    assert [line.split()[0] for line in said] == ["day0.parquet", "day1.csv"]
    assert "is missing in this batch" in looking.refused[tmp_path / "day1.csv"]
    assert looking.look() == []
    assert client.batches.rows("air", "flights")["delay"].min() == 99.0
    (tmp_path / "day1.csv").unlink()
    again = Folder("air/flights", tmp_path)
    lines: list[str] = []
    again.follow(every=0.01, tell=lines.append, once=True)
    assert ["there already" in line for line in lines] == [True]


def test_the_command_line_watches_once(client: Client, tmp_path: Path) -> None:
    flights(0).write_parquet(tmp_path / "day0.parquet")
    asked = ["data", "watch", "air/flights", str(tmp_path), "--once", "--every", "0.01"]
    assert "24 rows" in CliRunner().invoke(main, asked).output
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    refused = CliRunner().invoke(main, asked)
    assert (refused.exit_code, "bad.parquet is refused" in refused.output) == (1, True)


def test_compaction_puts_files_together_and_changes_no_row_and_no_batch(client: Client, state: State) -> None:
    batch = client.batches.ingest("air", "flights", flights(0), "day0").batch
    other = client.batches.ingest("air", "flights", flights(1), "day1").batch
    table = state.home.raw_table("air", "flights")
    rows = pl.scan_delta(str(table)).filter(pl.col("_batch") == batch.id).collect()
    DeltaTable(table).delete(f"_batch = '{batch.id}'")
    for piece in rows.iter_slices(5):
        write_deltalake(table, piece.to_arrow(), mode="append")
    before = client.batches.rows("air", "flights")
    done = client.batches.compact("air", "flights")
    assert (done.files_before, done.files) == (6, 2)
    assert client.batches.rows("air", "flights").equals(before)
    assert before["_batch"].unique(maintain_order=True).to_list() == [batch.id, other.id]
    assert client.batches.compact("air", "flights").files == 2
    assert "are now 2 files" in CliRunner().invoke(main, ["data", "compact", "air/flights"]).output
