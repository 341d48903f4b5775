"""A server of the tests ends with who started it, however that ends, and takes with it what it started itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tied
from running import gone, wait_for

SERVER = """
import os, signal, subprocess, sys, time
{deaf}
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open("pids", "w").write(f"{{os.getpid()}} {{child.pid}} .")
time.sleep(600)
"""
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
STARTER = """
import os, sys, time, tied
tied.start([sys.executable, "server.py"], remove={folder!r}, grace=1)
while not os.path.exists("pids") or not open("pids").read().endswith("."):
    time.sleep(0.05)
{then}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own").mkdir()
    (tmp_path / "server.py").write_text(SERVER.format(deaf=""))
    return tmp_path


def pids(folder: Path) -> list[int]:
    """Return the server's process and the one that it started, when both are there."""
    known = folder / "pids"
    words = wait_for(lambda: (text := known.exists() and known.read_text()) and text.endswith(".") and text, 60)
    return [int(word) for word in str(words).split()[:2]]


def starter(folder: Path, then: str) -> subprocess.Popen[bytes]:
    code = STARTER.format(folder=str(folder / "own"), then=then)
    environ = {**os.environ, "PYTHONPATH": str(Path(tied.__file__).parent)}
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=environ)


@pytest.mark.parametrize("then", ["time.sleep(600)", "os._exit(3)", ""])
def test_a_server_and_what_it_started_end_with_the_process_that_started_it(folder: Path, then: str) -> None:
    """Killed, left without a word, or run to its end."""
    started = starter(folder, then)
    both = pids(folder)
    if "600" in then:
        started.kill()
    started.wait(60)
    wait_for(lambda: all(map(gone, both)), 60, "the end of the server")
    wait_for(lambda: not (folder / "own").exists(), 60, "the end of its folder")


@pytest.mark.parametrize(("then", "done"), [("os._exit(3)", True), ("", False)])
def test_what_is_to_be_done_afterwards_is_done_for_who_ended_within(folder: Path, then: str, done: bool) -> None:
    words = [sys.executable, "-c", "open('done', 'w')"]
    code = f"import os, tied\nwith tied.afterwards({words!r}):\n    open('pids', 'w').write(f'{{os.getpid()}} {{os.getpid()}} .')\n    {then or 'pass'}"
    environ = {**os.environ, "PYTHONPATH": str(Path(tied.__file__).parent)}
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, env=environ, timeout=60).returncode == 3 * done
    if done:
        wait_for((folder / "done").exists, 60, "what is to be done")
    assert (folder / "done").exists() == done


def test_a_server_that_does_not_listen_is_killed(folder: Path) -> None:
    (folder / "server.py").write_text(SERVER.format(deaf=DEAF))
    started = starter(folder, "time.sleep(600)")
    both = pids(folder)
    started.kill()
    started.wait(60)
    wait_for(lambda: all(map(gone, both)), 90, "the end of the server")


def test_a_server_that_is_stopped_leaves_nothing_and_its_exit_code_is_told(folder: Path) -> None:
    process = tied.start([sys.executable, "server.py"], cwd=folder)
    both = pids(folder)
    assert not any(map(gone, both))
    tied.stop(process)
    assert process.returncode == -signal.SIGTERM % 256
    assert all(map(gone, both))
    quick = tied.start([sys.executable, "-c", "import sys; sys.exit(3)"])
    assert quick.wait(60) == 3
