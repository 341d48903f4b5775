"""What a job says beside its time: what is caught up with, what comes first, when it is too late, who is told, what is forgotten."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs_world import USERS, RunTokens, lose, shortly_after_noon
from jobs_world import state as make_state
from test_jobs_fires import add, due_since, event, runs

from cellwork import clock, notify
from cellwork.errors import BadInput
from cellwork.jobs import schedule
from cellwork.wire.jobs import Claim, Notify, Policy, Progress, ResumeRequest, RunRequest, Schedule
from cellwork.wire.origin import Origin
from cellwork_hub.jobs import (
    attempts,
    checkpoints,
    claims,
    definitions,
    fires,
    leases,
    notices,
    reopen,
    retention,
    store,
)
from cellwork_hub.jobs import runs as queue
from cellwork_hub.jobs.store import State
from cellwork_hub.records import micros
from cellwork_hub.route import Call


@pytest.fixture(autouse=True)
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    shortly_after_noon(monkeypatch)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return make_state(tmp_path, RunTokens())


def call(who: str = "ada-token", body: Any = None, **path: str) -> Call:
    return Call(USERS[who], "req_1", Origin(), path, {}, body, {})


def take(state: State) -> Claim | None:
    return claims.take(state, call("runner-token"), "r")


def end(state: State, of: Claim, word: Any = "succeeded") -> None:
    claims.report(state, call("runner-token", Progress(fence=of.fence, state=word, cell=1, cells=1), run=of.run.id))


def by_hand(state: State, name: str) -> str:
    return queue.start(state, call(body=RunRequest(job=f"flights/{name}"))).id


@pytest.mark.parametrize(("while_running", "expected"), [("queue", 3), ("skip", 1)])
def test_what_comes_while_a_run_is_under_way_waits_or_is_left_out(
    state: State, while_running: Any, expected: int
) -> None:
    policy = Policy(while_running=while_running)
    add(state, schedule=Schedule(event="batch.ready", match={"dataset": "flights"}), policy=policy)
    assert fires.take_events(state, [event(1)]) == 1
    claim = take(state)
    fires.take_events(state, [event(2), event(3)])
    assert claim is not None
    assert len(runs(state)) == expected
    end(state, claim)
    fires.take_events(state, [event(2), event(3)])  # told again, as after a crash: what was left out stays so
    assert len(runs(state)) == expected
    assert fires.take_events(state, [event(4)]) == 1


@pytest.mark.parametrize(("catch_up", "expected"), [("all", 10), ("last", 1), ("none", 0)])
def test_after_ten_minutes_away_exactly_the_policy_is_caught_up_with(
    state: State, catch_up: Any, expected: int
) -> None:
    add(state, schedule=Schedule(every_seconds=60, catch_up=catch_up))
    first = clock.now().replace(second=0, microsecond=0) - timedelta(minutes=11)
    due_since(state, first)
    with state.engine.begin() as db:  # the two newest minutes are not what was missed
        store.write(db, "UPDATE jobs SET schedule = schedule")
    assert fires.tick(state) in ((expected + 2,) if catch_up == "all" else (max(expected, 1),))
    found = [run.due for run in runs(state)]
    if catch_up == "all":
        assert found == [first + k * timedelta(minutes=1) for k in range(12)]
    else:
        assert clock.now() - found[-1] < timedelta(minutes=1)
    assert fires.tick(state) == 0


def test_none_of_the_missed_times_is_made_up_for_if_the_job_says_so(state: State) -> None:
    add(state, schedule=Schedule(cron="0 3 1 1 *", catch_up="none"))
    due_since(state, datetime(2024, 1, 1, 3, tzinfo=UTC))
    assert (fires.tick(state), runs(state)) == (0, [])


def test_very_many_missed_times_come_in_portions_and_none_is_lost(state: State) -> None:
    add(state, schedule=Schedule(every_seconds=1, catch_up="all"))
    first = clock.now().replace(microsecond=0) - timedelta(seconds=3 * fires.MOST_AT_ONCE)
    due_since(state, first)
    for _ in range(5):
        fires.tick(state)
    found = [run.due for run in runs(state)]
    assert found == [first + timedelta(seconds=k) for k in range(len(found))]
    assert len(found) >= 3 * fires.MOST_AT_ONCE


@given(
    st.integers(1, 10_000), st.datetimes(datetime(2013, 1, 1), datetime(2013, 12, 31), timezones=st.just(UTC)), st.integers(0, 50)
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_an_interval_is_due_at_its_multiples_whatever_time_one_asks(every: int, start: datetime, skip: int) -> None:
    plan = Schedule(every_seconds=every)
    dues = [due for due, _ in zip(schedule.due(plan, start), range(skip + 2), strict=False)]
    assert all(due > start and due.timestamp() % every == 0 for due in dues)
    assert next(schedule.due(plan, dues[skip])) == dues[skip + 1]


def test_a_job_comes_after_each_success_of_another_and_knows_its_run(state: State) -> None:
    add(state, "first")
    add(state, "second", schedule=Schedule(after="flights/first"), parameters={"name": "${run}"})
    for word, count in (("failed", 0), ("succeeded", 1), ("succeeded", 2)):
        of = take(state) if by_hand(state, "first") else None
        assert of is not None
        end(state, of, word)
        assert len([run for run in runs(state) if run.job == "flights/second"]) == count
        while (other := take(state)) is not None:
            assert other.run.job == "flights/second"
            assert other.run.parameters == {"name": of.run.id}
            end(state, other)


def test_no_job_comes_after_a_run_that_was_stopped_whatever_its_runner_says(state: State) -> None:
    add(state, "first")
    add(state, "second", schedule=Schedule(after="flights/first"))
    of = take(state) if by_hand(state, "first") else None
    assert of is not None
    queue.stop(state, call(run=of.run.id))
    end(state, of, "succeeded")
    assert [(run.job, run.state) for run in runs(state)] == [("flights/first", "stopped")]


def test_a_circle_of_jobs_is_refused(state: State) -> None:
    add(state, "a", schedule=Schedule(after="flights/c"))
    add(state, "b", schedule=Schedule(after="flights/a"))
    with pytest.raises(BadInput, match="flights/c after flights/b after flights/a after flights/c"):
        add(state, "c", schedule=Schedule(after="flights/b"))


def test_last_success_is_when_the_last_good_run_was_due(state: State) -> None:
    add(state, schedule=Schedule(every_seconds=3600), parameters={"name": "since ${last_success}"})
    due = clock.now().replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    for word, expected in (("succeeded", "since "), ("failed", f"since {due.isoformat()}"), ("succeeded", f"since {due.isoformat()}")):  # fmt: skip
        with state.engine.begin() as db:
            store.write(db, "DELETE FROM fires WHERE fire <> :first", first=str(micros(due)))
        due_since(state, due if not runs(state) else due + timedelta(hours=1))
        fires.tick(state)
        of = take(state)
        assert of is not None
        assert of.run.parameters == {"name": expected}
        end(state, of, word)
        if len(runs(state)) == 1:
            with state.engine.begin() as db:
                store.write(db, "UPDATE runs SET due = :due", due=micros(due))
                store.write(db, "UPDATE successes SET at = :due", due=micros(due))


def test_the_last_success_is_known_however_little_is_kept_of_its_run(state: State) -> None:
    """An incremental notebook would take everything from the beginning."""
    add(state, parameters={"name": "since ${last_success}"}, policy=Policy(keep_runs=2))
    for word in ("succeeded", "failed", "failed", "failed"):
        of = take(state) if by_hand(state, "score") else None
        assert of is not None
        end(state, of, word)
    since = f"since {runs(state)[0].created.isoformat()}"
    assert retention.forget(state) == 2
    assert "succeeded" not in {run.state for run in runs(state)}
    of = take(state) if by_hand(state, "score") else None
    assert of is not None
    assert of.run.parameters == {"name": since}


def test_a_success_that_is_forgotten_by_hand_is_none(state: State) -> None:
    add(state, parameters={"name": "since ${last_success}"})
    for _ in range(2):
        of = take(state) if by_hand(state, "score") else None
        assert of is not None
        assert of.run.parameters == {"name": "since "}
        end(state, of)
        queue.forget(state, call(run=of.run.id))


def test_a_higher_priority_starts_first_and_equals_in_order(state: State) -> None:
    add(state, "low")
    add(state, "high", policy=Policy(priority=5))
    queued = [by_hand(state, name) for name in ("low", "low", "high")]
    started = [of.run.id for _ in range(3) if (of := take(state)) and not end(state, of)]
    assert started == [queued[2], queued[0], queued[1]]


def test_a_run_past_its_deadline_never_starts_and_one_that_starts_gets_what_is_left(state: State) -> None:
    add(state, policy=Policy(deadline_seconds=1000))
    by_hand(state, "score")
    of = take(state)
    assert of is not None
    assert 800 <= of.timeout_seconds <= 1000
    end(state, of)
    late = by_hand(state, "score")
    with state.engine.begin() as db:
        store.write(db, "UPDATE runs SET deadline = 1 WHERE id = :id", id=late)
    assert attempts.miss(state) == 1
    assert attempts.miss(state) == 0
    run = next(run for run in runs(state) if run.id == late)
    assert (run.state, "deadline" in run.attempts[0].error) == ("failed", True)


def test_a_run_after_another_has_its_whole_deadline_however_late_that_one_was(state: State) -> None:
    """Its own due time stays that of the run before, for the parameters."""
    add(state, "first")
    add(state, "second", schedule=Schedule(after="flights/first"), policy=Policy(deadline_seconds=1000))
    of = take(state) if by_hand(state, "first") else None
    assert of is not None
    due = clock.now() - timedelta(days=300)
    with state.engine.begin() as db:
        store.write(db, "UPDATE runs SET due = :due", due=micros(due))
    end(state, of)
    assert attempts.miss(state) == 0
    after = take(state)
    assert after is not None
    assert (after.run.job, after.run.due) == ("flights/second", due)
    assert 800 <= after.timeout_seconds <= 1000


def test_retries_wait_ever_longer_as_the_job_says(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    at = clock.now()
    monkeypatch.setattr(clock, "now", lambda: at)
    add(state, retries=3, policy=Policy(backoff_seconds=100))
    identity, waits = by_hand(state, "score"), []
    for _ in range(3):
        of = take(state)
        assert of is not None
        end(state, of, "failed")
        with state.engine.begin() as db:
            row = store.run_row(db, identity)
            waits.append((row["not_before"] - store.now()) // 1_000_000)
            store.write(db, "UPDATE runs SET not_before = 0")
    assert waits == [100, 200, 400]


class Hook(BaseHTTPRequestHandler):
    """Takes webhooks; the first two get an error."""

    seen: list[tuple[bytes, str]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.seen.append((body, self.headers["x-cellwork-signature"]))  # type: ignore[attr-defined]
        self.send_response(500 if len(self.server.seen) < 3 else 204)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def hook() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Hook)
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_webhook_is_told_of_a_failure_signed_and_until_it_listens(state: State, hook: HTTPServer) -> None:
    url = f"http://127.0.0.1:{hook.server_port}/told"
    add(state, parameters={"name": "not for others"}, policy=Policy(notify=[Notify(webhook=url)]))
    for word in ("succeeded", "failed"):
        by_hand(state, "score")
        of = take(state)
        assert of is not None
        end(state, of, word)
    arrived = []
    for _ in range(5):
        arrived.append(notices.send_waiting(state))
        with state.engine.begin() as db:
            store.write(db, "UPDATE notices SET next_try = 0")
    assert arrived == [0, 0, 1, 0, 0]
    seen = hook.seen  # type: ignore[attr-defined]
    assert len({body for body, _ in seen}) == 1, "the same notice each time"
    body, signature = seen[-1]
    told = json.loads(body)
    assert (told["state"], told["job"], told["run"]) == ("failed", "flights/score", of.run.id)
    assert b"not for others" not in body
    key = notify.signing_key(state.home).encode()
    assert signature == "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest()
    assert state.home.secret("webhook-key").stat().st_mode & 0o077 == 0


def mail_server(lines: list[str]) -> tuple[socket.socket, threading.Thread]:
    """Start a mail server that takes one message."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, connection.makefile("rb") as said:
            connection.sendall(b"220 here\r\n")
            data = False
            for line in map(bytes.decode, said):
                lines.append(line.strip())
                if data:
                    data = line.strip() != "."
                    answer = "" if data else "250 taken\r\n"
                else:
                    data = line.upper().startswith("DATA")
                    answer = (
                        "354 go on\r\n" if data else "221 bye\r\n" if line.upper().startswith("QUIT") else "250 ok\r\n"
                    )
                connection.sendall(answer.encode())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return listening, thread


