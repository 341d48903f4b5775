"""A failed run is reopened: its kernel is kept for its owner, who looks into it, mends the notebook, and goes on from the cell."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from jobs_world import USERS, RunTokens, World, kill, lose, shortly_after_noon, start_runner
from jobs_world import state as make_state
from test_jobs_fires import WORKS, add, due_since, runs
from test_jobs_runner import gone, printed, until

from cellwork import clock
from cellwork.client.jobs import Jobs
from cellwork.errors import BadInput, Conflict, Refused
from cellwork.wire.jobs import KeepRequest, Policy, Progress, ResumeRequest, Run, RunRequest, Schedule
from cellwork.wire.origin import Origin
from cellwork_hub.jobs import attempts, claims, fires, leases, reopen, store
from cellwork_hub.jobs import runs as queue
from cellwork_hub.jobs.runners import slot
from cellwork_hub.jobs.store import State
from cellwork_hub.route import Call

CELLS, BROKEN = 36, 28
KEEP = timedelta(minutes=30)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("home"), keep=KEEP, keep_most=2)
    yield world
    world.close()


@pytest.fixture(scope="module")
def runner(world: World) -> Iterator[subprocess.Popen[bytes]]:
    process = start_runner(world.url, 1, world.state.home.log("runner"))
    yield process
    family = [process.pid, *(p.pid for p in psutil.Process(process.pid).children(recursive=True))]
    process.terminate()
    assert process.wait(60) == 0
    until(lambda: all(map(gone, family)), "the runner's processes have ended")


@pytest.fixture
def jobs(world: World, runner: subprocess.Popen[bytes]) -> Jobs:
    return world.client().jobs


def notebook(*sources: str, **tagged: str) -> str:
    cells = [
        {"cell_type": "code", "id": f"c{k}", "metadata": {"tags": [tagged[f"c{k}"]]} if f"c{k}" in tagged else {}, "outputs": [], "execution_count": None, "source": source}
        for k, source in enumerate(sources, start=1)
    ]  # fmt: skip
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells})


def long_notebook(log: Path, broken: str) -> str:
    """36 cells; each but the broken one notes in a file outside the kernel that it ran."""
    sources = [f"open({str(log)!r}, 'a').write('{number}\\n')" for number in range(1, CELLS + 1)]
    sources[2] += (
        "\ndef count():\n    n = 0\n    while True:\n        n += 1\n        yield n\ngenerator = count()\nnext(generator)"
    )
    sources[BROKEN - 1] = broken
    sources[-1] += "\nprint('generator', next(generator))"
    return notebook(*sources)


def fail(jobs: Jobs, content: str, **fields: Any) -> Run:
    run = jobs.wait(jobs.start(RunRequest(project="p", notebook="n.ipynb", content=content, **fields)).id, timeout=60)
    assert run.state == "failed", run
    return run


def test_a_run_that_failed_at_cell_28_of_36_goes_on_from_there_and_each_cell_has_run_once(
    jobs: Jobs, world: World, tmp_path: Path
) -> None:
    """The open generator of cell 3 still lives; no other kernel could give what it gives next."""
    log = tmp_path / "log"
    run = fail(jobs, long_notebook(log, "missing_name"))
    assert run.kept is not None
    assert (run.kept.cell, run.attempts[-1].cell) == (BROKEN, BROKEN)
    jobs.resume(run.id, ResumeRequest(content=long_notebook(log, f"open({str(log)!r}, 'a').write('28\\n')")))
    ended = jobs.wait(run.id, timeout=60)
    assert ended.state == "succeeded", ended.attempts
    assert [(a.state, a.first_cell) for a in ended.attempts] == [("failed", 1), ("succeeded", BROKEN)]
    assert log.read_text().split() == [str(k) for k in range(1, CELLS + 1)]
    assert "generator 2" in printed(jobs, ended)
    page = json.loads(jobs.notebook(run.id))
    counts = [cell["execution_count"] for cell in page["cells"]]
    assert None not in counts, "every cell shows that it ran"
    assert "An Exception was encountered" not in jobs.notebook(run.id)
    assert ended.kept is None
    until(lambda: not world.tokens.live, "its tokens are taken back")


def test_a_kept_kernel_leaves_room_for_other_runs_and_ends_when_it_is_released(
    jobs: Jobs, world: World, runner: subprocess.Popen[bytes]
) -> None:
    run = fail(jobs, notebook("import os; print(os.getpid())", "1 / 0"))
    kernel = int(printed(jobs, run))
    other = jobs.wait(jobs.start(RunRequest(project="p", notebook="n.ipynb", content=notebook("1"))).id, timeout=60)
    assert (other.state, gone(kernel)) == ("succeeded", False)
    assert jobs.release(run.id).kept is None
    assert jobs.release(run.id).kept is None, "said twice"
    until(lambda: gone(kernel), "the kernel has ended")
    with pytest.raises(Conflict, match="new-kernel"):
        jobs.resume(run.id, ResumeRequest())


def test_who_changes_a_cell_that_ran_is_told_which_and_may_run_again_from_it(jobs: Jobs) -> None:
    run = fail(jobs, notebook("a = 1", "b = a + 1", "b / 0", "print(a, b)"))
    mended = notebook("a = 1", "b = a + 10", "b / 1", "print(a, b)")
    with pytest.raises(BadInput, match="cell 2: differs"):
        jobs.resume(run.id, ResumeRequest(content=mended))
    with pytest.raises(BadInput, match="1 to 4"):
        jobs.resume(run.id, ResumeRequest(content=mended, first_cell=9))
    jobs.resume(run.id, ResumeRequest(content=mended, first_cell=2))
    ended = jobs.wait(run.id, timeout=60)
    assert (ended.state, "1 11" in printed(jobs, ended)) == ("succeeded", True)


def test_a_run_can_fail_and_go_on_more_than_once_with_its_parameters(jobs: Jobs) -> None:
    def page(last: str) -> str:
        return notebook("x = 1", "print('x is', x)", "1 / 0" if last == "first" else "2", last, c1="parameters")

    run = fail(jobs, page("first"), parameters={"x": 41})
    jobs.resume(run.id, ResumeRequest(content=page("3 / 0")))
    until(lambda: jobs.run(run.id).state == "failed" and len(jobs.run(run.id).attempts) == 2, "it failed again")
    executed = json.loads(jobs.notebook(run.id))
    executed["cells"][-1]["source"] = "print(x + 1)"  # as it was executed, banner and all, is as good as its source
    jobs.resume(run.id, ResumeRequest(content=json.dumps(executed)))
    ended = jobs.wait(run.id, timeout=60)
    assert (ended.state, [a.first_cell for a in ended.attempts]) == ("succeeded", [1, 4, 5])
    text = printed(jobs, ended)
    assert ("x is 41" in text, "42" in text, text.count("x is 41")) == (True, True, 1)


def test_an_endless_cell_is_interrupted_at_its_deadline_and_its_kernel_kept(jobs: Jobs) -> None:
    content = notebook("x = 5", "import time; time.sleep(600)", "print('x', x)")
    run = fail(jobs, content, timeout_seconds=1)
    assert run.kept is not None
    jobs.resume(run.id, ResumeRequest(content=notebook("x = 5", "pass", "print('x', x)")))
    assert jobs.wait(run.id, timeout=60).state == "succeeded"


def test_only_the_owner_resumes_or_releases_a_run(jobs: Jobs, world: World) -> None:
    run = fail(jobs, notebook("1 / 0"))
    for act in (lambda of: of.resume(run.id, ResumeRequest()), lambda of: of.release(run.id)):
        with pytest.raises(Refused, match="run of ada"):
            act(world.client("bob").jobs)
    assert world.client("cli").jobs.release(run.id).kept is None, "the platform's own command acts for its one user"
    good = jobs.wait(jobs.start(RunRequest(project="p", notebook="n.ipynb", content=notebook("1"))).id)
    with pytest.raises(Conflict, match="only a failed run"):
        jobs.resume(good.id, ResumeRequest())


def test_no_more_kernels_are_kept_than_allowed(jobs: Jobs) -> None:
    runs = [fail(jobs, notebook("1 / 0")) for _ in range(3)]
    assert [jobs.run(run.id).kept is not None for run in runs] == [False, True, True]
    for run in runs:
        jobs.release(run.id)


def test_a_kept_kernel_that_grows_too_large_is_ended(jobs: Jobs, world: World) -> None:
    run = fail(jobs, notebook("import os; print(os.getpid())", "1 / 0"))
    with world.state.engine.begin() as db:
        from cellwork_hub.jobs import store

        store.write(db, "UPDATE kept SET most_bytes = 1000")
    until(lambda: jobs.run(run.id).kept is None, "it is not kept any more")
    until(lambda: gone(int(printed(jobs, run))), "the kernel has ended")
    reasons = [e.data["reason"] for e in world.client().records.events(service="jobs") if e.name == "run.released"]
    assert "GB, the limit is" in reasons[-1]


def test_a_lost_runner_leaves_the_run_failed_and_a_new_kernel_starts_from_the_first_cell(tmp_path: Path) -> None:
    world = World(tmp_path / "home", keep=KEEP)
    first = start_runner(world.url, 1, tmp_path / "log")
    jobs = world.client().jobs
    try:
        run = fail(jobs, notebook("print('one')", "1 / 0"))
        kill(first)
        jobs.resume(run.id, ResumeRequest(content=notebook("print('one')", "print('two')")))

        def missed() -> bool:
            """What a dying runner had asked for may come to it meanwhile; then that is given back."""
            lose(world.state)
            found = jobs.run(run.id)
            return found.kept is None and found.state in ("failed", "queued")

        until(missed, "the runner was missed")
        second = start_runner(world.url, 1, tmp_path / "log")
        try:
            if jobs.run(run.id).state == "failed":
                jobs.resume(run.id, ResumeRequest(new_kernel=True))
            ended = jobs.wait(run.id, timeout=60)
        finally:
            second.terminate()
            second.wait(60)
        assert (ended.state, "two" in printed(jobs, ended)) == ("succeeded", True)
    finally:
        world.close()


def test_a_retry_on_a_new_kernel_starts_from_the_last_checkpoint(jobs: Jobs, tmp_path: Path) -> None:
    """Cells 1 and 2 note that they ran; the second attempt, on a new kernel, does not run them again."""
    log = tmp_path / "log"
    content = notebook(
        f"open({str(log)!r}, 'a').write('1 ')",
        f"open({str(log)!r}, 'a').write('2 ')\nvalue = 41",
        f"import pathlib\nfirst = not pathlib.Path({str(tmp_path / 'mark')!r}).exists()\npathlib.Path({str(tmp_path / 'mark')!r}).touch()\nassert not first",
        "print('value', value + 1)",
        c2="checkpoint",
    )
    run = jobs.start(RunRequest(project="p", notebook="n.ipynb", content=content))
    failed = jobs.wait(run.id, timeout=60)
    assert failed.state == "failed"
    jobs.resume(run.id, ResumeRequest(new_kernel=True))
    ended = jobs.wait(run.id, timeout=60)
    assert (ended.state, [a.first_cell for a in ended.attempts]) == ("succeeded", [1, 3]), ended.attempts
    assert log.read_text() == "1 2 "
    assert "value 42" in printed(jobs, ended)


def test_a_changed_cell_above_the_checkpoint_runs_again(jobs: Jobs) -> None:
    run = fail(jobs, notebook("a = 1", "b = a", "1 / 0", c2="checkpoint"))
    jobs.resume(
        run.id, ResumeRequest(content=notebook("a = 2", "b = a", "print('b is', b)", c2="checkpoint"), new_kernel=True)
    )
    ended = jobs.wait(run.id, timeout=60)
    assert (ended.state, [a.first_cell for a in ended.attempts]) == ("succeeded", [1, 1])
    assert "b is 2" in printed(jobs, ended)


def test_a_run_that_holds_too_much_memory_or_a_cell_that_takes_too_long_is_ended_and_said_so(jobs: Jobs) -> None:
    greedy = notebook("x = bytearray(400_000_000)\nimport time; time.sleep(60)")
    run = fail(jobs, greedy, policy=Policy(memory_megabytes=300))
    assert ("over its limit of 300 MB" in run.attempts[0].error, run.kept) == (True, None)
    slow = fail(jobs, notebook("1", "import time; time.sleep(60)"), policy=Policy(cell_timeout_seconds=1))
    assert "the cell was out of time" in slow.attempts[0].error
    jobs.release(slow.id)


def test_a_runner_that_leaves_takes_no_resumed_run_with_it(tmp_path: Path) -> None:
    """Resumed in the moment in which its runner is told to leave: the run ends with the reason at once, not when its lease does."""
    minutes = timedelta(minutes=5)
    world = World(tmp_path, keep=minutes, lease=minutes, first_lease=minutes)
    try:
        process = start_runner(world.url, 1, world.state.home.log("runner"))
        jobs = world.client().jobs
        run = jobs.start(RunRequest(project="p", notebook="n.ipynb", content=notebook("1 / 0"))).id
        until(lambda: jobs.run(run).kept, "its kernel is kept")
        process.terminate()
        with contextlib.suppress(Conflict):  # its runner was quicker: then the kernel is gone already
            jobs.resume(run, ResumeRequest())
        assert process.wait(60) == 0
        ended = jobs.run(run)
        assert (ended.state, ended.kept) == ("failed", None)
        new = jobs.start(RunRequest(project="p", notebook="n.ipynb", content=notebook("1 + 1"))).id
        assert jobs.run(new).state == "queued"
    finally:
        world.close()


@contextlib.contextmanager
def taking(world: World, most: int) -> Iterator[None]:
    """As if the service took no request of more than `most` bytes."""
    service = world.server.config.app
    before, service.most_bytes = service.most_bytes, most  # type: ignore[union-attr]
    try:
        yield
    finally:
        service.most_bytes = before  # type: ignore[union-attr]


@pytest.mark.parametrize(("last", "state"), [("2", "succeeded"), ("1 / 0", "failed")])
def test_a_run_whose_notebook_is_too_large_to_be_kept_is_executed_once_and_says_so(
    jobs: Jobs, world: World, tmp_path: Path, last: str, state: str
) -> None:
    log = tmp_path / "log"
    content = notebook(f"open({str(log)!r}, 'a').write('ran ')", "print('x' * 3_000_000)", last)
    with taking(world, 1_000_000):
        run = jobs.wait(jobs.start(RunRequest(project="p", notebook="n.ipynb", content=content)).id, timeout=60)
    assert (run.state, len(run.attempts), log.read_text()) == (state, 1, "ran "), run.attempts
    assert "its executed notebook could not be kept" in run.attempts[0].error
    assert ("ZeroDivisionError" in run.attempts[0].error) == (state == "failed")
    assert run.kept is None, "without its notebook nobody can go on in its kernel"


def test_an_error_that_no_database_keeps_as_it_is_arrives_without_its_odd_characters(jobs: Jobs) -> None:
    run = fail(jobs, notebook(r"raise ValueError('one\0two')"))
    assert "one\ufffdtwo" in run.attempts[0].error
    assert "\0" not in run.attempts[0].error
    jobs.release(run.id)
    assert len(slot.plain("\ud800" * 100_000).encode()) <= slot.MOST_ERROR


@pytest.fixture
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    shortly_after_noon(monkeypatch)


def call(who: str, body: Any = None, **path: str) -> Call:
    return Call(USERS[f"{who}-token"], "req_1", Origin(), path, {}, body, {})


def kept(folder: Path, **policy: Any) -> tuple[State, str, int]:
    """Return a service whose scheduled job has a failed run, with its kernel kept under the fence, by a runner that isn't there."""
    state = make_state(folder, RunTokens(), keep=KEEP)
    add(state, policy=Policy(while_running="skip", **policy), schedule=Schedule(every_seconds=60))
    run = queue.start(state, call("ada", RunRequest(job="flights/score"))).id
    claim = claims.take(state, call("runner"), "r")
    assert claim is not None
    said = Progress(fence=claim.fence, state="failed", cell=1, cells=1, keepable=True, notebook=WORKS)
    claims.report(state, call("runner", said, run=run))
    return state, run, claim.fence


