"""One slot of a runner: a process that warms a kernel, claims one run, executes it, reports, and ends.

So no run sees what another left behind, and a run costs no kernel start. The main thread is papermill's; a second one carries
the progress to the service and brings back the word to stop. When a run fails for good its slot may keep the kernel: it tells
the runner, which fills its place, and goes on with the same run if its owner resumes it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from cellwork import clock
from cellwork.client import Client
from cellwork.client.jobs import Jobs
from cellwork.errors import BadInput, CellworkError, Conflict, NotFound, TooBusy, Unavailable
from cellwork.runs import checkpoints, engine, parameters, resume
from cellwork.runs.kernel import Kernel, allowed
from cellwork.runs.zygote import Zygote
from cellwork.secrets import Masker
from cellwork.wire import PREFIX
from cellwork.wire.jobs import Checkpoint, Claim, Progress, RunState
from cellwork_hub.jobs.runners import keeper
from cellwork_hub.jobs.runners.asking import Asking

log = logging.getLogger("cellwork.runner")

WAIT_SECONDS = 2.0
"""How long one question for work stays open; a service that stops waits as long for its answer."""
BEAT_SECONDS, LEAST_SECONDS, NOTEBOOK_SECONDS = 1.0, 0.2, 2.0
"""Between words to the service: at most, at least; and at least between two that carry the notebook."""
INTERRUPT_SECONDS = 5.0
EXIT_SECONDS = 3.0
"""How long a kernel may take to run its exit handlers; its result is published by then."""
LAST_WORD_SECONDS = 120.0
MOST_ERROR = 20_000
"""Characters of an error; the service keeps no more."""
READY, OVER, KEEPING = "ready", "over", "keeping"
"""What a slot tells its runner: its kernel is warm, its run is published, or it keeps a kernel and no longer counts as one of its slots."""
PASSED_ON = ("CELLWORK_INSTANCE", "CELLWORK_UNIT")  # by which the supervisor knows what belongs to it


@dataclass(frozen=True)
class Platform:
    """Where the platform is, and this runner's credential."""

    url: str
    token: str
    runner: str
    containers: Containers | None = None
    """Where kernels live that are not processes of this account."""
    zygote: Zygote | None = None
    """What kernels are forked from; without it they are started fresh."""


class Containers(Protocol):
    """How a kernel in a container is started, and where the platform is from there."""

    @property
    def url(self) -> str: ...

    def command(self, digest: str, work: Path) -> list[str]: ...

    def give(self, folder: Path) -> None: ...


Tell = Callable[[int | str], None]
"""Gets the process id of each kernel that is started, and the words above."""


def serve_one(platform: Platform, tell: Tell, may_claim: Callable[[], object]) -> None:
    """Execute one run, from the claim to the last report, and keep its kernel if its owner may go on in it.

    `may_claim` returns when it may ask for one; it raises EOFError if its runner is gone.
    """
    attempt: Attempt | None = None
    asking = Asking()

    def leave(_: int, __: FrameType | None) -> None:
        if asking.leave():
            return
        if attempt is None or attempt.over:
            sys.exit(0)
        attempt.end("queued")

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    jobs = Client(platform.url, platform.token, timeout=60).jobs
    with _folder() as folder, contextlib.ExitStack() as at_end:
        kernel = _kernel(folder / "k1", tell, platform)
        at_end.callback(lambda: kernel.stop())
        tell(READY)
        may_claim()
        claim = _claim(jobs, platform.runner, asking)
        if not kernel.alive() or (platform.containers and claim.run.image_digest):
            kernel.stop()
            try:
                kernel = _kernel(folder / "k2", tell, platform, claim.run.image_digest)
            except CellworkError as error:
                log.warning("run %s: %s", claim.run.id, error)
                jobs.report(claim.run.id, Progress(fence=claim.fence, state="failed", error=plain(str(error))))
                return
        attempt = Attempt(jobs, claim, kernel, folder, platform.containers)
        url = platform.containers.url if platform.containers else platform.url
        try:
            attempt.execute(url)
            with contextlib.ExitStack() as open_way:
                while attempt.kept and (next_one := _hold(platform, jobs, attempt, tell, open_way, asking)):
                    attempt = Attempt(jobs, next_one, kernel, folder, platform.containers)
                    attempt.execute(url)
        except SystemExit:  # told to leave: its owner shall not wait for a kernel that is gone
            if attempt.kept:
                keeper.let_go(jobs, attempt.claim.run.id, attempt.claim.fence)
            raise
        tell(OVER)
        kernel.stop(gently=0 if attempt.word else EXIT_SECONDS)


