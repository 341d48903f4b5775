"""The jobs service over HTTP: jobs, runs, claims and fences. The test itself is the runner here."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from jobs_world import USERS, RunTokens, World, lose, page
from jobs_world import state as make_state
from running import wait_for
from sqlalchemy import text

from cellwork.client import Client
from cellwork.client.jobs import Jobs
from cellwork.errors import BadInput, Conflict, NotFound, Refused, Unavailable
from cellwork.wire.jobs import (
    Claim,
    JobRequest,
    KeepRequest,
    Policy,
    Progress,
    ResumeRequest,
    Run,
    RunRequest,
    Schedule,
)
from cellwork.wire.origin import Origin
from cellwork.wire.secrets import Mask
from cellwork_hub import records
from cellwork_hub.jobs import attempts, claims, follow, reopen, runs, store
from cellwork_hub.jobs.claims import take
from cellwork_hub.route import Call

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
WORKS = (NOTEBOOKS / "works.ipynb").read_text()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A service in which nothing is ever made."""
    world = World(tmp_path_factory.mktemp("empty"))
    yield world
    world.close()


@pytest.fixture
def jobs(world: World) -> Jobs:
    return world.client().jobs


def job(name: str = "score", **fields: Any) -> JobRequest:
    return JobRequest(**{"project": "flights", "name": name, "notebook": "score.ipynb", "content": WORKS, **fields})


def once(**fields: Any) -> RunRequest:
    return RunRequest(**{"project": "flights", "notebook": "once.ipynb", "content": WORKS, **fields})


def claim(world: World) -> Claim:
    found = world.client("runner").jobs.claim("r1")
    assert found is not None
    return found


def say(world: World, of: Claim, state: Any, **fields: Any) -> Run:
    return world.client("runner").jobs.report(of.run.id, Progress(fence=of.fence, state=state, **fields))


def names(world: World) -> list[str]:
    return [event.name for event in world.client().records.events(service="jobs")]


def test_the_same_job_twice_changes_nothing_and_another_content_is_a_revision(world: World, jobs: Jobs) -> None:
    first = jobs.ensure(job())
    assert jobs.ensure(job()) == first
    changed = jobs.ensure(job(parameters={"x": 4}))
    assert (changed.id, changed.revision, changed.parameters) == (first.id, 2, {"x": 4})
    assert names(world) == ["job.created", "job.changed"]
    assert [row.action for row in world.client().records.audit(service="jobs")] == ["job.create", "job.change"]


def test_who_changes_a_job_owns_it_and_nobody_borrows_anothers_rights(world: World, jobs: Jobs) -> None:
    jobs.ensure(job())
    assert world.client("bob").jobs.ensure(job()).owner == "ada", "saying the same is no change"
    assert world.client("bob").jobs.ensure(job(parameters={"x": 9})).owner == "bob"
    run = jobs.start(RunRequest(job="flights/score"))
    assert run.principal == "ada", "a run by hand is its caller's"
    claim(world)
    owner, granted, _ = world.tokens.minted[-1]
    assert (owner, "models:promote" in granted, "data:write" in granted) == ("ada", False, True)


def test_a_service_starts_runs_for_the_platforms_one_user_without_its_own_powers(world: World) -> None:
    assert world.client("cli").jobs.start(once()).principal == "ada"
    claim(world)
    assert world.tokens.minted[-1][1].isdisjoint({"admin", "runs:execute", "events:write", "secrets:mask"})


def test_pause_and_resume_say_the_end_state_and_remove_stops_what_waits(world: World, jobs: Jobs) -> None:
    jobs.ensure(job(schedule=Schedule(cron="0 3 29 2 *")))
    assert jobs.pause("flights/score").next_due is None
    assert jobs.pause("flights/score").paused
    assert jobs.pause("flights/score", paused=False).next_due is not None
    run = jobs.start(RunRequest(job="flights/score"))
    jobs.remove("flights/score")
    assert jobs.run(run.id).state == "stopped"
    with pytest.raises(NotFound):
        jobs.get("flights/score")


