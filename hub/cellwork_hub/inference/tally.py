"""What all processes of the inference service have counted, told by whichever is asked; and how near to its limit the service is.

Each process writes what it has counted to a file of its own once a second, locked while it lives. Who is asked adds the others' files to
its own numbers; files of processes that are gone count on, and the next process that starts lays them together, so that a counter never
falls. Saturation is the share of a processor that the event loop uses, or of the queue that waits, whichever is more: at 1 requests wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from cellwork import files, ids
from cellwork.errors import Conflict
from cellwork_hub.gauges import Gauge

SECONDS = 1.0
SMOOTH = 0.3
"""The weight of the newest second."""
HEAD = struct.Struct("<II")
PAST = "past"
Key = tuple[str, str, int]
"""Method, path, status."""


class Counted(msgspec.Struct, array_like=True):
    counts: list[tuple[Key, int]] = []
    seconds: list[tuple[tuple[str, str], float]] = []
    saturation: float = 0.0
    delay: float = 0.0
    """How late the event loop came to a timer, in seconds."""
    waiting: int = 0
    """Rows of requests that wait."""


_decode = msgspec.msgpack.Decoder(Counted).decode
_encode = msgspec.msgpack.Encoder().encode


class Tally:
    """Of this process; `counts` and `seconds` are the service's own, `waiting` says how many rows wait, of `most`."""

    def __init__(
        self, folder: Path, counts: Counter[Key], seconds: dict[tuple[str, str], float], waiting: Callable[[], int], most: int
    ) -> None:  # fmt: skip
        self.folder, self.counts, self.seconds, self.waiting, self.most = folder, counts, seconds, waiting, most
        self.saturation = self.delay = 0.0
        self._path, self._file = folder / f"{ids.new('req').removeprefix('req_')}.counts", -1

    def open(self) -> None:
        """Begin this process's file, and lay those of processes that are gone together."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        with contextlib.suppress(Conflict), files.locked(self.folder / "lock", "another process"):
            self._lay_together()

    async def keep(self) -> None:
        """Look at this process and write what it has counted, every second."""
        used, wall = time.thread_time(), time.perf_counter()
        while True:
            await asyncio.sleep(SECONDS)
            used_now, wall_now = time.thread_time(), time.perf_counter()
            passed = wall_now - wall
            busy = max((used_now - used) / passed, self.waiting() / self.most)
            self.saturation += SMOOTH * (busy - self.saturation)
            self.delay = passed - SECONDS
            used, wall = used_now, wall_now
            self.write()

    def write(self) -> None:
        body = _encode(self.own())
        os.pwrite(self._file, HEAD.pack(len(body), zlib.crc32(body)) + body, 0)

    def close(self) -> None:
        if self._file >= 0:
            self.write()
            os.close(self._file)
            self._file = -1

    def own(self) -> Counted:
        return Counted(
            list(self.counts.items()), list(self.seconds.items()), self.saturation, self.delay, self.waiting()
        )

    def totals(self) -> tuple[Counter[Key], dict[tuple[str, str], float]]:
        """Return what all processes have counted, those that are gone too."""
        return _sum([self.own(), *(found for _, found, _ in self._others())])

    def gauges(self) -> list[Gauge]:
        there = [self.own(), *(found for _, found, lives in self._others() if lives)]
        return [
            ("cellwork_processes", {}, len(there)),
            ("cellwork_saturation", {}, sum(each.saturation for each in there) / len(there)),
            ("cellwork_loop_delay_seconds", {}, max(each.delay for each in there)),
            ("cellwork_waiting_rows", {}, sum(each.waiting for each in there)),
        ]

    def _others(self) -> list[tuple[Path, Counted, bool]]:
        """Return each other process's file, what it says, and whether the process lives."""
        found = []
        for path in sorted(self.folder.glob("*.counts")):
            if path != self._path and (said := _read(path)) is not None:
                found.append((path, said, path.stem != PAST and _is_locked(path)))
        return found

    def _lay_together(self) -> None:
        gone = [(path, said) for path, said, lives in self._others() if not lives]
        counts, seconds = _sum([said for _, said in gone])
        body = _encode(Counted(list(counts.items()), list(seconds.items())))
        files.write(self.folder / f"{PAST}.counts", HEAD.pack(len(body), zlib.crc32(body)) + body, sync=False)
        for path, _ in gone:
            if path.stem != PAST:
                path.unlink(missing_ok=True)


def _sum(parts: list[Counted]) -> tuple[Counter[Key], dict[tuple[str, str], float]]:
    counts, seconds = Counter[Key](), dict[tuple[str, str], float]()
    for part in parts:
        for key, number in part.counts:
            counts[key] += number
        for name, taken in part.seconds:
            seconds[name] = seconds.get(name, 0.0) + taken
    return counts, seconds


def _read(path: Path) -> Counted | None:
    """Return what a file says; one that is just written is read again."""
    for _ in range(3):
        with contextlib.suppress(FileNotFoundError):
            content = path.read_bytes()
            if len(content) < HEAD.size:
                return None
            length, sum_ = HEAD.unpack(content[: HEAD.size])
            body = content[HEAD.size : HEAD.size + length]
            if zlib.crc32(body) == sum_:
                return _decode(body)
    return None


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
