"""The demo's steps by somebody who has an address and a token, and no right on the platform's folder.

All notebooks of the tour, and the scheduled ones, run under a second account of the machine: what a notebook needs comes over
HTTP, with the token that a user's server gets. The platform's own runner is held still meanwhile, so that nothing runs on its account.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from account import UID, Account
from running import Platform, board

from cellwork import assets
from cellwork.client import Client
from cellwork.wire import PREFIX
from cellwork.wire.jobs import RunRequest
from cellwork_hub import processes
from cellwork_hub.config import roles
from cellwork_hub.jobs.runners.slot import WAIT_SECONDS

pytestmark = pytest.mark.timeout(600)  # the first test waits for the tour

WALK = """
import json
from pathlib import Path
import shop_world
from cellwork.cli import tour
from cellwork.client import connect
for walked in tour.walk(shop_world.tour(Path.home() / "market", "market"), connect(), lambda _: None):
    print(json.dumps([walked.step, walked.rows, walked.seconds]), flush=True)
"""
PROBE = """
import json, os, pathlib
def can_read(path):
    try:
        return bool(os.listdir(path) if path.is_dir() else path.read_bytes())
    except OSError:
        return False
print(json.dumps([os.getuid(), [name for name in {names!r} if can_read(pathlib.Path(name))]]))
"""


@dataclass(frozen=True)
class Other:
    """The second account at work on a platform: its commands, the client with its token, its runner."""

    account: Account
    client: Client
    environ: dict[str, str]
    runner: str
    walked: list[tuple[str, int, float | None]]


@pytest.fixture(scope="module")
def other(platform: Platform) -> Iterator[Other]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        account = Account(folder)
        token = platform.user_token(*roles.access(), *roles.to_hub(roles.OWNER))
        environ = {"CELLWORK_URL": platform.url, "CELLWORK_TOKEN": token, "PYTHONPATH": str(Path(__file__).parent)}
        environ |= {"MLFLOW_TRACKING_URI": platform.url + PREFIX["mlflow"], "MLFLOW_TRACKING_TOKEN": token}
        with held_still(platform), runner(account, platform) as ours:
            code, told = account.run([sys.executable, "-c", WALK], environ, timeout=400)
            assert code == 0, told
            walked = [json.loads(line) for line in told.splitlines() if line.startswith("[")]
            yield Other(account, Client(platform.url, token), environ, ours, walked)


@contextmanager
def held_still(platform: Platform) -> Iterator[None]:
    """Stop the platform's own runner for a while; what it had asked for is answered before anything else is queued: who asked later has heard."""
    held: dict[int, psutil.Process] = {}
    while new := [
        p for p in processes.of_instance(board(platform.home)["instance"], unit="runner") if p.pid not in held
    ]:
        for process in new:
            held[process.pid] = process
            with suppress(psutil.NoSuchProcess):
                process.suspend()
    assert held
    try:
        with platform.client("runner") as asking:
            assert asking.jobs.claim("nobody", wait_seconds=WAIT_SECONDS + 0.5) is None
        yield
    finally:
        for process in held.values():
            with suppress(psutil.NoSuchProcess):
                process.resume()


@contextmanager
def runner(account: Account, platform: Platform) -> Iterator[str]:
    """Run a runner under the account; yields the name by which attempts tell it."""
    environ = {"CELLWORK_URL": platform.url, "CELLWORK_RUNNER_TOKEN": platform.token("runner"), "CELLWORK_RUNNERS": "1"}
    command = [sys.executable, "-m", "cellwork_hub.jobs.runners.process"]
    process: subprocess.Popen[bytes] = account.start(command, environ, account.folder / "runner.log")
    try:
        yield f"{socket.gethostname()}-{process.pid}"
    finally:
        process.terminate()
        process.wait(60)


def test_every_step_of_the_demo_is_walked_with_a_users_token_alone(other: Other) -> None:
    assert [step for step, rows, seconds in other.walked if rows > 0 and seconds is not None] == [
        step for step, _, _ in other.walked
    ]
    assert len(other.walked) == 8


def test_the_executed_notebooks_are_the_accounts_own(other: Other) -> None:
    there = {path.name: path.stat().st_uid for path in (other.account.home / "market" / "executed").iterdir()}
    tutorials = assets.folder("nbs") / "tutorials" / "flights"
    assert there == {path.name: UID for path in tutorials.glob("*.ipynb")}


def test_scheduled_notebooks_ran_on_the_accounts_runner(other: Other) -> None:
    runs = list(other.client.jobs.runs(project="market"))
    assert sorted(run.job for run in runs) == ["market/retrain", *["market/score"] * 3]
    assert {(run.state, run.attempts[-1].runner) for run in runs} == {("succeeded", other.runner)}
    assert other.client.outcomes.quality("market/tardy").outcomes > 0


def test_neither_a_kernel_of_the_account_nor_its_job_can_read_the_platforms_folder(
    other: Other, platform: Platform
) -> None:
    """The folder is shown to the account past the closed folders above it, so that its own mode is what refuses."""
    parts = ["", "secrets/password", "secrets/cli-token", "db/platform.sqlite", "data", "online/market.sqlite", "mlflow/artifacts"]  # fmt: skip
    assert all((platform.home / part).exists() for part in parts)
    shown = other.account.show(platform.home)
    names = [str(root / part) for root in (platform.home, shown) for part in parts]
    probe = PROBE.format(names=names)
    code, told = other.account.run([sys.executable, "-c", probe], other.environ)
    assert (code, json.loads(told)) == (0, [UID, []])

    content = json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell(probe)]})
    started = other.client.jobs.start(RunRequest(project="market", notebook="probe.ipynb", content=content))
    ended = other.client.jobs.wait(started.id, timeout=60)
    assert ended.state == "succeeded", ended.attempts
    outputs = json.loads(other.client.jobs.notebook(ended.id))["cells"][-1]["outputs"]
    assert json.loads("".join(outputs[0]["text"])) == [UID, []]


def cell(source: str) -> dict[str, object]:
    return {"cell_type": "code", "id": "probe", "metadata": {}, "outputs": [], "execution_count": None, "source": source}  # fmt: skip
