from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from cellwork import db
from cellwork.errors import Conflict, Unavailable

FIRST = ("CREATE TABLE a (seq {serial}, x TEXT)",)
SECOND = ("ALTER TABLE a ADD COLUMN y TEXT", "INSERT INTO a (x, y) VALUES ('1', '2')")


def test_migrations_run_in_order_and_each_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.sqlite"
    db.open_database(url, [FIRST]).dispose()
    for _ in range(2):
        engine = db.open_database(url, [FIRST, SECOND])
        with engine.connect() as connection:
            assert connection.execute(text("SELECT x, y FROM a")).all() == [("1", "2")]
        engine.dispose()


def test_a_failed_migration_leaves_nothing_of_itself(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.sqlite"
    with pytest.raises(Unavailable):
        db.open_database(url, [FIRST, ("CREATE TABLE b (x TEXT)", "INSERT INTO missing VALUES (1)")])
    engine = db.open_database(url, [FIRST, ("CREATE TABLE b (x TEXT)",)])
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM b")).scalar() == 0
    engine.dispose()


def test_a_database_of_a_newer_version_is_not_touched(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.sqlite"
    db.open_database(url, [FIRST, SECOND]).dispose()
    with pytest.raises(Conflict, match="update cellwork"):
        db.open_database(url, [FIRST])


def test_a_database_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="can be written"):
        db.open_database(f"sqlite:///{tmp_path}/no/such/folder/x.sqlite", [FIRST])