@pytest.mark.usefixtures("noon")
@pytest.mark.parametrize("new_kernel", [True, False])
def test_a_resumed_run_is_under_way_again_and_its_old_deadline_is_over(tmp_path: Path, new_kernel: bool) -> None:
    state, run, fence = kept(tmp_path, deadline_seconds=1)
    with state.engine.begin() as db:
        store.write(db, "UPDATE runs SET deadline = 1")
    reopen.resume(state, call("ada", ResumeRequest(new_kernel=new_kernel), run=run))
    assert attempts.miss(state) == 0
    due_since(state, clock.now() - timedelta(seconds=1))
    assert (fires.tick(state), len(runs(state))) == (0, 1), "what is due meanwhile is left out"
    if new_kernel:
        again = claims.take(state, call("runner"), "r")
    else:
        again = reopen.hear(state, call("runner", KeepRequest(fence=fence), run=run)).claim
    assert again is not None
    assert again.timeout_seconds == 3600


@pytest.mark.usefixtures("noon")
def test_a_job_goes_on_after_a_resumed_run_whose_runner_was_lost(tmp_path: Path) -> None:
    state, run, _ = kept(tmp_path)
    reopen.resume(state, call("ada", ResumeRequest(), run=run))
    with state.engine.begin() as db:
        store.write(db, "UPDATE kept SET heard = 1")
    assert leases.expire(state) == 1
    with state.engine.connect() as db:
        assert store.run_row(db, run)["state"] == "failed"
    due_since(state, clock.now() - timedelta(seconds=1))
    assert fires.tick(state) == 1
