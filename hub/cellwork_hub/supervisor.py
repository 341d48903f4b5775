"""Starts the platform's processes in order, restarts what dies, bounds their logs, stops all of it: one loop, no threads.

What can't be started before everything was ready once ends the platform; later it is tried again for ever, and shown as failed.

One supervisor a home (a lock of the kernel's says so). What it knows stands in `home.pids()`, for everybody to read.
"""

from __future__ import annotations

import http.client
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import msgspec

from cellwork import files, settings
from cellwork.errors import CellworkError
from cellwork.home import Home
from cellwork.settings import Settings
from cellwork.wire import Struct
from cellwork.wire.records import ServiceStatus
from cellwork_hub import preparation, processes
from cellwork_hub.containers import way
from cellwork_hub.units import Unit, environment, platform_units

log = logging.getLogger("cellwork")

RAPID_SECONDS = 10.0
RAPID_FAILURES = 5
LONGEST_WAIT = 60.0
ROTATE_BYTES = 10 * 1024 * 1024
ROTATE_SECONDS = 60.0
TURN_SECONDS = 0.05


class Board(Struct):
    """What the supervisor tells: who it is, and the state of each service."""

    instance: str
    pid: int
    created: float
    """When the supervisor's process started; with `pid` it names the process."""
    port: int
    services: list[ServiceStatus]
    error: str = ""

    def state(self) -> Literal["starting", "ready", "failed"]:
        states = {service.state for service in self.services}
        if self.error or "failed" in states:
            return "failed"
        return "ready" if states == {"ready"} else "starting"


def read_board(home: Home) -> Board | None:
    try:
        return msgspec.json.decode(home.pids().read_bytes(), type=Board)
    except (OSError, msgspec.MsgspecError):
        return None


def running(home: Home) -> Board | None:
    """Return the board of the supervisor that runs on `home`; a file that a killed one left behind does not count."""
    board = read_board(home)
    return board if board and processes.alive(board.pid, board.created) else None


def with_memory(board: Board) -> list[ServiceStatus]:
    """Return the services, user servers and the supervisor with the memory that each takes now, children included."""
    sizes = processes.memory_mb(board.instance)
    rows = [msgspec.structs.replace(service, memory_mb=sizes.get(service.name, 0.0)) for service in board.services]
    own = processes.own_memory_mb(board.pid)
    return [
        *rows,
        ServiceStatus(name="user-servers", state="ready" if "" in sizes else "stopped", memory_mb=sizes.get("", 0.0)),
        ServiceStatus(name="supervisor", state="ready", pid=board.pid, memory_mb=own),
    ]


@dataclass
class Child:
    """One unit and what happened to it."""

    unit: Unit
    state: Literal["starting", "ready", "failed", "stopped"] = "stopped"
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    retry_at: float = 0.0
    restarts: int = 0
    failures: int = 0
    """Deaths in a row, each within RAPID_SECONDS of a start or before it was ready; starts that took too long are among them."""
    message: str = ""
    answered: set[str] = field(default_factory=set)

    def status(self) -> ServiceStatus:
        pid = self.process.pid if self.process else 0
        return ServiceStatus(
            name=self.unit.name,
            state=self.state,
            pid=pid,
            port=self.unit.port,
            restarts=self.restarts,
            message=self.message,
        )


