"""A model in a child process of its own, and the parent's hold on it.

The parent never loads a model and never waits longer than its own deadline. A child is spawned with a clean environment
(never forked), is told to stop by the end of its input, and is killed when it hangs. One that dies is started again,
ever more slowly; meanwhile every question is answered at once with `NoAnswer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellwork.errors import Unavailable
from cellwork.serving import messages

log = logging.getLogger("cellwork.serving")

START_SECONDS = 60.0
HANG_SECONDS = 10.0
"""When an answer is this late the child is killed."""
LIVED_SECONDS = 60.0
"""A child that lived this long is started again at once when it dies."""
REST_SECONDS = 30.0
"""The longest rest before another start."""


MEGABYTES = 4096
"""The child's address space."""


class NoAnswer(Unavailable):
    """The predictor has no answer: it is down, late, or the model raised."""


class Predictor:
    def __init__(
        self, folder: Path, name: str, *, hang_seconds: float = HANG_SECONDS, megabytes: int = MEGABYTES
    ) -> None:
        self.folder, self.name, self.hang_seconds, self.megabytes = folder, name, hang_seconds, megabytes
        self.how, self.message, self.starts = "", "is not started", 0
        self._process: asyncio.subprocess.Process | None = None
        self._waiting: dict[int, tuple[float, asyncio.Future[list[float | None]]]] = {}
        self._numbers = itertools.count(1)
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def ready(self) -> bool:
        return self._process is not None and bool(self.how)

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    async def start(self, *, seconds: float = START_SECONDS) -> None:
        """Load the model in a child; raises NoAnswer, with the child's reason, if it does not load in time."""
        await self._launch(seconds)
        self._keeper = asyncio.create_task(self._keep())

    def keep_trying(self) -> None:
        """Start in the background and again until it works: what a restarted service does with what it had."""
        self._keeper = asyncio.create_task(self._keep())

    async def ask(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, seconds: float) -> list[float | None]:
        """Return one score a row (its values in the order of `columns`); None where it is not finite.

        Raises
        ------
        NoAnswer
            The child is down, an earlier answer is already late, the model raised, or `seconds` have passed.
        """
        process = self._process
        if process is None or process.stdin is None or not self.how:
            raise self._no_answer(self.message)
        if seconds <= 0:
            raise self._no_answer("was asked too late: the request had waited too long")
        if any(time.monotonic() - sent > seconds for sent, _ in self._waiting.values()):
            raise self._no_answer("is late with an earlier answer")
        number, future = next(self._numbers), asyncio.get_running_loop().create_future()
        self._waiting[number] = (time.monotonic(), future)
        table = {name: [row[k] for row in rows] for k, name in enumerate(columns)}
        process.stdin.write(messages.frame(messages.Ask(number, len(rows), table)))
        asyncio.get_running_loop().call_later(self.hang_seconds, self._kill_if_waiting, number, process)
        try:
            return await asyncio.wait_for(asyncio.shield(future), seconds)
        except TimeoutError:
            future.add_done_callback(_forget)
            raise self._no_answer(f"did not answer within {seconds:.1f} s") from None

    async def close(self) -> None:
        """Let the child finish what it was asked, then stop it. May be called twice."""
        self._closed = True
        if self._waiting:
            await asyncio.wait([future for _, future in self._waiting.values()], timeout=self.hang_seconds)
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await self._stop()

    async def _keep(self) -> None:
        rest = 0.1
        while not self._closed:
            began = time.monotonic()
            try:
                if not self.ready:
                    await self._launch(START_SECONDS)
                await self._listen()
            except NoAnswer as error:
                self.message = error.verdict
            await self._stop()
            rest = 0.1 if time.monotonic() - began > LIVED_SECONDS else min(rest * 2, REST_SECONDS)
            log.warning("predictor %s %s; it is started again in %.1f s", self.name, self.message, rest)
            await asyncio.sleep(rest)

    async def _launch(self, seconds: float) -> None:
        self.starts += 1
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-m", "cellwork.serving.child", str(self.folder), str(self.megabytes),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            env=_environment(), start_new_session=True, cwd="/",
        )  # fmt: skip
        try:
            answer = await asyncio.wait_for(self._read(), seconds)
        except TimeoutError:
            answer = messages.Failed(0, f"did not load within {seconds:.0f} s")
        except asyncio.CancelledError:
            await self._stop()
            raise
        if not isinstance(answer, messages.Ready):
            await self._stop()
            verdict = answer.error if isinstance(answer, messages.Failed) else "died while it loaded"
            self.message = verdict
            raise self._no_answer(verdict)
        self.how, self.message = answer.how, ""

    async def _listen(self) -> None:
        while (answer := await self._read()) is not None:
            _, future = self._waiting.pop(getattr(answer, "number", 0), (0.0, None))
            if future is None or future.done():
                continue
            if isinstance(answer, messages.Scores):
                future.set_result(answer.scores)
            elif isinstance(answer, messages.Failed):
                future.set_exception(self._no_answer(f"raised {answer.error}"))
        self.message = "died"

    async def _read(self) -> messages.Answer | None:
        """Return the child's next message, or None at its end."""
        if self._process is None or self._process.stdout is None:
            return None
        try:
            head = await self._process.stdout.readexactly(messages.LENGTH.size)
            return messages.answer(await self._process.stdout.readexactly(messages.LENGTH.unpack(head)[0]))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def _stop(self) -> None:
        process, self._process, self.how = self._process, None, ""
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(self._no_answer(self.message or "was stopped"))
                future.add_done_callback(_forget)
        self._waiting.clear()
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 1)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _kill_if_waiting(self, number: int, process: asyncio.subprocess.Process) -> None:
        if number in self._waiting and process is self._process:
            log.warning("predictor %s hangs for %.0f s and is killed", self.name, self.hang_seconds)
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def _no_answer(self, verdict: str) -> NoAnswer:
        return NoAnswer("predictor", self.name, verdict, "ask again, or roll back to the previous version")


def _forget(future: asyncio.Future[list[float | None]]) -> None:
    """Nobody waits any more; take the exception so that the loop does not report it."""
    if not future.cancelled():
        future.exception()


def _environment() -> dict[str, str]:
    """Return what a child may see: no secrets, no tokens, one thread a library (many children share the machine)."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR") if name in os.environ}
    single = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
    return {**kept, **dict.fromkeys(single, "1"), "MLFLOW_DISABLE_TELEMETRY": "true"}
