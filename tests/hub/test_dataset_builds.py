"""Builds one follows: what they take is told before, how far they are meanwhile, memory has a limit, a cancel leaves nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner
from feature_world import DAY, definitions, flights, work
from raw_platform import TOKENS, serving, state_in

from cellwork import client as clients
from cellwork import data
from cellwork.cli import main
from cellwork.client import Client
from cellwork.data import dataset
from cellwork.errors import BadInput, Conflict, NotFound, TooLarge
from cellwork.features import history
from cellwork.wire.datasets import BuildStatus
from cellwork_hub.platform import batches, dataset_builds, datasets, features
from cellwork_hub.platform.state import State

ROUTERS = [batches, features, datasets, dataset_builds]
ASKED: dict[str, Any] = {
    "observations": "departures",
    "features": ["late"],
    "start": DAY - timedelta(hours=1),
    "end": DAY + timedelta(days=3),
}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    return state_in(tmp_path_factory.mktemp("builds"), ROUTERS, on_batch=(features.enqueue,))


@pytest.fixture(scope="module")
def address(state: State) -> Iterator[str]:
    with serving(state, ROUTERS) as url, Client(url, "author") as client:
        for day in range(3):
            client.batches.ingest("air", "flights", flights(day, count=24), f"d{day}")
        client.features.apply(definitions())
        work(state)
        yield url


@pytest.fixture
def air(address: str, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setenv("CELLWORK_URL", address)
    monkeypatch.setenv("CELLWORK_TOKEN", "author")
    return clients.connect()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Hold each join before its first step until this is set; the join itself stays what it is."""
    gate, join = threading.Event(), history.join

    def waits(*given: Any, progress: Callable[[history.Progress], None] | None = None, **named: Any) -> Any:
        def tell(step: history.Progress) -> None:
            gate.wait(60)
            if progress:
                progress(step)

        return join(*given, progress=tell, **named)

    monkeypatch.setattr(history, "join", waits)
    return gate


def stored(state: State) -> list[str]:
    return sorted(path.name for path in (state.home.root / "data" / "datasets").glob("*"))


def ended(air: Client, build: str) -> BuildStatus:
    end = time.monotonic() + 60
    while (status := air.datasets.build_status(build)).state == "running" and time.monotonic() < end:
        time.sleep(0.02)
    return status


def test_the_estimate_comes_first_then_the_steps_then_the_dataset(air: Client, state: State) -> None:
    told: list[BuildStatus] = []
    built = dataset.build("air/followed", **ASKED, tell=told.append)
    assert told[0].estimate is not None
    assert told[0].estimate.observations == built.record.rows == 72
    assert told[0].estimate.feature_rows == state_rows(air)
    assert (told[-1].state, told[-1].done, told[-1].dataset) == ("done", told[-1].steps, built.record)


def state_rows(air: Client) -> int:
    return air.features.rows("air", "late").height


def test_an_estimate_alone_builds_nothing_and_refuses_what_the_build_would(air: Client, state: State) -> None:
    before = stored(state)
    told = dataset.estimate("air/estimated", **ASKED)
    assert (told.observations, told.partitions) == (72, 1)
    assert told.result_bytes > 0
    with pytest.raises(BadInput, match="did you mean 'late'"):
        dataset.estimate("air/estimated", **{**ASKED, "features": ["lates"]})
    with pytest.raises(BadInput, match="has no rows"):
        dataset.estimate("air/estimated", **{**ASKED, "start": "1999-01-01", "end": "1999-01-02"})
    assert stored(state) == before


def test_within_a_limit_of_memory_the_dataset_is_the_same_made_in_parts(air: Client, state: State) -> None:
    """Three hundred airports: feature rows that do not fit in 1 MB at once, beside few enough observations."""
    hours = [flights(0).with_columns(pl.col("id") + 1000 * n, origin=pl.lit(f"A{n}")) for n in range(300)]
    air.batches.ingest("big", "flights", pl.concat(hours), "all")
    air.features.apply(definitions("big"))
    work(state)
    asked = {**ASKED, "start": DAY + timedelta(hours=8), "end": DAY + timedelta(hours=16)}
    free = dataset.build("big/free", **asked)
    told: list[BuildStatus] = []
    capped = dataset.build("big/capped", **asked, memory_mb=1, tell=told.append)
    assert told[0].estimate is not None
    assert told[0].estimate.partitions > 1
    assert told[0].estimate.work_bytes < 1_000_000
    assert capped.record.content_sha256 == free.record.content_sha256
    assert capped.record.batches == free.record.batches


def test_what_can_not_be_done_in_the_memory_is_refused_before_it_begins(air: Client, state: State) -> None:
    hours = pl.concat([flights(day, count=24).with_columns(pl.col("id") + 10_000) for day in range(3, 300)])
    air.batches.ingest("air", "flights", hours, "year")
    work(state)
    before = stored(state)
    whole_year = {**ASKED, "end": DAY + timedelta(days=400)}
    with pytest.raises(TooLarge, match="allow more memory"):
        dataset.build("air/large", **whole_year, memory_mb=1)
    assert stored(state) == before


