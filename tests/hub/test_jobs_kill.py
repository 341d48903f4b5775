"""Kill service and runners at random moments during many fires: each fire has its run, and each run is published once.

What should have fired is computed here, from the jobs' intervals and nothing that the service says; what was published is
counted in the runners' own ledger and in the service's events. The seed is printed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from jobs_world import World, start_service, without_fence
from ports import free_port
from running import wait_for

from cellwork import db
from cellwork.client import Client
from cellwork.errors import CellworkError, Conflict
from cellwork.home import Home
from cellwork.wire.jobs import JobRequest, Progress, Run, RunRequest, Schedule
from cellwork_hub.jobs import app, claims, store
from cellwork_hub.records import micros

HERE = Path(__file__).resolve().parent
WORKS = (HERE.parent / "notebooks" / "works.ipynb").read_text()
SEED = int(os.environ.get("KILL_SEED", "0")) or int(time.time())
LEASE = timedelta(seconds=3)


class Victims:
    """A service and two runners, killed and started again."""

    def __init__(self, folder: Path, chance: random.Random, *, fence: bool = True) -> None:
        self.folder, self.chance, self.port, self.fence = folder, chance, free_port(), fence
        self.url = f"http://127.0.0.1:{self.port}"
        self.kills = 0
        self.service = self._service()
        self.runners = [self._runner() for _ in range(2)]

    def _service(self) -> subprocess.Popen[bytes]:
        return start_service(self.folder / "home", self.port, lease=LEASE, fence=self.fence)

    def _runner(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(HERE / "bare_runner.py"), self.url, str(self.folder / "ledger")]
        return subprocess.Popen([*command, str(self.chance.getrandbits(30))])

    def kill_one(self) -> None:
        """Kill the service, or a runner; or stop a runner beyond its lease, so that it comes back with a stale result."""
        self.kills += 1
        which = self.chance.random()
        if which < 0.4:
            self.service.kill()
            self.service.wait(60)
            time.sleep(self.chance.random() * 0.3)
            self.service = self._service()
            return
        runner = self.chance.randrange(2)
        if which < 0.5:
            self.runners[runner].send_signal(signal.SIGSTOP)
            time.sleep(LEASE.total_seconds() + 0.5)
            self.runners[runner].send_signal(signal.SIGCONT)
            return
        self.runners[runner].kill()
        self.runners[runner].wait(60)
        self.runners[runner] = self._runner()

    def close(self) -> None:
        for process in (*self.runners, self.service):
            process.kill()
            process.wait(60)


def batter(folder: Path, jobs: int, kills: int, least_fires: int, *, seed: int = SEED, fence: bool = True) -> tuple[set[tuple[str, datetime]], list[Run], Counter[str], Counter[str]]:  # fmt: skip
    """Return what should have fired, the runs there are, how often each was published by the ledger, and by the events."""
    print(f"KILL_SEED={seed}", flush=True)
    chance = random.Random(seed)
    victims = Victims(folder, chance, fence=fence)
    client = Client(victims.url, "ada-token", timeout=60)
    try:
        first: dict[str, datetime] = {}
        for k in range(jobs):
            plan = Schedule(every_seconds=1, catch_up="all")
            made = client.jobs.ensure(JobRequest(project="p", name=f"j{k}", notebook="n.ipynb", content=WORKS, schedule=plan, concurrency=50))  # fmt: skip
            assert made.next_due is not None
            first[f"p/j{k}"] = made.next_due
        started = datetime.now(UTC)
        while victims.kills < kills or (datetime.now(UTC) - started).total_seconds() * jobs < least_fires:
            time.sleep(chance.random() * 0.5)
            if victims.kills < kills:
                victims.kill_one()
                some_progress(folder / "ledger")
                if victims.kills % 20 == 0:
                    print(f"{victims.kills} kills in {datetime.now(UTC) - started}", flush=True)
        until = datetime.now(UTC)
        wait_for(lambda: all(job.next_due and job.next_due > until for job in client.jobs.list()), 60, "the last fires")
        for name in first:
            client.jobs.pause(name)
        settle(client)
        runs = list(client.jobs.runs())
        events = published(client)
    finally:
        victims.close()
    expected = {
        (name, at + timedelta(seconds=k))
        for name, at in first.items()
        for k in range(int((until - at).total_seconds()) + 1)
    }
    ledger = Counter(line.split()[0] for line in (folder / "ledger").read_text().splitlines())
    return expected, runs, ledger, events


def some_progress(ledger: Path, seconds: float = 20) -> None:
    """Wait until a result is taken: on a slow machine processes that are always killed while they start would show nothing."""
    before, end = ledger.stat().st_size if ledger.exists() else 0, time.monotonic() + seconds
    while time.monotonic() < end and (ledger.stat().st_size if ledger.exists() else 0) == before:
        time.sleep(0.02)


def published(client: Client) -> Counter[str]:
    """Return how often each run was published, by the service's events."""
    counts, after = Counter[str](), 0
    while page := client.records.events(service="jobs", name="run.succeeded", after=after):
        counts.update(event.subject for event in page)
        after = page[-1].seq
    return counts


