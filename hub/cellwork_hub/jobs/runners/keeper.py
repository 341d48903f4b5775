"""Keep the kernel of a failed run: say that it lives, let its owner in through a tunnel, and hear whether the run goes on.

A thread of its own carries the frames between the kernel's sockets and the service, so that Lab stays attached while the run
goes on. Nothing here executes cells; whoever holds the kernel's own client does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from cellwork.client.jobs import Jobs
from cellwork.errors import BadInput, CellworkError, Conflict, NotFound
from cellwork.runs import frames
from cellwork.runs.kernel import Kernel
from cellwork.wire import PREFIX
from cellwork.wire.jobs import Claim, KeepRequest, Progress
from cellwork_hub.jobs.runners.asking import Asking

log = logging.getLogger("cellwork.runner")

WAIT_SECONDS = 2.0
RECONNECT_SECONDS = 1.0
GONE = "its runner was stopped, and its kernel with it; resume it on a new kernel"
MOST_FRAME = 256 * 1024 * 1024


def hold(jobs: Jobs, run: str, fence: int, kernel: Kernel, asking: Asking) -> Claim | None:
    """Keep `kernel` until the run goes on in it; returns the next attempt, or None when it is kept no more.

    In a slot that was told to leave, a run that was just resumed fails with the reason.
    """
    while True:
        ended = "" if kernel.alive() else "it died"
        asked = time.monotonic()
        try:
            said = KeepRequest(fence=fence, bytes=memory(kernel.pid), wait_seconds=WAIT_SECONDS, ended=ended)
            with asking:
                answer = jobs.keep(run, said)
                if asking.leaving and answer.claim:
                    give_back(jobs, answer.claim)
            if answer.claim:
                return answer.claim
        except (Conflict, NotFound):
            return None
        except CellworkError as error:
            log.warning("run %s, kept kernel: %s", run, error)
        if time.monotonic() - asked < 1:
            time.sleep(1)


def give_back(jobs: Jobs, claim: Claim) -> None:
    """Fail an attempt that was to go on in a kernel that ends now."""
    jobs.report(claim.run.id, Progress(fence=claim.fence, state="failed", error=GONE, first_cell=claim.first_cell))


def let_go(jobs: Jobs, run: str, fence: int) -> None:
    """Say that the kernel that was kept after attempt `fence` ends now; whatever the service knows of it already."""
    with contextlib.suppress(CellworkError):
        jobs.keep(run, KeepRequest(fence=fence, ended=GONE))


def memory(group: int) -> int:
    """Return the bytes that the process group `group` holds in memory; what it shares counts once a process."""
    import psutil

    total = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group:
                total += process.memory_info().rss
    return total


@contextlib.contextmanager
def tunnel(url: str, token: str, run: str, fence: int, kernel: Kernel) -> Iterator[None]:
    """Let the owner of `run` talk to `kernel` for as long as the context lasts."""
    over = threading.Event()
    carrier = Carrier(f"{url}{PREFIX['jobs']}/api/v1/runs/{run}/kernel/tunnel?fence={fence}", token, kernel, over)
    thread = threading.Thread(target=carrier.run, name="tunnel", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5)


class Carrier:
    """Carries frames between the service at `url` and the kernel, and connects again when the service comes back."""

    def __init__(self, url: str, token: str, kernel: Kernel, over: threading.Event) -> None:
        self.url = url.replace("http", "ws", 1)
        self.token, self.kernel, self.over = token, kernel, over

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        from websockets.exceptions import WebSocketException

        sockets = self._sockets()
        try:
            while not self.over.is_set():
                try:
                    await self._carry(sockets)
                except (OSError, WebSocketException) as error:
                    log.debug("tunnel: %s", error)
                await asyncio.sleep(RECONNECT_SECONDS)
        finally:
            for socket in sockets.values():
                socket.close(linger=0)

    def _sockets(self) -> dict[str, Any]:
        """Return sockets of our own to the kernel; shell and stdin share an identity, by which the kernel asks for input."""
        manager = self.kernel.manager
        identity = manager.session.bsession + b"-tunnel"
        shared = {
            name: getattr(manager, f"connect_{name}")(identity=identity) for name in ("shell", "control", "stdin")
        }
        return {**shared, "iopub": manager.connect_iopub()}

    async def _carry(self, sockets: dict[str, Any]) -> None:
        from websockets.asyncio.client import connect

        headers = {"Authorization": f"Bearer {self.token}"}
        async with connect(
            self.url, additional_headers=headers, subprotocols=[frames.PROTOCOL], proxy=None, max_size=MOST_FRAME  # type: ignore[list-item]
        ) as service:  # fmt: skip
            tasks = [asyncio.create_task(self._outwards(name, sockets[name], service)) for name in frames.CHANNELS]
            tasks += [asyncio.create_task(self._inwards(sockets, service)), asyncio.create_task(self._until_over())]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_over(self) -> None:
        while not self.over.is_set():
            await asyncio.sleep(0.2)

    async def _outwards(self, channel: str, socket: Any, service: Any) -> None:
        """Hand on what the kernel says; its signature ends here."""
        session = self.kernel.manager.session
        while True:
            _, parts = session.feed_identities(await socket.recv_multipart())
            await service.send(frames.pack(channel, parts[1:]))

    async def _inwards(self, sockets: dict[str, Any], service: Any) -> None:
        """Hand on what the owner says, signed with the kernel's key. A shutdown stays here: leaving ends no kept kernel."""
        session = self.kernel.manager.session
        async for frame in service:
            try:
                channel, parts = frames.unpack(frame if isinstance(frame, bytes) else frame.encode())
            except BadInput as error:
                log.warning("tunnel: %s", error)
                continue
            if channel == "iopub" or _kind(parts[0]) == "shutdown_request":
                continue
            await sockets[channel].send_multipart([b"<IDS|MSG>", session.sign(parts[:4]), *parts])


def _kind(header: bytes) -> str:
    """Return the message type that a header names; empty if it names none."""
    try:
        return msgspec.json.decode(header, type=_Header).msg_type
    except msgspec.MsgspecError:
        return ""


class _Header(msgspec.Struct):
    msg_type: str = ""
