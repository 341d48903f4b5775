"""What Lab hears of runs: one's own failures, what one started by hand, and what a job asks for; a page that comes back hears what it missed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs_world import USERS, RunTokens, World
from jobs_world import state as make_state
from running import wait_for
from test_jobs_fires import add

from cellwork import notify
from cellwork.client import Client
from cellwork.errors import BadInput, Unavailable
from cellwork.home import Home
from cellwork.wire.jobs import JobRequest, Notify, Policy, Progress, Run, RunRequest
from cellwork.wire.origin import Origin
from cellwork.wire.records import Event
from cellwork_hub.jobs import claims, definitions, notices, store
from cellwork_hub.jobs import runs as queue
from cellwork_hub.jobs.store import State
from cellwork_hub.route import Call

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


ODD = ["http://host:port/x", "http://127.0.0.1:99999/x", "http://127.0.0.1:0/x", "http://[::1/x", "http:///x", "http://:80/x", "http://h\ud800/x", "http://h/\ud800", "http://h/\0", "http://xn--a/", "ftp://127.0.0.1/", "http://256.1.1.1/"]  # fmt: skip


@pytest.mark.parametrize("url", [*ODD, "http://user:word@host/", "http://host/a b"])
def test_an_address_that_no_webhook_can_be_sent_to_is_refused(url: str) -> None:
    with pytest.raises(BadInput, match="is not an address of HTTP"):
        notify.check_address(url)


@pytest.mark.parametrize("url", ODD)
def test_a_webhook_that_can_not_be_sent_did_not_arrive(tmp_path: Path, url: str) -> None:
    with pytest.raises(Unavailable):
        notify.post(Home(tmp_path).ensure(), url, {})


@pytest.mark.parametrize(
    "url", ["http://host", "https://host:8443/a?b=c#d", "http://[::1]:80/x", "http://münchen.de/x"]
)
def test_an_address_of_http_is_taken(url: str) -> None:
    notify.check_address(url)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return make_state(tmp_path, RunTokens())


def call(who: str, body: Any = None, **path: str) -> Call:
    return Call(USERS[f"{who}-token"], "req_1", Origin(), path, {}, body, {})


def failed(state: State, *told: Notify, name: str = "score") -> str:
    """Return the failed run of a job that asks for notices."""
    add(state, name, policy=Policy(notify=list(told)))
    run = queue.start(state, call("ada", RunRequest(job=f"flights/{name}")))
    claim = claims.take(state, call("runner"), "r")
    assert claim is not None
    claims.report(state, call("runner", Progress(fence=claim.fence, state="failed", cell=1, cells=1), run=run.id))
    return run.id


def waiting(state: State) -> list[dict[str, Any]]:
    with state.engine.connect() as db:
        return store.select(db, "SELECT * FROM notices ORDER BY seq")


def spoil(state: State, run: str, change: str) -> None:
    """Leave in the notices of `run` what can't be asked for today."""
    with state.engine.begin() as db:
        store.write(db, f"UPDATE notices SET {change} WHERE run = :run", run=run)


@pytest.mark.parametrize("change", ['told = \'{"webhook": "http://host:port/x"}\'', "told = 'no JSON'"])
def test_a_notice_that_can_not_be_sent_keeps_no_other_back(state: State, change: str) -> None:
    spoil(state, failed(state, Notify(webhook="http://127.0.0.1:1/x"), name="poison"), change)
    failed(state, Notify(webhook="http://127.0.0.1:1/x"))
    assert notices.send_waiting(state) == 0
    first, second = waiting(state)
    assert (first["tries"], second["tries"], first["error"] != "") == (1, 1, True)
    assert "did not answer" in second["error"]
    spoil(state, first["run"], f"next_try = 0, tries = {notify.MOST_TRIES - 1}")
    notices.send_waiting(state)
    assert waiting(state)[0]["sent"], "and it is given up like any other"


def test_a_run_that_is_forgotten_while_its_notices_are_sent_ends_nobodys_thread(state: State) -> None:
    """The first notice is received; meanwhile the run goes, and the other notices of what was read with it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        hook = Notify(webhook=f"http://127.0.0.1:{listening.getsockname()[1]}/x")
        run = failed(state, hook, hook)
        failed(state, Notify(webhook="http://127.0.0.1:1/x"), name="other")

        def receive() -> None:
            connection, _ = listening.accept()
            with connection, connection.makefile("rb") as said:
                head = list(iter(said.readline, b"\r\n"))
                said.read(next(int(line.split()[1]) for line in head if line.lower().startswith(b"content-length")))
                queue.forget(state, call("ada", run=run))
                connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

        thread = threading.Thread(target=receive, daemon=True)
        thread.start()
        assert notices.send_waiting(state) == 1
        thread.join(60)
    (left,) = waiting(state)
    assert left["tries"] == 1


def test_a_notice_of_a_run_that_is_gone_is_settled(state: State) -> None:
    run = failed(state, Notify(webhook="http://127.0.0.1:1/x"))
    with state.engine.begin() as db:
        store.write(db, "DELETE FROM runs WHERE id = :run", run=run)
    notices.send_waiting(state)
    (left,) = waiting(state)
    assert left["sent"]
    assert "gone" in left["error"]


def test_whatever_a_sender_stumbles_over_it_goes_on(state: State, caplog: pytest.LogCaptureFixture) -> None:
    """A number that is none stands for all that was not thought of."""
    failed(state, Notify(webhook="http://127.0.0.1:1/x"))
    with state.engine.begin() as db:
        store.write(db, "UPDATE notices SET tries = 'many'")
    sender = notices.Sender(state)
    sender.start()
    wait_for(lambda: "notices wait" in caplog.text, 60, "what it stumbles over")
    assert sender.alive()
    with state.engine.begin() as db:
        store.write(db, "UPDATE notices SET tries = 0, next_try = 0")
    wait_for(lambda: waiting(state)[0]["tries"], 60, "the next try")
    sender.stop()
    assert not sender.alive()


def test_who_removes_a_job_ends_its_waiting_runs_as_if_they_were_stopped(state: State) -> None:
    add(state, policy=Policy(notify=[Notify(on=("stopped",), webhook="http://127.0.0.1:1/x")]))
    run = queue.start(state, call("ada", RunRequest(job="flights/score")))
    definitions.remove(state, call("ada", project="flights", name="score"))
    with state.engine.connect() as db:
        row = store.run_row(db, run.id)
    assert (row["state"], bool(row["ended"])) == ("stopped", True)
    assert [notice["state"] for notice in waiting(state)] == ["stopped"]
