"""A runner without kernels: it claims over HTTP, "works" for some milliseconds, and publishes. For tests that kill it very often.

``python bare_runner.py URL LEDGER SEED``: each result that the service took is a line ``run fence`` in LEDGER.
"""

from __future__ import annotations

import os
import random
import sys
import time

from cellwork.client import Client
from cellwork.errors import CellworkError, Conflict
from cellwork.wire.jobs import Progress


def main(url: str, ledger: str, seed: int) -> None:
    jobs, chance = Client(url, "runner-token", timeout=10).jobs, random.Random(seed)
    note = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    while True:
        try:
            claim = jobs.claim(f"bare-{os.getpid()}", wait_seconds=1.0)
        except CellworkError:
            time.sleep(0.1)
            continue
        if claim is None:
            continue
        time.sleep(chance.random() * 0.05)
        publish(jobs, claim.run.id, claim.fence, note)


def publish(jobs: object, run: str, fence: int, note: int) -> None:
    """Say that the run succeeded until the service takes it or refuses it."""
    while True:
        try:
            jobs.report(run, Progress(fence=fence, state="succeeded", cell=1, cells=1))  # type: ignore[attr-defined]
        except Conflict:
            return
        except CellworkError:
            time.sleep(0.1)
            continue
        os.write(note, f"{run} {fence}\n".encode())
        return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
