"""What Lab hears of runs: one's own failures, what one started by hand, and what a job asks for; a page that comes back hears what it missed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_world import World

from cellwork.client import Client
from cellwork.wire.jobs import JobRequest, Notify, Policy, Progress, Run, RunRequest
from cellwork.wire.records import Event
from cellwork_hub.jobs import store

WORKS = (Path(__file__).resolve().parents[1] / "notebooks" / "works.ipynb").read_text()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("home"))
    yield world
    world.close()


def end(world: World, run: Run, word: str, error: str = "") -> str:
    claim = world.client("runner").jobs.claim("r", wait_seconds=5)
    assert claim is not None
    assert claim.run.id == run.id
    said = Progress(fence=claim.fence, state=word, cell=2, cells=3, error=error)  # type: ignore[arg-type]
    world.client("runner").jobs.report(run.id, said)
    return run.id


def by_hand(world: World, who: str = "ada") -> Run:
    return world.client(who).jobs.start(RunRequest(project="p", notebook="n.ipynb", content=WORKS))


def by_clock(world: World, name: str, *notify: Notify) -> Run:
    """Return a run of ada's as a schedule makes it."""
    jobs = world.client().jobs
    jobs.ensure(JobRequest(project="p", name=name, notebook="n.ipynb", content=WORKS, policy=Policy(notify=list(notify))))  # fmt: skip
    run = jobs.start(RunRequest(job=f"p/{name}"))
    with world.state.engine.begin() as db:
        store.write(db, "UPDATE runs SET cause = 'schedule' WHERE id = :run", run=run.id)
    return run


def heard(client: Client, after: int | None, count: int) -> list[Event]:
    """Return the first `count` events of the stream."""
    stream = client.jobs.news(after)
    return [next(stream) for _ in range(count)]


def test_the_owner_hears_of_failures_of_what_was_started_by_hand_and_of_what_a_job_asks_for(world: World) -> None:
    ada = world.client()
    (begin,) = heard(ada, None, 1)
    told = [end(world, by_hand(world), "succeeded"), end(world, by_clock(world, "fails"), "failed", "NameError: x\nTraceback")]  # fmt: skip
    end(world, by_clock(world, "silent"), "succeeded")
    told.append(end(world, by_clock(world, "asks", Notify(on=("succeeded",), lab=True)), "succeeded"))
    end(world, by_hand(world, "bob"), "failed")
    told.append(end(world, by_hand(world), "failed"))
    events = heard(ada, begin.seq, 5)[1:]
    assert [event.subject for event in events] == told, "nothing of bob's, nothing of what succeeds as it should"
    failed = events[1]
    assert (failed.name, failed.data["job"], failed.data["cell"], failed.data["cells"]) == ("run.failed", "p/fails", 2, 3)  # fmt: skip
    assert failed.data["error"] == "NameError: x", "no traceback in a notice"
    assert [event.subject for event in heard(ada, failed.seq, 3)[1:]] == told[2:], (
        "a page that comes back hears the rest"
    )


def test_a_new_page_begins_now_and_one_of_another_home_does_not_wait_for_ever(world: World) -> None:
    end(world, by_hand(world), "failed")
    ada = world.client()
    (begin,) = heard(ada, None, 1)
    (other,) = heard(ada, begin.seq + 1_000_000, 1)
    assert other.seq == begin.seq
    stream = ada.jobs.news(begin.seq)
    assert next(stream).name == "begin"
    run = end(world, by_hand(world), "failed")
    assert next(stream).subject == run, "and it comes while the stream is open"