class Supervisor:
    """Runs `units` until it is told to stop. Every path lies under `home`; children get `environ` and nothing else."""

    def __init__(
        self, home: Home, units: Sequence[Unit], environ: dict[str, str], *, port: int = 0, ready_seconds: float = 90
    ) -> None:
        self.home, self.environ, self.port, self.ready_seconds = home, environ, port, ready_seconds
        self.instance = environ[processes.MARKER]
        self.children = {unit.name: Child(unit) for unit in units}
        self.stopping = False
        self.complete = False
        """Everything was ready once."""
        self._told: list[ServiceStatus] | None = None
        self._rotate_at = 0.0

    def run(self) -> int:
        """Start, watch, and stop when told to; return an exit code. A unit that fails at the first start stops all."""
        self.tell()
        while not self.stopping:
            self.turn()
            processes.reap_orphans({child.process.pid for child in self.children.values() if child.process})
            time.sleep(TURN_SECONDS)
        failed = [child for child in self.children.values() if child.state == "failed"]
        self.stop()
        return 1 if failed and not self.complete else 0

    def turn(self) -> None:
        """Look at every unit once, and at the logs each minute."""
        if time.monotonic() >= self._rotate_at:
            self._rotate_at = time.monotonic() + ROTATE_SECONDS
            rotate(self.home)
        for child in self.children.values():
            if self.stopping:
                break
            self.step(child)
        states = {child.state for child in self.children.values()}
        if states == {"ready"} and not self.complete:
            self.complete = True
            log.info("everything is ready")
        if "failed" in states and not self.complete:
            self.stopping = True
        self.tell()

    def step(self, child: Child) -> None:
        if child.process is None:
            waits_for = [name for name in child.unit.after if self.children[name].state != "ready"]
            due = time.monotonic() >= child.retry_at and (self.complete or child.state != "failed")
            if due and (child.restarts or not waits_for):
                self.start(child)
        elif child.process.poll() is not None:
            self.died(child, f"ended with {_exit_text(child.process.returncode)}")
        elif child.state == "starting":
            self.check(child)
        elif child.failures and time.monotonic() - child.started > RAPID_SECONDS:
            child.failures = 0

    def start(self, child: Child) -> None:
        with self.home.log(child.unit.name).open("ab") as output:  # to append: `rotate` cuts it under the writer
            child.process = subprocess.Popen(
                child.unit.command,
                env={**self.environ, processes.UNIT: child.unit.name},
                cwd=self.home.root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        child.state, child.started = "starting", time.monotonic()
        child.answered.clear()

    def check(self, child: Child) -> None:
        seconds = time.monotonic() - child.started
        wanted = {*child.unit.ready, *(() if self.complete else child.unit.first)}
        child.answered |= {url for url in wanted - child.answered if answers(url)}
        if wanted <= child.answered and (wanted or seconds > child.unit.settle):
            child.state, child.message = "ready", f"ready after {seconds:.1f} s"
            log.info("%s %s", child.unit.name, child.message)
        elif seconds > self.ready_seconds:
            silent = sorted(wanted - child.answered)
            self.end([child])
            processes.end_unit(self.instance, child.unit.name)
            child.failures, child.restarts = child.failures + 1, child.restarts + 1
            self.give_up(child, f"was not ready in {self.ready_seconds:.0f} s ({silent[0]} does not answer)")

    def died(self, child: Child, how: str) -> None:
        """Plan the next start, later after each rapid death, or give up."""
        assert child.process is not None
        rapid = child.state == "starting" or time.monotonic() - child.started < RAPID_SECONDS
        child.failures = child.failures + 1 if rapid else 1
        processes.end_group(child.process.pid)
        processes.end_unit(self.instance, child.unit.name)
        child.process, child.state, child.restarts = None, "starting", child.restarts + 1
        child.message = how
        if child.failures >= RAPID_FAILURES:
            self.give_up(child, f"{how}, {child.failures} times in a row")
            return
        child.retry_at = time.monotonic() + _wait(child.failures)
        log.warning("%s %s; it is started again", child.unit.name, how)

    def give_up(self, child: Child, verdict: str) -> None:
        """Call it failed: the first start ends with that, a platform that was complete tries it again."""
        wait = _wait(child.failures)
        child.state, child.retry_at = "failed", time.monotonic() + wait
        child.message = f"{verdict}; look into {self.home.log(child.unit.name)}"
        if self.complete:
            child.message += f"; it is started again in {wait:.0f} s"
        log.error("%s %s", child.unit.name, child.message)

    def stop(self) -> None:
        """End every process: what started later first, user servers and their kernels with the hub; twice is once."""
        self.stopping = True
        for depth in sorted({self.depth(unit) for unit in self.children}, reverse=True):
            self.end([child for name, child in self.children.items() if self.depth(name) == depth])
            if depth == self.depth("hub"):
                processes.end_instance(self.instance, 10.0, unit="")
                way.end_all(self.home)
        processes.end_instance(self.instance, 10.0)
        self.tell()
        log.info("everything has stopped")

    def depth(self, name: str) -> int:
        """Return how many starts had to come before the start of `name`, one after the other."""
        after = self.children[name].unit.after if name in self.children else ()
        return 1 + max(map(self.depth, after), default=-1)

    def end(self, children: Sequence[Child]) -> None:
        """End these units: SIGTERM, their grace, SIGKILL to what is left of their groups."""
        running = [child for child in children if child.process]
        for child in running:
            cast(subprocess.Popen[bytes], child.process).terminate()
        started = time.monotonic()
        for child in running:
            process = cast(subprocess.Popen[bytes], child.process)
            try:
                process.wait(max(0.0, started + child.unit.grace - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("%s did not end in %.0f s and is killed", child.unit.name, child.unit.grace)
            processes.end_group(process.pid)
            process.wait(10)
            child.process = None
            if child.state != "failed":
                child.state = "stopped"
                log.info("%s stopped", child.unit.name)

    def tell(self) -> None:
        """Write the board if anything changed."""
        services = [child.status() for child in self.children.values()]
        if services != self._told:
            self._told = services
            write_board(
                self.home,
                Board(
                    instance=self.instance,
                    pid=os.getpid(),
                    created=processes.created(os.getpid()),
                    port=self.port,
                    services=services,
                ),
            )


def write_board(home: Home, board: Board) -> None:
    files.write(home.pids(), msgspec.json.encode(board), mode=0o600)


def answers(url: str) -> bool:
    """Whether `url` answers 200 within a second."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=1) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, http.client.HTTPException, OSError):
        return False


def _exit_text(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _wait(failures: int) -> float:
    """Return the seconds until the next start after so many failures in a row."""
    return min(0.1 * 2.0 ** min(failures, 10), LONGEST_WAIT)


def rotate(home: Home) -> None:
    """Put the last ROTATE_BYTES of each log that is larger aside, and cut it where it lies: its writer appends to it."""
    for path in home.logs.glob("*.log"):
        try:
            if path.stat().st_size > ROTATE_BYTES:
                _put_aside(path)
                os.truncate(path, 0)
        except OSError as error:
            log.warning("the log %s is not bounded: %s", path, error)


def _put_aside(path: Path) -> None:
    """Keep the end of a log; where that fails, as on a full disk, it is lost, and the cut makes room."""
    aside = path.with_suffix(".log.1")
    try:
        aside.unlink(missing_ok=True)
        with path.open("rb") as source, aside.open("wb") as kept:
            source.seek(-ROTATE_BYTES, os.SEEK_END)
            shutil.copyfileobj(source, kept)
    except OSError as error:
        log.warning("the log %s is cut, and its end is not kept: %s", path, error)


def supervise(chosen: Settings) -> int:
    """Run the platform of `chosen.home` until SIGINT or SIGTERM; return the exit code.

    Raises
    ------
    Conflict
        Another supervisor runs on this home, or the public port is taken.
    """
    home = chosen.folder.ensure()
    with files.locked(home.lock(), "cellwork up"):
        end_leftovers(home)
        try:
            supervisor = _prepared(chosen)
        except CellworkError as error:
            write_board(
                home,
                Board(
                    instance="",
                    pid=os.getpid(),
                    created=processes.created(os.getpid()),
                    port=0,
                    services=[],
                    error=str(error),
                ),
            )
            raise

        def stop(number: int, frame: object) -> None:
            supervisor.stopping = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        processes.adopt_orphans()
        return supervisor.run()


def _prepared(chosen: Settings) -> Supervisor:
    preparation.make_secrets(chosen.folder)
    ports = preparation.ports(chosen)
    servers = way.decide(chosen)
    log.info("user servers: %s", servers.text)
    preparation.write_proxy(chosen, ports, servers.door)
    environ = environment(chosen, processes.new_instance())
    return Supervisor(
        chosen.folder, platform_units(chosen, ports), environ, port=ports["public"], ready_seconds=chosen.ready_seconds
    )


def end_leftovers(home: Home) -> None:
    """End what a killed supervisor left behind."""
    if count := way.end_all(home):
        log.warning("removed %d containers that an earlier start left behind", count)
    board = read_board(home)
    if board and (count := processes.end_instance(board.instance, 10.0)):
        log.warning("ended %d processes that an earlier start left behind", count)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    try:
        return supervise(settings.load()[0])
    except CellworkError as error:
        log.error("%s", error)
        return 3


if __name__ == "__main__":
    sys.exit(main())