def settle(client: Client, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while any(next(client.jobs.runs(state=word), None) for word in ("queued", "running")):
        assert time.monotonic() < end, "runs are left"
        time.sleep(0.2)


def check(folder: Path, jobs: int, kills: int, least_fires: int, seed: int = SEED) -> None:
    expected, runs, ledger, events = batter(folder, jobs, kills, least_fires, seed=seed)
    fired = Counter((run.job, run.due) for run in runs)
    assert len(expected) >= least_fires / 2
    assert expected - set(fired) == set(), "missing fires"
    assert max(fired.values()) == 1, "fired twice"
    assert {run.state for run in runs} == {"succeeded"}
    assert max(events.values()) == 1, "published twice"
    assert set(events) == {run.id for run in runs}
    assert not ledger or max(ledger.values()) == 1, "taken twice"
    print(f"{kills} kills, {len(runs)} fires: 0 missing, 0 published twice", flush=True)


def test_kills_lose_no_fire_and_publish_none_twice(tmp_path: Path) -> None:
    check(tmp_path, jobs=4, kills=8, least_fires=40)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(4))
def test_200_kills_during_1000_fires(part: int, tmp_path: Path) -> None:
    """In four parts with seeds that follow each other, so that one that fails is repeated in minutes."""
    check(tmp_path, jobs=4, kills=50, least_fires=250, seed=SEED + part)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_same_kills_publish_twice_when_the_fence_is_off(tmp_path: Path) -> None:
    """So it is the fence that the test above shows; its reduced twin in every run is the last test but one."""
    _, _, ledger, events = batter(tmp_path, jobs=4, kills=60, least_fires=200, fence=False)
    assert max(events.values()) > 1
    assert max(ledger.values()) > 1
    print(f"60 kills without the fence: {sum(n > 1 for n in events.values())} runs published twice")


def test_after_hours_down_each_jobs_policy_is_kept_exactly(tmp_path: Path) -> None:
    """Killed, and started hours later as far as its jobs know: what comes due meanwhile is computed here, from the interval alone.

    The interval is one in whose midst we are: nothing comes due while the test looks, and the last time was missed.
    """
    every = next(seconds for seconds in range(3600, 7200) if 600 < time.time() % seconds < seconds - 600)
    port, down, step = free_port(), timedelta(seconds=6.5 * every), timedelta(seconds=every)
    service = start_service(tmp_path / "home", port)
    try:
        client = Client(f"http://127.0.0.1:{port}", "ada-token", timeout=60)
        for policy in ("all", "last", "none"):
            plan = Schedule(every_seconds=every, catch_up=policy)  # type: ignore[arg-type]
            client.jobs.ensure(JobRequest(project="p", name=policy, notebook="n.ipynb", content=WORKS, schedule=plan))
        service.kill()
        service.wait(60)
        for run in list_of(tmp_path / "home", "SELECT id FROM runs"):
            raise AssertionError(f"{run} fired before")
        first = aligned(datetime.now(UTC) - down, step)
        list_of(tmp_path / "home", "UPDATE jobs SET next_due = :due", due=micros(first))
        service = start_service(tmp_path / "home", port)
        wait_for(lambda: next(client.jobs.runs(job="p/last"), None), 60, "what is caught up with")
        runs = list(client.jobs.runs())
        back = min(run.created for run in runs)
    finally:
        service.kill()
        service.wait(60)
    missed = [first + k * step for k in range(20) if first + k * step <= back]
    got = {policy: sorted(run.due for run in runs if run.job == f"p/{policy}" and run.due and run.due <= back) for policy in ("all", "last", "none")}  # fmt: skip
    assert got == {"all": missed, "last": missed[-1:], "none": []}
    assert len(missed) in (6, 7)


def aligned(at: datetime, step: timedelta) -> datetime:
    """Return the first time from `at` on that is due: intervals count from 1970."""
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return epoch + ((at - epoch) // step + 1) * step


def list_of(home: Path, statement: str, **values: object) -> list[dict[str, object]]:
    """Execute `statement` on the database of a service that does not run."""
    engine = db.open_database(f"sqlite:///{Home(home).database('jobs')}", app.MIGRATIONS)
    try:
        with engine.begin() as connection:
            if statement.startswith("SELECT"):
                return store.select(connection, statement)
            store.write(connection, statement, **values)
            return []
    finally:
        engine.dispose()


def two_runners_one_run(world: World) -> Counter[str]:
    """A runner is away beyond its lease; another takes its run; both publish. Returns how often each run was published."""
    jobs = world.client("runner").jobs
    run = world.client().jobs.start(RunRequest(project="p", notebook="n.ipynb", content=WORKS))
    first = jobs.claim("slow")
    with world.state.engine.begin() as db:
        store.write(db, "UPDATE runs SET lease_until = 1")
    second = None
    end = time.monotonic() + 60
    while second is None and time.monotonic() < end:
        second = jobs.claim("quick", wait_seconds=1)
    assert first is not None
    assert second is not None
    for claim in (second, first):
        try:
            jobs.report(run.id, Progress(fence=claim.fence, state="succeeded", cell=1, cells=1))
        except Conflict:
            continue
    return published(world.client())


def test_the_fence_is_what_keeps_a_late_result_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same story with the fence taken away publishes twice: so it is the fence that the first half shows."""
    world = World(tmp_path / "with")
    try:
        assert max(two_runners_one_run(world).values()) == 1
    finally:
        world.close()

    monkeypatch.setattr(claims, "_current", without_fence)
    world = World(tmp_path / "without")
    try:
        assert max(two_runners_one_run(world).values()) == 2
    finally:
        world.close()


def test_a_service_that_is_away_answers_no_claim(tmp_path: Path) -> None:
    with pytest.raises(CellworkError):
        Client(f"http://127.0.0.1:{free_port()}", "runner-token", timeout=2).jobs.claim("r")
