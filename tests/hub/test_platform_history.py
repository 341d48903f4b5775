"""Joins for rows of one's own: over HTTP, by the library, and by `%%features` in a real shell."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import feature_world
import pandas as pd
import polars as pl
import pytest
from feature_world import ANYONE, DAY, definitions, flights, new_state, service, work
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from cellwork.client import Client
from cellwork.errors import BadInput, Conflict, NotFound, TooLarge
from cellwork.features import history, joins
from cellwork.features.history import JoinView
from cellwork.wire.features import HistoryStatus
from cellwork.wire.records import Principal
from cellwork_hub.platform.state import State
from cellwork_jupyter import kernel

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    return new_state(tmp_path_factory.mktemp("history") / "home")


@pytest.fixture(scope="module")
def client(state: State) -> Iterator[Client]:
    with service(state) as connected:
        for day in range(2):
            connected.batches.ingest("air", "flights", flights(day), f"day{day}")
        connected.features.apply(definitions())
        work(state)
        yield connected


def asked(count: int = 40) -> pl.DataFrame:
    origins = ["JFK", "LGA", "XXX", None]
    return pl.DataFrame(
        {
            "origin": [origins[n % 4] for n in range(count)],
            "at": [DAY + n * HOUR for n in range(count)],
            "note": range(count),
        }
    )


def test_the_platform_joins_as_the_library_does_and_keeps_every_row(client):
    told: list[HistoryStatus] = []
    joined = joins.join(asked(), ["late"], at="at", project="air", late=True, tell=told.append, client=client)
    views = [
        JoinView(
            definitions().views[0], {"origin": "origin"}, ["flights", "delay"], client.features.rows("air", "late")
        )
    ]
    plain, coverage = history.join(asked(), at="at", views=views)
    assert joined.frame.equals(plain)
    assert joined.coverage == coverage
    assert [each.view for each in joined.late] == ["late"]
    assert told[0].estimate.observations == 40
    assert told[-1].state == "done"
    assert f"{coverage[0].found / 40:.1%} of 40 rows found a value" in repr(joined)
    assert "no key or time" in joined._repr_html_()


def parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def start(client: Client, frame: pl.DataFrame, *features: str, memory_mb: int | None = None) -> HistoryStatus:
    return client.features.start_join(
        "air", parquet(frame), features=list(features), at="at", arrival=True, late=False, memory_mb=memory_mb
    )


def test_what_can_not_be_joined_is_refused_before_it_starts(client):
    with pytest.raises(BadInput, match="did you mean 'late'"):
        start(client, asked(), "lates")
    with pytest.raises(BadInput, match="'origin'"):
        start(client, asked().drop("origin"), "late")
    with pytest.raises(BadInput, match="are no parquet"):
        client.features.start_join("air", b"rows", features=["late"], at="at", arrival=True, late=False, memory_mb=None)
    with pytest.raises(BadInput, match="names none"):
        start(client, asked())
    with pytest.raises(TooLarge, match="allow more memory"):
        start(client, pl.concat([asked(1000)] * 40), "late", memory_mb=1)


def test_a_cancelled_join_keeps_nothing_and_is_nobody_elses(client, state, monkeypatch):
    status = start(client, asked(), "late")
    other = Principal(kind="user", name="bob", scopes=ANYONE.scopes)
    monkeypatch.setattr(feature_world, "ANYONE", other)
    with pytest.raises(NotFound, match="is not there"):
        client.features.join_status("air", status.id)
    monkeypatch.undo()
    for _ in range(2):
        client.features.cancel_join("air", status.id)
    with pytest.raises(NotFound):
        client.features.join_rows("air", status.id)


def test_an_interrupt_cancels_the_join(client):
    seen: list[str] = []

    def interrupt(status: HistoryStatus) -> None:
        seen.append(status.id)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        joins.join(pl.concat([asked(1000)] * 20), ["late"], at="at", project="air", tell=interrupt, client=client)
    with pytest.raises(NotFound):
        client.features.join_rows("air", seen[0])


def test_many_at_once_are_each_whole(client):
    answers: dict[int, Any] = {}

    def one(number: int) -> None:
        rows = asked(20 + number)
        answers[number] = joins.join(rows, ["late"], at="at", project="air", client=client).frame["note"].to_list()

    threads = [threading.Thread(target=one, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {number: list(range(20 + number)) for number in range(5)}


@pytest.fixture
def shell(client: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    monkeypatch.setenv("CELLWORK_URL", client.connection.url)
    monkeypatch.setenv("CELLWORK_TOKEN", "token")
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance()
    kernel.load(made)
    yield made
    kernel.unload(made)
    InteractiveShell.clear_instance()


def test_the_cell_magic_joins_shows_its_way_and_keeps_the_kind_of_frame(shell):
    shell.user_ns["rows"] = asked()
    joined = shell.run_cell_magic(
        "features", "rows --at at --project air --into training", "late:flights  # how many\n\nlate:delay\n"
    )
    assert shell.user_ns["training"].columns == [
        *asked().columns,
        "late__flights",
        "late__delay",
        "late__event_timestamp",
        "late___batch",
    ]
    assert shell.user_ns["rows"].columns == asked().columns
    assert joined.coverage[0].rows == 40
    shell.user_ns["table"] = asked().to_pandas()
    shell.run_cell_magic("features", "table --at at --project air", "late")
    assert isinstance(shell.user_ns["table"], pd.DataFrame)
    assert "late__flights" in shell.user_ns["table"].columns


def test_the_cell_magic_says_what_is_wrong(shell):
    with pytest.raises(UsageError, match="make the frame first"):
        shell.run_cell_magic("features", "nothing --project air", "late")
    shell.user_ns["rows"] = asked()
    with pytest.raises(UsageError, match="did you mean 'late'"):
        shell.run_cell_magic("features", "rows --at at --project air", "lates")


def test_conflict_is_what_a_failed_join_raises(client, state):
    with pytest.raises(Conflict, match="ask again"):
        joins.join(
            asked(),
            ["late"],
            at="at",
            project="air",
            client=client,
            tell=lambda status: client.features.cancel_join("air", status.id),
        )
