"""`cellwork serve` as a process on a free port, with a key for its callers."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import serving_world as world
from running import environment


class Served:
    """`cellwork serve` as a process, and callers with its key."""

    def __init__(self, home: Path, *words: str, **environ: str) -> None:
        command = [str(Path(sys.executable).with_name("cellwork")), "serve", *words, "--port", "0", "--new-key", "web"]
        self.home = home
        world.share_compiled(home)
        self.process = subprocess.Popen(
            command,
            env=environment(home, **environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.token = self.process.stdout.readline().strip()
        line = self.process.stderr.readline()
        assert line.startswith("serves on "), line + self.process.stderr.read()
        self.url = line.split()[-1]
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        wait_until(self.is_ready)

    def workers(self) -> set[int]:
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    def is_ready(self) -> bool:
        assert self.process.poll() is None, "the service ended"
        try:
            return httpx.get(f"{self.url}/health/ready", trust_env=False, timeout=60).status_code == 200
        except httpx.TransportError:
            return False

    def caller(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=60)

    def renew(self) -> None:
        """Ask for new processes, and wait until none of the old ones is left."""
        old = self.workers()
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(new := self.workers()) == len(old) and not new & old)

    def end(self) -> None:
        """End it, if it has not ended, when its requests are answered."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 240
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
