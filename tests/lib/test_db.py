from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import postgres_server
import pytest
from sqlalchemy import Engine, exc, text

from cellwork import db
from cellwork.errors import Conflict, Unavailable

FIRST = ("CREATE TABLE a (seq {serial}, x TEXT)",)
SECOND = ("ALTER TABLE a ADD COLUMN y TEXT", "INSERT INTO a (x, y) VALUES ('1', '2')")


def test_migrations_run_in_order_and_each_once(url: str) -> None:
    db.open_database(url, [FIRST]).dispose()
    for _ in range(2):
        engine = db.open_database(url, [FIRST, SECOND])
        with engine.connect() as connection:
            assert connection.execute(text("SELECT x, y FROM a")).all() == [("1", "2")]
        engine.dispose()


def test_a_failed_migration_leaves_nothing_of_itself(url: str) -> None:
    with pytest.raises((Unavailable, exc.ProgrammingError)):
        db.open_database(url, [FIRST, ("CREATE TABLE b (x TEXT)", "INSERT INTO missing VALUES (1)")])
    engine = db.open_database(url, [FIRST, ("CREATE TABLE b (x TEXT)",)])
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM b")).scalar() == 0
    engine.dispose()


def test_a_database_of_a_newer_version_is_not_touched(url: str) -> None:
    db.open_database(url, [FIRST, SECOND]).dispose()
    with pytest.raises(Conflict, match="update cellwork"):
        db.open_database(url, [FIRST])


def test_a_database_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="can be written"):
        db.open_database(f"sqlite:///{tmp_path}/no/such/folder/x.sqlite", [FIRST])


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/x.sqlite" if request.param == "sqlite" else postgres_server.database()


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = db.open_database(url, [FIRST])
    yield engine
    engine.dispose()


def test_a_long_write_keeps_no_reader_waiting(engine: Engine) -> None:
    with engine.begin() as writer:
        writer.execute(text("INSERT INTO a (x) VALUES ('not yet')"))
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(count, engine).result(timeout=60) == 0
    assert count(engine) == 1


def test_a_reader_sees_one_moment_and_keeps_no_writer_waiting(engine: Engine) -> None:
    with engine.connect() as reader:
        before = reader.execute(text("SELECT count(*) FROM a")).scalar()
        with engine.begin() as writer:
            writer.execute(text("INSERT INTO a (x) VALUES ('1')"))
        assert reader.execute(text("SELECT count(*) FROM a")).scalar() == before
    assert count(engine) == 1


def test_what_is_read_before_a_write_is_still_true_at_the_write(engine: Engine) -> None:
    """Each adds one to what it has read; a write transaction locks before its first read, so that none is lost or refused."""

    def add(_: int) -> None:
        with engine.begin() as connection:
            there = connection.execute(text("SELECT count(*) FROM a")).scalar()
            connection.execute(text("INSERT INTO a (x) VALUES (:x)"), {"x": str(there)})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(100)))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT x FROM a ORDER BY seq")).scalars().all() == [str(n) for n in range(100)]


def count(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM a")).scalar_one())