def test_lists_come_in_pages(world: World, jobs: Jobs) -> None:
    for k in range(5):
        jobs.ensure(job(f"job{k}"))
        jobs.start(RunRequest(job=f"flights/job{k}"))
    by_two = world.client().connection
    assert [row.name for row in by_two.listing("jobs", "/api/v1/jobs", type(jobs.get("flights/job0")), limit=2)] == [
        f"job{k}" for k in range(5)
    ]
    assert [run.job for run in by_two.listing("jobs", "/api/v1/runs", Run, limit=2)] == [
        f"flights/job{k}" for k in (4, 3, 2, 1, 0)
    ]
    assert [run.job for run in jobs.runs(job="flights/job3")] == ["flights/job3"]


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({"name": "Score"}, "is not a name"),
        ({"notebook": "../score.ipynb"}, "relative path"),
        ({"notebook": "/etc/score.ipynb"}, "relative path"),
        ({"notebook": "http://host/score.ipynb"}, "relative path"),
        ({"notebook": "score.py"}, "not named like a notebook"),
        ({"files": {"../../evil.py": ""}}, "relative path"),
        ({"files": {"a/../../evil.py": ""}}, "relative path"),
        ({"files": {".ssh/config": ""}}, "relative path"),
        ({"content": "{}"}, "not a notebook"),
        ({"parameters": {"y": 1}}, "is unknown"),
        ({"parameters": {"x = 1\nimport os": 1}}, "is not a name"),
        ({"parameters": {"x": "text"}}, "not of type int"),
        ({"parameters": {"name": "${batch}"}}, "has no value"),
        ({"schedule": Schedule(cron="never")}, "cron"),
        ({"schedule": Schedule(event="nothing.happened")}, "event"),
        ({"schedule": Schedule(timezone="Mars/Base")}, "time zone"),
        ({"timeout_seconds": 0}, "out of range"),
        ({"retries": 1000}, "out of range"),
        ({"concurrency": 0}, "out of range"),
    ],
)
def test_what_could_only_fail_later_is_refused_now(empty: World, fields: dict[str, Any], verdict: str) -> None:
    jobs = empty.client().jobs
    with pytest.raises((BadInput, NotFound), match=verdict):
        jobs.ensure(job(**fields))
    if set(fields) <= {"notebook", "files", "content", "timeout_seconds", "parameters"} and fields != {
        "parameters": {"name": "${batch}"}
    }:
        with pytest.raises(BadInput, match=verdict):
            jobs.start(once(**fields))
    assert list(jobs.list()) == []
    assert list(jobs.runs()) == []


def test_scopes_are_held_against_each_route(world: World, jobs: Jobs) -> None:
    viewer = world.client("viewer").jobs
    assert list(viewer.list()) == []
    run = jobs.start(once())
    for refused in (
        lambda: viewer.ensure(job()),
        lambda: viewer.start(once()),
        lambda: viewer.stop(run.id),
        lambda: jobs.claim("me"),
    ):
        with pytest.raises(Refused, match="scope"):
            refused()
    with pytest.raises(Refused, match="scope"):
        jobs.report(run.id, Progress(fence=1, state="succeeded"))


def test_a_claim_brings_all_a_run_needs_and_the_oldest_comes_first(world: World, jobs: Jobs) -> None:
    first = jobs.start(once(parameters={"x": 1}, files={"beside.py": "A = 1"}))
    jobs.start(once(parameters={"x": 2}))
    got = claim(world)
    assert (got.run.id, got.run.parameters, got.content, got.files) == (
        first.id,
        {"x": 1},
        WORKS,
        {"beside.py": "A = 1"},
    )
    assert (got.run.state, got.attempt, got.token in world.tokens.live) == ("running", 1, True)
    assert claim(world).run.parameters == {"x": 2}
    assert world.client("runner").jobs.claim("r1") is None


