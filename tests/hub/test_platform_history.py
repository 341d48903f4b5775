"""Joins for rows of one's own: over HTTP, by the library, and by `%%features` in a real shell."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import feature_world
import pandas as pd
import polars as pl
import pytest
import raw_platform
from click.testing import CliRunner
from feature_world import ANYONE, DAY, definitions, flights, new_state, service, work
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from cellwork import ids
from cellwork.cli import main
from cellwork.client import Client
from cellwork.errors import BadInput, Conflict, NotFound, TooBusy, TooLarge
from cellwork.features import history, joins
from cellwork.features.history import JoinView
from cellwork.wire.datasets import Estimate
from cellwork.wire.features import HistoryStatus
from cellwork.wire.records import Principal
from cellwork_hub.platform import background, feature_tables
from cellwork_hub.platform.background import Line, Task
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
    with pytest.raises(BadInput, match="not a readable parquet file"):
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


def test_an_interrupted_cell_says_so_cancels_and_changes_no_variable(shell, monkeypatch):
    shell.user_ns["rows"] = asked()

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(joins.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shell.run_cell_magic("features", "rows --at at --project air", "late")
    assert shell.user_ns["rows"].equals(asked())


def test_the_cell_refuses_what_does_not_fit_in_its_memory(shell):
    shell.user_ns["rows"] = pl.concat([asked(1000)] * 40)
    with pytest.raises(UsageError, match="allow more memory"):
        shell.run_cell_magic("features", "rows --at at --project air --memory 1", "late")


def test_with_a_limit_of_memory_the_join_is_the_same(client):
    free, capped = (
        joins.join(asked(), ["late"], at="at", project="air", memory_mb=memory, client=client) for memory in (None, 1)
    )
    assert capped.frame.equals(free.frame)
    assert capped.coverage == free.coverage


def test_an_estimate_joins_nothing_and_refuses_what_the_join_would(client):
    told = joins.estimate(asked(), ["late"], at="at", project="air", client=client)
    assert (told.observations, told.feature_rows) == (40, client.features.rows("air", "late").height)
    with pytest.raises(BadInput, match="did you mean 'late'"):
        joins.estimate(asked(), ["lates"], at="at", project="air", client=client)


def by_library(shell: InteractiveShell, source: Path) -> None:
    joins.join(asked(), ["late"], at="at", project="air", tell=joins.Teller(print))


def by_cell(shell: InteractiveShell, source: Path) -> None:
    shell.user_ns["rows"] = asked()
    shell.run_cell_magic("features", "rows --at at --project air", "late")


def by_command(shell: InteractiveShell, source: Path) -> None:
    command = ["feature", "join", str(source), "late", "--at", "at", "--project", "air", "--out", f"{source}.out"]
    assert CliRunner().invoke(main, command).exit_code == 0


@pytest.mark.parametrize("way", [by_library, by_cell, by_command])
def test_the_estimate_is_told_before_a_feature_row_is_read(
    shell: InteractiveShell,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[InteractiveShell, Path], None],
) -> None:
    """No row is read until the words were said; were they only said with the join, it would wait for them in vain."""
    asked().write_parquet(tmp_path / "rows.parquet")
    said, waited = threading.Event(), []
    say, read = joins.say_estimate, feature_tables.read

    def saying(told: Estimate) -> str:
        said.set()
        return say(told)

    def reading(*args: Any, **terms: Any) -> pl.DataFrame:
        waited.append(said.wait(60))
        return read(*args, **terms)

    monkeypatch.setattr(joins, "say_estimate", saying)
    monkeypatch.setattr(feature_tables, "read", reading)
    way(shell, tmp_path / "rows.parquet")
    assert waited == [True]


def test_a_cell_that_only_asks_for_the_estimate_joins_nothing(shell: InteractiveShell) -> None:
    shell.user_ns["rows"] = asked()
    with capture_output() as shown:
        assert shell.run_cell_magic("features", "rows --at at --project air --estimate", "late") is None
    assert "40 rows" in shown.outputs[-1].data["text/html"]
    assert shell.user_ns["rows"].equals(asked())
    with pytest.raises(UsageError, match="did you mean 'late'"):
        shell.run_cell_magic("features", "rows --at at --project air --estimate", "lates")


def test_twenty_five_joins_one_after_the_other_are_not_too_many(client):
    """Those that were fetched hold no place."""
    for _ in range(25):
        assert joins.join(asked(4), ["late"], at="at", project="air", client=client).frame.height == 4


class Work:
    """A line of tasks whose results are bytes of a size that one chooses."""

    def __init__(self) -> None:
        self.line: Line[HistoryStatus] = Line("join")

    def add(self, owner: str, size: int = 1, before: Callable[[], Any] = lambda: None) -> str:
        def make(tell: Any) -> bytes:
            before()
            return b"r" * size

        status = HistoryStatus(id=ids.new("join"), state="running", steps=1, estimate=None)
        self.line.add(Task(owner, status, make))
        return status.id

    def through(self) -> None:
        """Return when all that was added before is done."""
        self.line._worker.submit(lambda: None).result(60)

    def there(self, owner: str, names: list[str]) -> list[bool]:
        """Return which of those hold a result."""
        caller = dataclasses.replace(raw_platform.call(), principal=Principal(kind="user", name=owner))

        def one(name: str) -> bool:
            with contextlib.suppress(NotFound):
                return bool(self.line.get(caller, name).result)
            return False

        return [one(name) for name in names]


def test_results_that_one_never_fetches_keep_nobody_out_and_the_own_oldest_makes_room() -> None:
    work = Work()
    mine = [work.add("ada") for _ in range(background.MOST)]
    work.through()
    others = [work.add("bob"), work.add("eve")]
    mine.append(work.add("ada"))
    work.through()
    assert work.there("ada", mine) == [False] + [True] * background.MOST
    assert [*work.there("bob", others[:1]), *work.there("eve", others[1:])] == [True, True]


def test_only_who_has_too_many_running_is_told_to_wait() -> None:
    work, gate = Work(), threading.Event()
    mine = [work.add("ada", before=lambda: gate.wait(60)) for _ in range(background.MOST)]
    try:
        with pytest.raises(TooBusy, match=r"joins.*5.*of yours run or wait already; wait, or cancel one"):
            work.add("ada")
        other = work.add("bob")
    finally:
        gate.set()
    work.through()
    assert work.there("ada", mine) + work.there("bob", [other]) == [True] * (background.MOST + 1)


def test_of_too_much_memory_the_oldest_result_of_who_holds_most_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "MOST_BYTES", 10)
    work = Work()
    asked: dict[str, list[str]] = {"bob": [work.add("bob", 2)], "ada": [work.add("ada", 4), work.add("ada", 4)]}
    asked["eva"] = [work.add("eva", 3)]

    def there() -> dict[str, list[bool]]:
        work.through()
        return {owner: work.there(owner, ids) for owner, ids in asked.items()}

    assert there() == {"bob": [True], "ada": [False, True], "eva": [True]}
    asked["ada"].append(work.add("ada", 100))
    assert there() == {"bob": [True], "ada": [False, False, True], "eva": [True]}
    asked["bob"].append(work.add("bob", 2))
    assert there() == {"bob": [True, True], "ada": [False, False, False], "eva": [True]}


def test_a_cancel_during_the_last_step_keeps_no_result() -> None:
    work, known, caller = Work(), threading.Event(), raw_platform.call()
    mine: list[str] = []

    def cancel() -> None:
        known.wait(60)
        work.line.cancel(caller, mine[0])

    mine.append(work.add(caller.principal.name, before=cancel))
    known.set()
    work.through()
    task = work.line.get(caller, mine[0])
    assert (task.status.state, task.result) == ("cancelled", b"")


def test_the_command_joins_a_file_and_tells_what_it_takes(shell, tmp_path):
    source, out = tmp_path / "rows.parquet", tmp_path / "joined.parquet"
    asked().write_parquet(source)
    command = ["feature", "join", str(source), "late", "--at", "at", "--project", "air"]
    estimated = CliRunner().invoke(main, [*command, "--estimate"])
    assert "40 rows" in estimated.output
    assert CliRunner().invoke(main, command).exit_code == 2
    done = CliRunner().invoke(main, [*command, "--out", str(out), "--memory", "100"])
    assert done.exit_code == 0, done.output
    assert "about" in done.stderr
    assert "40 rows found a value" in done.stdout
    assert "late__flights" in pl.read_parquet(out).columns
    (tmp_path / "bad.parquet").write_bytes(b"rows")
    command[2] = str(tmp_path / "bad.parquet")
    assert "are no parquet" in CliRunner().invoke(main, [*command, "--estimate"]).output


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