def test_people_are_told_by_mail(state: State) -> None:
    lines: list[str] = []
    listening, thread = mail_server(lines)
    host, port = listening.getsockname()
    state = replace(state, mail_server=f"{host}:{port}", public_url="http://here")
    add(state, policy=Policy(notify=[Notify(on=("succeeded",), mail=["ada@example.org", "bob@example.org"])]))
    by_hand(state, "score")
    of = take(state)
    assert of is not None
    end(state, of)
    assert notices.send_waiting(state) == 1
    thread.join(60)
    listening.close()
    assert "Subject: [cellwork] flights/score succeeded" in lines
    assert "rcpt TO:<bob@example.org>" in lines
    assert any(of.run.id in line for line in lines)


def test_without_a_mail_server_the_notice_says_what_to_set(state: State) -> None:
    add(state, policy=Policy(notify=[Notify(mail=["ada@example.org"])]))
    by_hand(state, "score")
    of = take(state)
    assert of is not None
    end(state, of, "failed")
    assert notices.send_waiting(state) == 0
    with state.engine.connect() as db:
        assert "CELLWORK_MAIL_SERVER" in store.select(db, "SELECT error FROM notices")[0]["error"]


def test_old_runs_are_forgotten_but_never_fired_again(state: State) -> None:
    add(state, schedule=Schedule(every_seconds=60, catch_up="all"), policy=Policy(keep_runs=2))
    due_since(state, clock.now().replace(second=0, microsecond=0) - timedelta(minutes=3))
    assert fires.tick(state) == 4
    kept = []
    while (of := take(state)) is not None:
        end(state, of)
        folder = state.home.attempt(of.run.id, 1)
        folder.mkdir(parents=True)
        kept.append((of.run.id, folder))
    assert (retention.forget(state), retention.forget(state)) == (2, 0)
    assert [run.id for run in runs(state)] == [identity for identity, _ in kept[-2:]]
    assert [folder.exists() for _, folder in kept] == [False, False, True, True]
    due_since(state, clock.now().replace(second=0, microsecond=0) - timedelta(minutes=3))
    assert fires.tick(state) == 0


