"""Why a kernel died, in a sentence with a way out: asked of the container's control group and of the kernel's exit code."""

from __future__ import annotations

import os
import signal
from pathlib import Path

COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))
"""Control groups of version 2 and 1: each has a line ``oom_kill N``."""


def killed_for_memory() -> int:
    """Return how many processes of this container were ended because it reached its limit; 0 where there is none."""
    for path in COUNTERS:
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
    return 0


def why(code: int | None, *, for_memory: bool) -> str:
    """Return what became of a kernel that ended with `code`; negative is a signal, None is not known."""
    if for_memory:
        return f"the kernel needed more memory than {_limit()} and was ended; keep less in memory at once (delete what is done with, read fewer columns), or choose a larger profile at Hub Control Panel"
    if code is not None and code < 0:
        return f"the kernel was ended by {signal.Signals(-code).name}; run the cells above again"
    ended = "" if code is None else f" with exit code {code}"
    return f"the kernel ended by itself{ended}; run the cells above again"


def _limit() -> str:
    most = int(os.environ.get("MEM_LIMIT") or 0)
    return f"the {most / 2**20:.0f} MB that this server may have" if most else "this server may have"