def test_a_waiting_claim_hears_of_a_new_run_at_once(world: World, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not look again by itself before its time is up; so it was rung."""
    monkeypatch.setattr(claims, "LOOK_SECONDS", 600.0)
    monkeypatch.setattr(claims, "MOST_WAIT_SECONDS", 600.0)
    looked = threading.Event()
    monkeypatch.setattr(claims, "take", lambda *given: (take(*given), looked.set())[0])
    got: list[Claim | None] = []
    with Client(world.url, "runner-token", timeout=120) as runner:
        waiter = threading.Thread(target=lambda: got.append(runner.jobs.claim("r1", wait_seconds=500)))
        waiter.start()
        assert looked.wait(60)
        run = jobs.start(once())
        waiter.join(100)
    assert [found and found.run.id for found in got] == [run.id]


def test_a_job_runs_no_more_at_once_than_its_concurrency(world: World, jobs: Jobs) -> None:
    jobs.ensure(job())
    for _ in range(2):
        jobs.start(RunRequest(job="flights/score"))
    first = claim(world)
    assert world.client("runner").jobs.claim("r2") is None
    say(world, first, "succeeded")
    assert claim(world).run.id != first.run.id


def test_progress_moves_the_cell_and_the_result_is_published_once(world: World, jobs: Jobs) -> None:
    run = jobs.start(once())
    got = claim(world)
    assert say(world, got, "running", cell=2, cells=5, notebook='{"so": "far"}').attempts[0].cell == 2
    assert json.loads(jobs.notebook(run.id)) == {"so": "far"}
    for _ in range(2):  # the second is a repeated last word: its answer was lost
        assert say(world, got, "succeeded", cell=5, cells=5, notebook='{"done": 1}').state == "succeeded"
    with pytest.raises(Conflict):
        say(world, got, "failed", error="too late", notebook='{"late": 1}')
    assert json.loads(jobs.notebook(run.id)) == {"done": 1}
    assert names(world) == ["run.queued", "run.started", "run.cell", "run.cell", "run.succeeded"]
    assert world.tokens.live == {}, "the run's token ended with it"


def test_the_token_of_a_run_is_written_nowhere(world: World, jobs: Jobs) -> None:
    jobs.start(once())
    token = claim(world).token
    held = [path for path in world.state.home.root.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    assert held == []


def test_a_silent_runner_loses_the_run_and_its_late_result_is_refused(world: World, jobs: Jobs) -> None:
    run = jobs.start(once())
    old = claim(world)
    lose(world.state)
    new = wait_for(lambda: world.client("runner").jobs.claim("r1", wait_seconds=1), 60, "the end of the lease")
    assert (new.run.id, new.attempt, new.fence) == (run.id, 2, old.fence + 1)
    for state in ("running", "succeeded"):
        with pytest.raises(Conflict, match="was replaced"):
            say(world, old, state, notebook='{"old": 1}')
    assert say(world, new, "succeeded", notebook='{"new": 1}').state == "succeeded"
    assert json.loads(jobs.notebook(run.id)) == {"new": 1}
    assert [a.state for a in jobs.run(run.id).attempts] == ["failed", "succeeded"]
    assert names(world).count("run.succeeded") == 1


def test_a_failed_run_is_tried_again_as_often_as_its_job_says(world: World, jobs: Jobs) -> None:
    jobs.ensure(job(retries=1, policy=Policy(backoff_seconds=3600)))
    run = jobs.start(RunRequest(job="flights/score"))
    assert say(world, claim(world), "failed", error="first").state == "queued"
    assert world.client("runner").jobs.claim("r1") is None, "not before the backoff"
    with world.state.engine.begin() as db:
        [(waits,)] = db.execute(text("SELECT not_before FROM runs")).all()
        assert waits > store.now() + 50 * 60 * 1_000_000
        db.execute(text("UPDATE runs SET not_before = :now"), {"now": store.now()})
    assert say(world, claim(world), "failed", error="second").state == "failed"
    assert [a.error for a in jobs.run(run.id).attempts] == ["first", "second"]
    assert names(world).count("run.failed") == 1


def test_a_runner_that_leaves_hands_the_run_back(world: World, jobs: Jobs) -> None:
    run = jobs.start(once())
    assert say(world, claim(world), "queued").state == "queued"
    assert (claim(world).attempt, jobs.run(run.id).attempts[0].error) == (2, "its runner was stopped")


def test_stop_ends_what_waits_and_tells_the_runner_of_what_runs(world: World, jobs: Jobs) -> None:
    waiting = jobs.start(once())
    assert [jobs.stop(waiting.id).state for _ in range(2)] == ["stopped", "stopped"]
    assert world.client("runner").jobs.claim("r1") is None
    running = jobs.start(once())
    got = claim(world)
    jobs.stop(running.id)
    assert say(world, got, "running").state == "stopped", "the runner learns it by its next word"
    assert say(world, got, "stopped", notebook='{"so": "far"}').state == "stopped"
    assert json.loads(jobs.notebook(running.id)) == {"so": "far"}
    assert names(world).count("run.stopped") == 2


def test_a_run_keeps_the_notebook_it_was_queued_with(world: World, jobs: Jobs) -> None:
    jobs.ensure(job())
    jobs.start(RunRequest(job="flights/score"))
    jobs.ensure(job(content=(NOTEBOOKS / "untagged.ipynb").read_text()))
    assert claim(world).content == WORKS


def test_unknown_ids_are_not_found_and_malformed_ones_bad_input(world: World, jobs: Jobs) -> None:
    with pytest.raises(NotFound):
        jobs.run("run_" + "0" * 26)
    with pytest.raises(BadInput):
        jobs.run("run_x")
    with pytest.raises(BadInput, match="neither"):
        jobs.start(RunRequest())


def test_a_run_is_followed_from_its_first_event_to_its_end_and_taken_up_where_one_broke_off(world: World) -> None:
    jobs = world.client().jobs
    run = jobs.start(once())
    seen: list[tuple[str, float]] = []
    reader = threading.Thread(target=lambda: seen.extend((e.name, time.monotonic()) for e in jobs.follow(run.id)))
    reader.start()
    of = claim(world)
    for cell in (1, 2):
        say(world, of, "running", cell=cell, cells=2)
    said = time.monotonic()
    while len(seen) < 4 and time.monotonic() < said + 60:
        time.sleep(0.01)
    assert [name for name, _ in seen] == ["run.queued", "run.started", "run.cell", "run.cell"], "while it runs"
    say(world, of, "succeeded", cell=2, cells=2)
    reader.join(60)
    assert not reader.is_alive(), "the stream ends with the run"
    assert seen[-1][0] == "run.succeeded"
    events = list(jobs.follow(run.id))
    later = list(world.client().connection.events("jobs", f"/api/v1/runs/{run.id}/events", after=events[2].seq))
    assert [e.seq for e in later] == [e.seq for e in events[3:]]


def test_a_run_with_very_many_events_is_followed_to_its_end(world: World) -> None:
    jobs = world.client().jobs
    run = jobs.start(once())
    of = claim(world)
    with world.state.engine.begin() as db:
        for cell in range(2 * follow.MOST_AT_ONCE - 2):
            records.event(db, "run.cell", "p", run.id, cell=cell)
    say(world, of, "failed")
    found = [event.name for event in jobs.follow(run.id)]
    assert (len(found), found[-1]) == (2 * follow.MOST_AT_ONCE + 1, "run.failed")


def test_who_may_not_read_runs_may_not_follow_them(world: World) -> None:
    run = world.client().jobs.start(once())
    with pytest.raises(Refused):
        list(world.client("nobody").jobs.follow(run.id))
    with pytest.raises(NotFound):
        list(world.client().jobs.follow("run_" + "0" * 26))


def test_a_secrets_value_as_a_parameter_fails_the_run_before_it_starts_and_is_shown_nowhere(tmp_path: Path) -> None:
    world = World(tmp_path, masks=lambda project, principal: [Mask(name="db", value="hidden value")])
    try:
        run = world.client().jobs.start(once(parameters={"name": "with hidden value in it"}))
        with pytest.raises(Conflict):
            world.client("runner").jobs.claim("r1")
        failed = world.client().jobs.run(run.id)
        assert (failed.state, "secret('db')" in failed.attempts[0].error) == ("failed", True)
        assert "hidden value" not in str(failed)
        other = world.client().jobs.start(once())
        of = world.client("runner").jobs.claim("r1")
        assert of is not None
        assert (of.run.id, of.masks[0].name) == (other.id, "db")
    finally:
        world.close()


class HubAway(RunTokens):
    """Mints nothing while the hub is away."""

    away = False

    def mint(self, *given: Any) -> tuple[str, str]:
        if self.away:
            raise Unavailable("hub", "", "does not answer", "wait")
        return super().mint(*given)


def test_a_kernel_that_was_kept_outlives_a_hub_that_is_away_when_it_is_to_go_on(tmp_path: Path) -> None:
    tokens, told = HubAway(), page("a = 1", "b = 2")
    state = make_state(tmp_path, tokens, keep=timedelta(seconds=100))

    def call(who: str, body: Any, run: str = "") -> Call:
        return Call(USERS[f"{who}-token"], "req_1", Origin(), {"run": run}, {}, body, {})

    run = runs.start(state, call("ada", RunRequest(project="p", notebook="n.ipynb", content=told))).id
    of = take(state, call("runner", None), "r")
    assert of is not None
    last = Progress(fence=of.fence, state="failed", cell=2, cells=2, keepable=True, notebook=told)
    claims.report(state, call("runner", last, run))
    reopen.resume(state, call("ada", ResumeRequest(), run))
    kept = call("runner", KeepRequest(fence=of.fence), run)
    tokens.away = True
    for _ in range(2):
        with pytest.raises(Unavailable):
            reopen.hear(state, kept)
        assert attempts.expire(state) == 0
    tokens.away = False
    assert take(state, call("runner", None), "another") is None, "it is held for its own runner"
    again = reopen.hear(state, kept).claim
    assert again is not None
    assert (again.first_cell, again.attempt, bool(again.executed)) == (2, 2, True)
    with pytest.raises(Conflict):
        reopen.hear(state, kept)