def _hold(
    platform: Platform, jobs: Jobs, attempt: Attempt, tell: Tell, open_way: contextlib.ExitStack, asking: Asking
) -> Claim | None:
    """Keep the kernel of a failed attempt, open to its owner; returns the run's next attempt, if there is to be one."""
    run, fence = attempt.claim.run.id, attempt.claim.fence
    tell(KEEPING)
    log.info("run %s: its kernel is kept", run)
    open_way.close()
    open_way.enter_context(keeper.tunnel(platform.url, platform.token, run, fence, attempt.kernel))
    return keeper.hold(jobs, run, fence, attempt.kernel, asking)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="cw-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _kernel(folder: Path, tell: Tell, platform: Platform, digest: str = "") -> Kernel:
    """Start a kernel with its sockets in `folder`: in a container of the image `digest`, forked from a zygote, or fresh."""
    folder.mkdir()
    environment = {**allowed(os.environ), **{key: os.environ[key] for key in PASSED_ON if key in os.environ}}
    command = platform.containers.command(digest, folder.parent / "work") if platform.containers else None
    environment |= {"IPYTHONDIR": str(folder / "ipython")}
    kernel = Kernel.start(folder, environment, command=command, zygote=platform.zygote)
    tell(kernel.pid)
    return kernel


def _claim(jobs: Jobs, runner: str, asking: Asking) -> Claim:
    """Return the next run for this slot, however long there is none; one that comes while it leaves is handed back."""
    while True:
        asked = time.monotonic()
        try:
            with asking:
                claim = jobs.claim(runner, wait_seconds=WAIT_SECONDS)
                if claim and asking.leaving:
                    jobs.report(claim.run.id, Progress(fence=claim.fence, state="queued"))
            if claim:
                return claim
        except CellworkError as error:
            log.warning("no claim: %s", error)
        if time.monotonic() - asked < 1:
            time.sleep(1)