def saved(state: State, of: Claim) -> Path:
    """Save a checkpoint of the claimed run; returns its archive."""
    about = {"about": json.dumps({"key": "a" * 64, "cell": 1}), "fence": str(of.fence)}
    path = {"run": of.run.id, "key": "a" * 64}
    checkpoints.save(state, Call(USERS["runner-token"], "req_1", Origin(), path, about, b"what it held", {}))
    return state.home.checkpoint(**path)


@pytest.mark.parametrize(
    ("how", "stays"),
    [("succeeds", False), ("fails", True), ("is stopped", False), ("is stopped and lost", False), ("is stopped while it waits", False), ("loses its job", False)],
)  # fmt: skip
def test_checkpoints_stay_as_long_as_a_run_may_start_from_them(state: State, how: str, stays: bool) -> None:
    add(state, retries=1)
    of = take(state) if by_hand(state, "score") else None
    assert of is not None
    archive = saved(state, of)
    if how in ("is stopped while it waits", "loses its job"):
        end(state, of, "failed")
    assert archive.exists()
    if how.startswith("is stopped"):
        queue.stop(state, call(run=of.run.id))
    if how == "is stopped and lost":
        lose(state)
        assert attempts.expire(state) == 1
    elif how == "loses its job":
        definitions.remove(state, call(project="flights", name="score"))
    elif how != "is stopped while it waits":
        end(state, of, {"succeeds": "succeeded", "fails": "failed"}.get(how, "stopped"))
    assert (archive.exists(), archive.parent.exists()) == (stays, stays)


