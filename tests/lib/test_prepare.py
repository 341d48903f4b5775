"""An author's SELECT in the sandbox: what it may, and what it may not."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from cellwork.data import prepare
from cellwork.errors import BadInput, TooLarge
from cellwork.wire.features import Prepared

AT = datetime(2013, 7, 1, 12, tzinfo=UTC)
FLIGHTS = pl.DataFrame(
    {"id": [1, 2], "origin": ["JFK", "LGA"], "planned": [AT, AT], "local": ["2013-07-01 08:00:00"] * 2}
)
AIRPORTS = pl.DataFrame(
    {"faa": ["JFK", "JFK", "LGA"], "zone": ["America/New_York", "America/Chicago", "America/New_York"]}
)


def run(sql: str, *, seconds: float = 20.0) -> pl.DataFrame:
    prepared = Prepared(name="p", sources=["flights", "airports"], sql=sql)
    return prepare.run(prepared, FLIGHTS, {"airports": AIRPORTS}, seconds=seconds)


def test_it_sees_the_data_sets_by_their_names():
    rows = run("SELECT f.id, (SELECT count(*) FROM airports a WHERE a.faa = f.origin) AS n FROM flights f ORDER BY id")
    assert rows.rows() == [(1, 2), (2, 1)]


def test_times_are_in_utc_and_zones_are_known():
    rows = run(
        "SELECT planned, timezone('America/New_York', local::TIMESTAMP) AS utc, planned + INTERVAL 1 HOUR AS later FROM flights LIMIT 1"
    )
    assert rows.row(0) == (AT, AT, AT.replace(hour=13))
    assert rows.schema["utc"] == pl.Datetime("us", "UTC")


def test_sums_and_decimals_come_out_as_numbers():
    rows = run("SELECT sum(id) OVER () AS s, 1.5 AS d FROM flights")
    assert rows.schema == {"s": pl.Int64, "d": pl.Float64}
    assert rows["s"].to_list() == [3, 3]


def test_a_wrong_column_or_table_is_named_with_the_near_miss():
    with pytest.raises(BadInput, match=r'"origins" not found(.|\n)*"origin"'):
        run("SELECT origins FROM flights")
    with pytest.raises(
        BadInput, match=r'flight does not exist(.|\n)*Did you mean "flights"(.|\n)*it sees the tables flights, airports'
    ):
        run("SELECT * FROM flight")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('{path}')",
        "SELECT * FROM read_text('{path}')",
        "SELECT * FROM '{path}'",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM parquet_scan('{path}')",
        "SELECT getenv('HOME')",
        "SELECT * FROM FLIGHTS_IN_PYTHON",
        "WITH x AS (SELECT * FROM read_blob('{path}')) SELECT * FROM x",
        "SELECT * FROM query('SELECT * FROM read_text(''{path}'')')",
    ],
)
def test_nothing_of_the_machine_is_in_reach(sql, tmp_path):
    FLIGHTS_IN_PYTHON = FLIGHTS  # noqa: F841 - DuckDB would find it in this frame
    path = tmp_path / "secret.csv"
    path.write_text("a,b\n1,hidden-word\n")
    with pytest.raises(BadInput) as refused:
        run(sql.format(path=path))
    assert "hidden-word" not in str(refused.value)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1; SELECT 2",
        "COPY flights TO '/tmp/x'",
        "SET memory_limit = '64GB'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "ATTACH '/tmp/x.db'",
        "CREATE TABLE t AS SELECT 1",
        "DROP VIEW flights",
        "PRAGMA database_list",
        "",
        "SELEC 1",
    ],
)
def test_only_one_select_is_taken(sql):
    with pytest.raises(BadInput, match="SQL of prepared 'p'"):
        run(sql)


def test_more_rows_than_the_first_source_has_are_refused():
    with pytest.raises(BadInput, match="'3 rows': are more than the 2 rows of 'flights'"):
        run("SELECT f.id, a.zone FROM flights f JOIN airports a ON a.faa = f.origin")


def test_a_statement_that_takes_too_long_is_stopped():
    with pytest.raises(TooLarge, match="is how long it may run"):
        run("SELECT count(*) AS n FROM range(100000000000) r WHERE hash(range) = 7", seconds=0.3)


def test_a_frame_is_left_as_it_was(tmp_path: Path):
    before = FLIGHTS.clone()
    run("SELECT id + 1 AS id FROM flights")
    assert FLIGHTS.equals(before)


@pytest.mark.parametrize(
    ("sql", "columns", "needed"),
    [
        ("SELECT id, origin, planned FROM flights", ["origin"], {"origin"}),
        ("SELECT f.*, zone FROM flights f LEFT JOIN airports ON faa = origin", ["id"], {"id", "origin"}),
        ("WITH a AS (SELECT *, id + 1 AS next FROM flights) SELECT next AS x, planned FROM a; -- end", ["x"], {"id"}),
        ("SELECT id, origin FROM flights WHERE planned > now()", ["id"], {"id", "planned"}),
        ("SELECT id FROM flights QUALIFY row_number() OVER (PARTITION BY origin ORDER BY planned) = 1", ["id"], {"id", "origin", "planned"}),
        ("SELECT id, (SELECT max(g.planned) FROM flights g WHERE g.origin = f.origin) AS x FROM flights f", ["x"], {"origin", "planned"}),
        ("SELECT f AS x FROM flights f", ["x"], {"id", "origin", "planned", "local"}),
        ("SELECT id AS \"a \"\"name\" FROM flights", ['a "name'], {"id"}),
        ("SELECT id, origin FROM flights WHERE local <> ''", [], {"local"}),
        ("SELECT faa AS id, faa AS planned FROM airports", ["planned"], set()),
    ],
)  # fmt: skip
def test_what_a_column_depends_on_is_read_from_the_plan(sql, columns, needed):
    prepared = Prepared(name="p", sources=["flights", "airports"], sql=sql)
    assert prepare.depends(prepared, FLIGHTS.clear(), {"airports": AIRPORTS.clear()}, columns) == needed