class Attempt:
    """One attempt at a run. `word` is how somebody else ended it: ``stopped``, ``queued`` (the runner leaves) or ``lost`` (its fence is stale).

    When it is `over`, `kept` says whether the service wants its kernel kept.
    """

    def __init__(
        self, jobs: Jobs, claim: Claim, kernel: Kernel, folder: Path, containers: Containers | None = None
    ) -> None:
        self.jobs, self.claim, self.kernel, self.containers = jobs, claim, kernel, containers
        self.output = folder / "out.ipynb"
        self.work = folder / "work"
        self.word = ""
        self.over = self.kept = False
        self.keepable = claim.first_cell > 1
        self.first = claim.first_cell
        self.masker = Masker(claim.masks)
        self.held = 0
        self.cell = self.cells = 0
        self._news, self._over = threading.Event(), threading.Event()
        self._sent = (0, 0.0)

    def execute(self, url: str) -> None:
        """Run the notebook and tell the service how it ended, unless the attempt was replaced meanwhile."""
        reporter = threading.Thread(target=self._report, daemon=True)
        reporter.start()
        started = time.monotonic()
        state, error = self._run(url)
        self._over.set()
        self._news.set()
        reporter.join()
        if self.word in ("stopped", "queued"):
            state, error = self.word, "" if self.word == "stopped" else "its runner was stopped"  # type: ignore[assignment]
        if self.word != "lost":
            self._last_word(state, error)
        self.over = True
        log.info(
            "run %s attempt %d: %s after %.1f s",
            self.claim.run.id,
            self.claim.attempt,
            self.word or state,
            time.monotonic() - started,
        )

    def _run(self, url: str) -> tuple[RunState, str]:
        try:
            if self.claim.executed:
                self._resume(url)
            elif fitting := self._fitting():
                self._restore(url, fitting)
            else:
                self._execute(url)
        except engine.RunFailed as error:
            if self.held:
                held, most = self.held / 1e6, self.claim.memory_megabytes
                return (
                    "failed",
                    f"cell {self.cell}: the run held {held:.0f} MB, over its limit of {most} MB; it was ended",
                )
            self.keepable = True
            return "failed", f"{error}\n{error.traceback}".strip()
        except CellworkError as error:
            return "failed", str(error)
        except Exception as error:  # the edge of the process: whatever it was, the run must end and say so
            log.exception("run %s", self.claim.run.id)
            return "failed", f"{type(error).__name__}: {error}"
        return "succeeded", ""

    def _execute(self, url: str) -> None:
        notebook = unpack(self.claim, self.work)
        self._give(self.work)
        engine.execute(
            notebook, self.output, self.claim.run.parameters, progress=self._at, timeout=self.claim.timeout_seconds, cell_timeout=self.claim.cell_timeout_seconds or None,
            environment=environment(self.claim, url), cwd=notebook.parent, kernel=self.kernel, spare=True, checkpoints=self._checkpoints(), masker=self.masker,
        )  # fmt: skip

    def _resume(self, url: str) -> None:
        """Go on in the kernel of the attempt before, with the mended notebook."""
        executed = parameters.read(self.claim.executed, self.claim.run.notebook)
        self._go_on(url, resume.merge(executed, self._mended(), self.first), None, None)

    def _fitting(self) -> Checkpoint | None:
        return checkpoints.choose(self._mended(), self.claim.run.parameters, self.claim.checkpoints)

    def _restore(self, url: str, at: Checkpoint) -> None:
        """Go on in a new kernel, which has run nothing yet, with what a former one held at the checkpoint `at`."""
        notebook, laid = unpack(self.claim, self.work), self.output.parent / "restored"
        executed = checkpoints.unpack(self.jobs.checkpoint(self.claim.run.id, at.key), laid, self.work)
        self._give(self.work)
        self._give(laid)
        folder = laid.rename(self.kernel.folder / "restored")
        self.first = at.cell + 1
        page = resume.merge(executed, self._mended(), self.first)
        self._go_on(url, page, notebook.parent, lambda: checkpoints.put_back(self.kernel, folder))

    def _go_on(self, url: str, page: dict[str, Any], cwd: Path | None, begin: Callable[[], None] | None) -> None:
        engine.resume(
            page, self.output, self.kernel, first=self.first, name=self.claim.run.notebook, progress=self._at, timeout=self.claim.timeout_seconds, cell_timeout=self.claim.cell_timeout_seconds or None,
            environment=environment(self.claim, url), spare=True, checkpoints=self._checkpoints(), cwd=cwd, begin=begin, masker=self.masker,
        )  # fmt: skip

    def _mended(self) -> dict[str, Any]:
        return parameters.read(self.claim.content, self.claim.run.notebook)

    def _give(self, folder: Path) -> None:
        """Hand `folder` to whom the kernel runs as, if that is somebody else."""
        if self.containers:
            self.containers.give(folder)

    def _checkpoints(self) -> checkpoints.Checkpoints:
        def send(about: Checkpoint, data: bytes) -> None:
            self.jobs.save_checkpoint(self.claim.run.id, self.claim.fence, about, data)

        folder = self.kernel.folder / "checkpoint"
        return checkpoints.Checkpoints(folder, self.work, self.claim.run.parameters, send)

    def _at(self, cell: int, cells: int) -> None:
        self.cell, self.cells = cell, cells
        self._news.set()

    def end(self, word: str) -> None:
        """End the attempt from outside: a stopped cell may say its last words, else the kernel is killed."""
        if self.word:
            return
        self.word = word
        if word != "stopped":
            self.kernel.kill()
            return
        self.kernel.interrupt()
        timer = threading.Timer(INTERRUPT_SECONDS, self.kernel.kill)
        timer.daemon = True
        timer.start()

    def _report(self) -> None:
        """Tell the service where the run is, once a second and when a cell starts, until the run is over."""
        while not self._over.wait(LEAST_SECONDS):
            self._news.wait(BEAT_SECONDS)
            self._news.clear()
            if self._over.is_set():
                return
            self._limit_memory()
            try:
                run = self.jobs.report(self.claim.run.id, self._progress("running", notebook=self._changed()))
                if run.state == "stopped":
                    self.end("stopped")
            except (Conflict, NotFound):
                self.end("lost")
                return
            except CellworkError as error:
                log.warning("run %s: %s", self.claim.run.id, error)

    def _limit_memory(self) -> None:
        """End the kernel if the run holds more memory than it may."""
        most = self.claim.memory_megabytes
        if most and (held := keeper.memory(self.kernel.pid)) > most * 1_000_000:
            self.held = held
            self.kernel.kill()

    def _progress(self, state: RunState, *, error: str = "", notebook: str = "") -> Progress:
        return Progress(
            fence=self.claim.fence, state=state, cell=self.cell, cells=self.cells, error=plain(self.masker.text(error)), notebook=notebook, first_cell=self.first
        )  # fmt: skip

    def _changed(self) -> str:
        """Return the notebook so far if it changed since it was sent, but not too often."""
        if not self.output.exists() or time.monotonic() - self._sent[1] < NOTEBOOK_SECONDS:
            return ""
        at = self.output.stat().st_mtime_ns
        if at == self._sent[0]:
            return ""
        self._sent = (at, time.monotonic())
        return self.output.read_text()

    def _last_word(self, state: RunState, error: str) -> None:
        """Tell the service how the attempt ended; without its notebook if it is that which the service can't take."""
        notebook = self.output.read_text() if self.output.exists() else ""
        end = time.monotonic() + LAST_WORD_SECONDS
        while True:
            said = self._progress(state, error=error, notebook=notebook)
            said.keepable = self.keepable and state == "failed" and self.kernel.alive()
            try:
                run = self.jobs.report(self.claim.run.id, said)
                self.kept = said.keepable and run.kept is not None and run.kept.attempt == self.claim.attempt
                return
            except CellworkError as refused:
                if isinstance(refused, Unavailable | TooBusy) and time.monotonic() < end:
                    time.sleep(1)
                    continue
                log.warning("run %s: %s", self.claim.run.id, refused)
                if isinstance(refused, Conflict | NotFound) or not notebook:
                    return
                masked = self.masker.text(error)  # before it is cut, lest half a secret is left
                error = f"{masked[: MOST_ERROR // 2]}\nits executed notebook could not be kept: {refused}".strip()
                notebook, self.keepable = "", False


