from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import postgres_server
import pytest
from sqlalchemy import Engine, text

from cellwork import db
from cellwork.wire.origin import Origin
from cellwork.wire.records import Principal
from cellwork_hub import records
from cellwork_hub.edge import Call


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    url = f"sqlite:///{tmp_path}/x.sqlite" if request.param == "sqlite" else postgres_server.database()
    engine = db.open_database(url, [records.MIGRATION])
    yield engine
    engine.dispose()


def call() -> Call:
    return Call(Principal(kind="user", name="ada"), "req_1", Origin(), {}, {}, None, {})


def test_an_event_of_a_transaction_that_fails_was_never_there(engine: Engine) -> None:
    with engine.connect() as connection:
        records.event(connection, "batch.ready", "flights", "bat_1")
        connection.rollback()
    with engine.begin() as connection:
        records.event(connection, "batch.ready", "flights", "bat_2", rows=3)
    (event,) = records.events(engine, 0)
    assert (event.subject, event.data) == ("bat_2", {"rows": 3})


def test_a_consumer_with_a_cursor_sees_each_event_once(engine: Engine) -> None:
    with engine.begin() as connection:
        for k in range(5):
            records.event(connection, "even" if k % 2 == 0 else "odd", "p", str(k))
    first = records.events(engine, 0, limit=2)
    rest = records.events(engine, first[-1].seq)
    assert [e.subject for e in first + rest] == list("01234")
    assert [e.subject for e in records.events(engine, 0, "odd")] == ["1", "3"]


def test_who_sees_few_events_gets_those_and_not_the_end_of_the_list(engine: Engine) -> None:
    """A page that held only others' events was empty, and a consumer never got past it."""
    with engine.begin() as connection:
        for k in range(25):
            records.event(connection, "batch.ready", "mine" if k % 10 == 9 else "theirs", str(k))
    asked = replace(
        call(),
        principal=Principal(kind="user", name="ada", groups=frozenset({"project:mine"})),
        bounded=True,
        query={"limit": "5"},
    )
    [read] = [route.handler for route in records.routes(engine) if route.path == "/api/v1/events"]
    assert [event.subject for event in read(asked)] == ["9", "19"]
    assert [event.subject for event in read(replace(asked, query={"limit": "1", "after": "10"}))] == ["19"]


def test_an_edge_said_twice_is_one(engine: Engine) -> None:
    with engine.begin() as connection:
        records.edge(connection, "ds_1", "built_from", "bat_1")
        records.edge(connection, "ds_1", "built_from", "bat_1")
        assert connection.execute(text("SELECT count(*) FROM edges")).scalar() == 1


@pytest.mark.parametrize(
    "tampering", ["UPDATE audit SET reason = 'other' WHERE seq = 2", "DELETE FROM audit WHERE seq = 2"]
)
def test_the_audits_chain_shows_a_row_that_was_changed_or_taken_out(engine: Engine, tampering: str) -> None:
    with engine.begin() as connection:
        for k in range(4):
            records.audit(connection, call(), "promote", f"m@{k}", before={"v": k}, after={"v": k + 1})

    def intact() -> bool:
        previous = ""
        with engine.connect() as connection:
            for row in connection.execute(text("SELECT * FROM audit ORDER BY seq")).mappings():
                previous = records.chain(previous, dict(row))
                if previous != row["chain"]:
                    return False
        return True

    assert intact()
    with engine.begin() as connection:
        connection.execute(text(tampering))
    assert not intact()
