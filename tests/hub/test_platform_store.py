"""SQL over batches: what was current at a moment, and nothing of the machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from feature_world import flights, new_state, service

from cellwork import client as clients
from cellwork import clock, data
from cellwork.cli import main
from cellwork.client import Client
from cellwork.errors import BadInput, TooBusy, TooLarge
from cellwork.wire.batches import RawDataset, Seal, Sql
from cellwork_hub.platform import store
from cellwork_hub.platform.state import State


@pytest.fixture
def state(tmp_path: Path) -> State:
    return new_state(tmp_path / "home")


@pytest.fixture
def client(state: State, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    with service(state) as connected:
        monkeypatch.setenv("CELLWORK_URL", connected.connection.url)
        monkeypatch.setenv("CELLWORK_TOKEN", "token")
        yield connected
    clients.connect().close()


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