def test_what_a_service_that_was_killed_left_of_checkpoints_goes_when_it_starts(state: State) -> None:
    """Those of a run that goes on, or failed and may be resumed, stay; those of a forgotten one go too."""
    add(state)
    archives = {}
    for word in ("succeeded", "failed", "forgotten", "running"):
        of = take(state) if by_hand(state, "score") else None
        assert of is not None
        if word != "running":
            end(state, of, "failed" if word == "failed" else "succeeded")
        archives[word] = state.home.checkpoint(of.run.id, "a" * 64)
        if word == "forgotten":
            queue.forget(state, call(run=of.run.id))
        archives[word].parent.mkdir(parents=True)
        archives[word].touch()
    assert checkpoints.tidy(state) == 2
    assert {word for word, archive in archives.items() if archive.exists()} == {"failed", "running"}


def test_a_run_that_goes_on_between_the_choice_and_the_removal_is_not_forgotten(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(state, policy=Policy(keep_runs=1))
    for _ in range(2):
        by_hand(state, "score")
        of = take(state)
        assert of is not None
        end(state, of, "failed")
    going: list[Claim] = []
    remove = retention.remove

    def resume_before(state: State, run: str) -> bool:
        state.home.attempt(run, 1).mkdir(parents=True)
        reopen.resume(state, call(body=ResumeRequest(new_kernel=True), run=run))
        found = take(state)
        assert found is not None
        going.append(found)
        return remove(state, run)

    monkeypatch.setattr(retention, "remove", resume_before)
    assert retention.forget(state) == 0
    end(state, going[0])
    assert state.home.attempt(going[0].run.id, 1).exists()
    monkeypatch.undo()
    assert (retention.forget(state), retention.forget(state)) == (1, 0)


def test_whoever_asked_to_be_told_of_a_stopped_run_is_told_once(state: State) -> None:
    add(state, policy=Policy(notify=[Notify(on=("stopped",), webhook="http://127.0.0.1:1/told")]))
    waits, runs_on = by_hand(state, "score"), by_hand(state, "score")
    for run in (runs_on, waits):
        of = take(state) if run == waits else None
        for _ in range(2):
            queue.stop(state, call(run=run))
        if of:
            end(state, of, "stopped")
    with state.engine.connect() as db:
        told = store.select(db, "SELECT run, state FROM notices ORDER BY run")
    assert told == [{"run": run, "state": "stopped"} for run in sorted((waits, runs_on))]


@pytest.mark.parametrize("jump", [timedelta(minutes=30), timedelta(minutes=-30)])
def test_a_host_that_slept_or_a_clock_that_was_set_ends_no_run_and_no_kernel(
    state: State, monkeypatch: pytest.MonkeyPatch, jump: timedelta
) -> None:
    """What was truly lost is taken back a lease later, as ever."""
    state = replace(state, keep=timedelta(seconds=60))
    for name in ("runs", "kept"):
        add(state, name)
        by_hand(state, name)
    running, failed = take(state), take(state)
    assert running is not None
    assert failed is not None
    last = Progress(fence=failed.fence, state="failed", cell=1, cells=1, keepable=True)
    assert claims.report(state, call("runner-token", last, run=failed.run.id)).kept is not None
    assert (attempts.expire(state), leases.expire(state)) == (0, 0)
    now = clock.now
    for lost, on in ((0, timedelta()), (1, state.lease * 2)):
        monkeypatch.setattr(clock, "now", lambda on=on: now() + jump + on)
        monkeypatch.setattr(store.time, "monotonic", lambda on=on, at=time.monotonic: at() + on.total_seconds())
        assert (attempts.expire(state), leases.expire(state)) == (lost, lost)


@pytest.mark.parametrize(("passes", "word"), [([90], "running"), ([90, *[10] * 7], "queued")])
def test_a_machine_that_stood_still_takes_no_run_from_its_runner(
    state: State, monkeypatch: pytest.MonkeyPatch, passes: list[int], word: str
) -> None:
    """The runner could not report either. Who is silent for a whole lease afterwards is lost, as ever."""
    add(state)
    by_hand(state, "score")
    assert take(state) is not None
    ticker, now, monotonic, on = fires.Ticker(state, lambda after: []), clock.now, time.monotonic, timedelta()
    monkeypatch.setattr(clock, "now", lambda: now() + on)
    monkeypatch.setattr(fires.time, "monotonic", lambda: monotonic() + on.total_seconds())
    left = iter(passes)

    def wait(_: float) -> bool:
        """Let the seconds of the next turn pass; there are no more turns than those."""
        nonlocal on
        step = next(left, None)
        on += timedelta(seconds=step or 0)
        return step is None

    monkeypatch.setattr(ticker._stop, "wait", wait)
    ticker._tick()
    [run] = runs(state)
    assert run.state == word


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({"policy": Policy(priority=1000)}, "priority"),
        ({"policy": Policy(notify=[Notify()])}, "no webhook, mail or lab"),
        ({"policy": Policy(notify=[Notify(webhook="file:///etc/passwd")])}, "not an address of HTTP"),
        ({"policy": Policy(notify=[Notify(webhook="http://user:word@host/")])}, "not an address of HTTP"),
        ({"policy": Policy(notify=[Notify(mail=["a@b\nBcc: c@d"])])}, "not an address"),
        ({"schedule": Schedule(every_seconds=60, cron="* * * * *")}, "beside"),
        ({"schedule": Schedule(after="no slash")}, "no slash"),
        ({"schedule": Schedule(every_seconds=-5)}, "out of range"),
        ({"schedule": Schedule(cron="* * * * * *")}, "five fields"),
    ],
)
def test_what_can_not_be_held_to_is_refused(state: State, fields: dict[str, Any], verdict: str) -> None:
    with pytest.raises(BadInput, match=verdict):
        add(state, **fields)
