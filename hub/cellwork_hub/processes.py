"""Processes of one start of the platform: each carries its id in CELLWORK_INSTANCE, however deep below the supervisor.

A process is named by pid and start time together, so that a pid that was given away again is never signalled.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
import sys
from collections.abc import Collection, Sequence

import psutil

MARKER = "CELLWORK_INSTANCE"
UNIT = "CELLWORK_UNIT"
"""Which of the supervisor's units a process belongs to; user servers, which outlive the hub, are not given it."""
SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def new_instance() -> str:
    return secrets.token_hex(8)


def of_instance(instance: str, *, unit: str | None = None) -> list[psutil.Process]:
    """Return the living processes of `instance` (of its `unit` alone, ``""`` is of none), this one left out."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            environ = process.environ()
            ours = environ.get(MARKER) == instance and unit in (None, environ.get(UNIT, ""))
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):  # it ended while we looked, or is another account's
            continue
    return found


def end(processes: Sequence[psutil.Process], grace: float) -> int:
    """End `processes` (and what they started) by SIGTERM, after `grace` seconds by SIGKILL; return how many there were."""
    alive = [p for p in _with_children(processes) if _signal(p, kill=False)]
    alive = _wait(alive, grace)
    for process in alive:
        _signal(process, kill=True)
    _wait(alive, 5)
    return len(processes)


def end_instance(instance: str, grace: float, *, unit: str | None = None) -> int:
    """End all of `instance`; a process that started another in the meantime does not save it."""
    count = 0
    for _ in range(5):
        found = of_instance(instance, unit=unit)
        if not found:
            break
        count += end(found, grace)
    return count


def end_unit(instance: str, unit: str) -> None:
    """Kill what a dead unit left behind: workers and kernels in process groups of their own."""
    for process in of_instance(instance, unit=unit):
        _signal(process, kill=True)


def alive(pid: int, created: float) -> bool:
    """Whether the process that had `pid` at its start at `created` (seconds since 1970) still runs."""
    try:
        process = psutil.Process(pid)
        return bool(abs(process.create_time() - created) < 1 and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def created(pid: int) -> float:
    """Return when `pid` started, in seconds since 1970; 0 if it is gone."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0


def memory_mb(instance: str) -> dict[str, float]:
    """Return the memory, in MB, of each unit's processes; ``""`` is user servers and their kernels."""
    sizes: dict[str, float] = {}
    for process in of_instance(instance):
        try:
            unit = process.environ().get(UNIT, "")
        except (psutil.Error, OSError):
            continue
        sizes[unit] = sizes.get(unit, 0.0) + _memory(process) / 1e6
    return sizes


def own_memory_mb(pid: int) -> float:
    """Return the memory of `pid` alone, in MB."""
    try:
        return _memory(psutil.Process(pid)) / 1e6
    except psutil.Error:
        return 0.0


def _memory(process: psutil.Process) -> int:
    """Return the bytes that `process` takes: what it shares, as forked kernels do, is divided by who shares it (PSS).

    Where the system doesn't tell that, it is all that is resident; for a process that is gone it is 0.
    """
    with contextlib.suppress(psutil.Error):
        try:
            return int(process.memory_full_info().pss)
        except (psutil.AccessDenied, AttributeError):
            return int(process.memory_info().rss)
    return 0


def end_group(pid: int) -> None:
    """Kill what is left of the process group that `pid` led; the number is its own as long as a member lives."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def adopt_orphans() -> None:
    """Make this process the parent of what its children leave behind, so that somebody waits for it (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_orphans(own: Collection[int]) -> None:
    """Wait for ended orphans; children in `own` are left to who started them."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in own:
            return
        os.waitpid(ended.si_pid, os.WNOHANG)


def _with_children(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    tree = {process.pid: process for process in processes}
    for process in processes:
        try:
            tree.update({child.pid: child for child in process.children(recursive=True)})
        except psutil.Error:
            continue
    return [process for pid, process in tree.items() if pid != os.getpid()]


def _signal(process: psutil.Process, *, kill: bool) -> bool:
    try:
        process.kill() if kill else process.terminate()
    except psutil.Error:
        return False
    return True


def _wait(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Return those that still run after `seconds`; a zombie has ended."""
    alive: list[psutil.Process] = psutil.wait_procs(processes, timeout=seconds)[1]
    return [p for p in alive if _running(p)]


def _running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