def plain(error: str) -> str:
    """Return `error` as every database and every request takes it."""
    return error.replace("\0", "\ufffd").encode(errors="replace").decode()[:MOST_ERROR]


def unpack(claim: Claim, folder: Path) -> Path:
    """Write the run's notebook and the files beside it under `folder`; nothing outside it, whatever their names are."""
    contents = {**claim.files, claim.run.notebook: claim.content}
    for name, content in contents.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise BadInput("file", name, "lies outside the run's folder", "use plain relative paths")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder / claim.run.notebook


def environment(claim: Claim, url: str) -> dict[str, str]:
    """Return what a run's kernel knows of the platform: where it is, who it is there, and what it is a run of."""
    run = claim.run
    return {
        "CELLWORK_URL": url, "CELLWORK_TOKEN": claim.token, "CELLWORK_RUN": run.id, "CELLWORK_ATTEMPT": str(claim.attempt),
        "CELLWORK_NOTEBOOK": run.notebook, "CELLWORK_PROJECT": run.project, "CELLWORK_USER": run.principal,
        "MLFLOW_TRACKING_URI": url + PREFIX["mlflow"], "MLFLOW_TRACKING_TOKEN": claim.token, "CELLWORK_RUN_BEGAN": clock.now().isoformat(),
    }  # fmt: skip
