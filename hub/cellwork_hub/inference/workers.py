"""Several processes of the inference service on one port: spawned, renewed one by one, started again when one ends, stopped together.

    empty --spawned--> coming --says that it serves--> serving --TERM--> leaving --its requests are answered--> gone
      ^                                                   |
      +---- rests, ever longer ---- ended by itself ------+

Every worker has a seat with a listening socket of its own, over which the kernel spreads connections; this process holds the socket
too, so that a connection that nobody has accepted yet outlives a worker. SIGHUP renews the workers one after the other: the new one sits
down beside the old one and serves before that one leaves, so nothing is lost. A worker that dies leaves connections that nobody would
answer: where there are others its socket is closed at once, and new callers reach those; the only one's wait for the next.

Each worker holds every endpoint; a change made in one is followed by the others within a second (`deploy.Endpoints.follow`). A worker
ends with its parent: its standard input is the parent's pipe.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

log = logging.getLogger("cellwork")

TURN_SECONDS = 0.05
REST_SECONDS = 10.0
"""The longest rest before a worker that keeps ending is started again."""
LIVED_SECONDS = 60.0
COMING_SECONDS = 120.0
"""How long a worker that is to replace another may take to serve."""
GRACE_SECONDS = 13.0
"""Between SIGTERM and SIGKILL, beside the time it drains."""


def count(setting: int) -> int:
    """Return how many processes the setting asks for; 0 is one a core."""
    return setting or len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Place:
    """What a worker was given: its number, its socket, and where it says that it serves."""

    number: int
    listening: socket.socket
    said: int

    @classmethod
    def of(cls, words: Sequence[str]) -> Place:
        """Return the place that a worker's command line names, as `Seat` wrote it.

        What the worker starts does not inherit it: connections would come to a process that accepts none, for as long as it outlives
        the worker.
        """
        number, listening, said = map(int, words)
        for handed in (listening, said):
            os.set_inheritable(handed, False)
        return cls(number, socket.socket(fileno=listening), said)

    def say(self) -> None:
        os.write(self.said, b"1")


@dataclass
class Worker:
    process: subprocess.Popen[bytes]
    says: int
    """Where it says that it serves."""
    began: float = field(default_factory=time.monotonic)
    serves: bool = False

    def look(self) -> bool:
        """Return whether it serves."""
        with contextlib.suppress(BlockingIOError):
            self.serves = self.serves or bool(os.read(self.says, 1))
        return self.serves

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def age(self) -> float:
        return time.monotonic() - self.began

    def close(self) -> None:
        os.close(self.says)
        if self.process.stdin:
            self.process.stdin.close()


class Seat:
    """One worker's place, and who sits there."""

    def __init__(
        self, number: int, command: Sequence[str], listen: Callable[[], socket.socket], *, only: bool, grace: float
    ) -> None:
        self.number, self.command, self.listen, self.only, self.grace = number, command, listen, only, grace
        self.socket: socket.socket | None = listen()
        self.serving: Worker | None = None
        self.coming: Worker | None = None
        self.leaving: list[tuple[Worker, float]] = []
        """Who was told to end, and when it is killed."""
        self._rest, self._next = 0.25, 0.0

    def turn(self) -> None:
        """Look once."""
        self.reap()
        if self.coming is not None:
            self._receive(self.coming)
        if self.serving is not None and self.serving.ended:
            self._died(self.serving)
        if self.serving is None and self.coming is None and time.monotonic() >= self._next:
            self.serving = self._spawn()

    def renew(self) -> None:
        """Let a new worker take the place of the one that serves."""
        self.coming = self.coming or self._spawn()

    def leave(self) -> None:
        """Let all end who are here; when they take no more connections, nobody does."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None
        for worker in (self.serving, self.coming):
            if worker is not None:
                self._send_away(worker)
        self.serving = self.coming = None

    def _spawn(self) -> Worker:
        self.socket = self.socket or self.listen()
        says, said = os.pipe()
        os.set_blocking(says, False)
        handed = self.socket.fileno(), said
        words = [*self.command, "--worker", str(self.number), *map(str, handed)]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, pass_fds=handed)
        os.close(said)
        return Worker(process, says)

    def _receive(self, worker: Worker) -> None:
        if worker.look():
            old, self.serving, self.coming = self.serving, worker, None
            if old is not None:
                self._send_away(old)
        elif worker.ended or worker.age > COMING_SECONDS:
            self.coming = None
            self._send_away(worker)
            log.error("inference worker %d: the new process does not serve; the old one goes on", self.number)

    def _died(self, worker: Worker) -> None:
        self._rest = 0.5 if worker.age > LIVED_SECONDS else min(2 * self._rest, REST_SECONDS)
        self.serving, self._next = None, time.monotonic() + self._rest
        if self.socket is not None and not self.only and self.coming is None:
            self.socket.close()
            self.socket = None
        worker.close()
        how = worker.process.returncode
        log.warning("inference worker %d ended with %s; started again in %.1f s", self.number, how, self._rest)

    def _send_away(self, worker: Worker) -> None:
        if not worker.ended:
            worker.process.terminate()
        self.leaving.append((worker, time.monotonic() + self.grace))

    def reap(self) -> None:
        for worker, end in self.leaving:
            if not worker.ended and time.monotonic() > end:
                log.warning("inference worker %d does not end and is killed", self.number)
                worker.process.kill()
        for worker, _ in self.leaving:
            if worker.ended:
                worker.close()
        self.leaving = [(worker, end) for worker, end in self.leaving if not worker.ended]


def run(
    workers: int, command: Sequence[str], listen: Callable[[], socket.socket], *, drain_seconds: float = 0.0
) -> None:
    """Keep `workers` processes of `command` running until SIGTERM or SIGINT; SIGHUP renews them.

    `listen` makes a socket on the service's port.
    """
    stop, renew = threading.Event(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    signal.signal(signal.SIGHUP, lambda *_: renew.set())
    grace = GRACE_SECONDS + drain_seconds
    seats = [Seat(number, command, listen, only=workers == 1, grace=grace) for number in range(workers)]
    waiting: list[Seat] = []
    while not stop.wait(TURN_SECONDS):
        if renew.is_set():
            renew.clear()
            waiting = list(seats)
        for seat in seats:
            seat.turn()
        if waiting and all(seat.coming is None for seat in seats):
            waiting.pop(0).renew()
    for seat in seats:
        seat.leave()
    while any(seat.leaving for seat in seats):
        for seat in seats:
            seat.reap()
        time.sleep(TURN_SECONDS)


def python(module: str) -> list[str]:
    """Return the command that runs `module` with this interpreter."""
    return [sys.executable, "-m", module]


def end_with_parent() -> None:
    """End this process gracefully when its standard input ends."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
