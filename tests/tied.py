"""Servers of tests that end with the process that started them, however that ends: returned, raised, killed.

An `atexit` is not enough: pytest-xdist kills a worker that takes more than ten seconds to leave, and who is killed runs nothing.
So beside each server stands a keeper, this file run as a program: ``python tied.py STARTER GRACE FOLDER COMMAND…``. It starts COMMAND and
waits for the first of two ends. When the server ends, it does too, with the server's exit code. When STARTER ends, or the keeper is
told to (SIGTERM, SIGINT, SIGQUIT, which it passes on), the server has GRACE seconds to leave by itself. Whatever was started by
the server and is left then is killed, also what made itself a session of its own; and FOLDER, if there is one, is removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

GRACE_SECONDS = 15
PR_SET_CHILD_SUBREAPER = 36
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def start(
    command: Sequence[str | Path], *, remove: Path | None = None, grace: float = GRACE_SECONDS, **popen: Any
) -> subprocess.Popen[bytes]:
    """Start `command`, tied to this process; return its keeper, whose signals and exit code are the command's.

    `remove` is a folder of the command's own, which is gone when it has ended; `popen` is what `subprocess.Popen` takes.
    """
    keeper = [sys.executable, "-I", __file__, str(os.getpid()), str(grace), str(remove or ""), *map(str, command)]
    return subprocess.Popen(keeper, start_new_session=True, **popen)


def stop(process: subprocess.Popen[bytes], asked: signal.Signals = signal.SIGTERM) -> None:
    """End what `start` returned, if it has not ended, with all that it started: it is asked first."""
    process.send_signal(asked)
    process.wait(GRACE_SECONDS + 30)


@contextlib.contextmanager
def afterwards(command: Sequence[str | Path], **popen: Any) -> Iterator[None]:
    """Run `command` if this process ends within the block; who leaves the block has seen to it."""
    words = [
        "sh",
        "-c",
        "trap '\"$@\" > /dev/null 2>&1; exit' TERM; echo on guard; sleep infinity & wait",
        "-",
        *command,
    ]
    guard = start(words, grace=120, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **popen)
    try:
        assert guard.stdout
        assert guard.stdout.readline() == b"on guard\n"
        yield
    finally:
        os.killpg(guard.pid, signal.SIGKILL)
        guard.communicate(timeout=60)


def main(starter: int, grace: float, folder: str, command: list[str]) -> int:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what the server leaves behind becomes ours
    asked: list[int] = []
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: asked.append(number))
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    try:
        with contextlib.suppress(ProcessLookupError):
            watched = os.pidfd_open(starter)
            if os.getppid() == starter:
                return _keep(subprocess.Popen(command), watched, awake, asked, grace)
        return 1
    finally:
        _end_all()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _keep(server: subprocess.Popen[bytes], starter: int, awake: int, asked: list[int], grace: float) -> int:
    """Wait until the server has ended, or ought to; return its exit code."""
    poll = select.poll()
    own = os.pidfd_open(server.pid)
    for fd in (own, starter, awake):
        poll.register(fd, select.POLLIN)
    ready = {fd for fd, _ in poll.poll()}
    if own not in ready:
        server.send_signal(asked[0] if asked else signal.SIGTERM)
    try:
        return server.wait(grace)
    except subprocess.TimeoutExpired:
        return 1


def _end_all() -> None:
    """Kill every descendant; one that is started meanwhile is found in the next round."""
    while left := [child for child in psutil.Process().children(recursive=True) if _lives(child)]:
        for child in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(left, timeout=1)


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:]))