def test_a_cancelled_build_leaves_nothing_and_can_be_asked_for_again(
    air: Client, state: State, slow: threading.Event
) -> None:
    before = stored(state)
    request = dataset._request(
        "air/cancelled", "departures", ["late"], (ASKED["start"], ASKED["end"]), batch="", project=None
    )
    started = air.datasets.start_build(request)
    assert started.state == "running"
    for _ in range(2):
        air.datasets.cancel_build(started.id)
    slow.set()
    status = ended(air, started.id)
    assert (status.state, status.dataset) == ("cancelled", None)
    assert stored(state) == before
    assert dataset.build("air/cancelled", **ASKED).record.name == "cancelled"


def test_an_interrupt_of_who_waits_cancels_the_build(air: Client, state: State, slow: threading.Event) -> None:
    before, seen = stored(state), []

    def interrupt(status: BuildStatus) -> None:
        seen.append(status.id)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dataset.build("air/interrupted", **ASKED, tell=interrupt)
    slow.set()
    assert ended(air, seen[0]).state == "cancelled"
    assert stored(state) == before


def test_a_cancel_that_comes_too_late_takes_nothing_back(air: Client) -> None:
    built = dataset.build("air/late", **ASKED)
    again = air.datasets.start_build(
        dataset._request("air/late", "departures", ["late"], (ASKED["start"], ASKED["end"]), batch="", project=None)
    )
    assert ended(air, again.id).dataset == built.record
    assert air.datasets.cancel_build(again.id).state == "done"
    assert air.datasets.get(built.id) == built.record


def test_who_waits_learns_that_somebody_cancelled(air: Client, slow: threading.Event) -> None:
    def cancel(status: BuildStatus) -> None:
        air.datasets.cancel_build(status.id)
        slow.set()

    with pytest.raises(Conflict, match="was cancelled"):
        dataset.build("air/by-another", **ASKED, tell=cancel)


def test_a_build_is_nobody_elses(air: Client, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    request = dataset._request(
        "air/mine", "departures", ["late"], (ASKED["start"], ASKED["end"]), batch="", project=None
    )
    mine = air.datasets.start_build(request)
    monkeypatch.setitem(TOKENS, "other", TOKENS["author"])
    with Client(address, "other") as other:
        for ask in (other.datasets.build_status, other.datasets.cancel_build):
            with pytest.raises(NotFound, match="is not there"):
                ask(mine.id)
    assert ended(air, mine.id).state == "done"


def test_twenty_five_builds_one_after_the_other_are_not_too_many(air: Client) -> None:
    """Those that ended hold no place."""
    found = {dataset.build("air/often", **ASKED).id for _ in range(25)}
    assert len(found) == 1


COMMAND = [
    "dataset", "build", "air/by-command", "--observations", "departures", "--feature", "late",
    "--start", "2013-05-31", "--end", "2013-06-04",
]  # fmt: skip


def test_the_command_tells_the_estimate_and_the_steps_beside_its_answer(air: Client, state: State) -> None:
    before = stored(state)
    estimated = CliRunner().invoke(main, [*COMMAND, "--estimate"])
    assert "feature rows: about" in estimated.output
    assert json.loads(CliRunner().invoke(main, [*COMMAND, "--estimate", "--json"]).output)["observations"] > 0
    assert stored(state) == before
    built = CliRunner().invoke(main, [*COMMAND, "--memory", "100"])
    assert built.exit_code == 0, built.output
    assert "feature rows: about" in built.stderr
    assert "Dataset air/by-command" in built.stdout
    again = CliRunner().invoke(main, [*COMMAND, "--json"])
    assert json.loads(again.stdout)["name"] == "by-command"


def test_the_command_refuses_too_little_memory_in_a_sentence(air: Client) -> None:
    long = [*COMMAND[:2], "air/huge", *COMMAND[3:-1], "2015-01-01", "--memory", "1"]
    refused = CliRunner().invoke(main, long)
    assert refused.exit_code != 0
    assert "allow more memory" in refused.output


def test_an_interrupted_command_cancels_its_build(
    air: Client, state: State, slow: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, starts = stored(state), []

    def interrupted(seconds: float) -> None:
        starts.append(seconds)
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(dataset.time, "sleep", interrupted)
        result = CliRunner().invoke(main, [*COMMAND[:2], "air/stopped", *COMMAND[3:]])
    slow.set()
    assert starts
    assert result.exit_code != 0
    assert data.dataset.build("air/after", **ASKED).record.rows  # the line goes on
    assert stored(state) != before
    assert "stopped" not in {record.name for record in dataset.listing("air")}


def test_a_batch_that_comes_between_the_wait_and_the_build_is_waited_for(
    air: Client, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited, wait = list[str](), type(air.features).wait

    def then_comes_one(self: Any, project: str, **named: Any) -> None:
        waited.append(project)
        if len(waited) == 1:
            air.batches.ingest("air", "flights", flights(9, count=24), "d9")
            return
        work(state)
        wait(self, project, **named)

    monkeypatch.setattr(type(air.features), "wait", then_comes_one)
    assert dataset.build("air/between", **ASKED).record.name == "between"
    assert waited == ["air", "air"]
