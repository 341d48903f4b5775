"""The prediction log's quick half: each process appends what a turn answered to a file of its own, before it answers.

A frame is length, CRC-32 and the turn; it is written by one call, so it survives a killed process, and one that was torn was never
acknowledged and ends the file. `log.PredictionLog` takes frames over into its table, each once (the table keeps how far it has
read, and what lies before may be zeros: `blank`); a file whose writer is gone, as its freed lock says, and that was read to its end is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from cellwork import ids
from cellwork.errors import Unavailable
from cellwork.wire.evaluations import VersionRef

FRAME = struct.Struct("<II")
BLANK_BYTES = 1024**2
BEGUN_SECONDS = 60.0
"""A file that was begun is locked and listed by then, if its writer lives."""
MOST_BYTES = 64 * 1024**2
"""A file is closed and the next begun when it has this size."""


class Turn(msgspec.Struct, array_like=True):
    """Predictions of one version that were answered together; the lists have one entry each, `values` in the order of `columns`."""

    endpoint: str
    revision: int
    version: VersionRef
    deployment: str
    route: str
    columns: list[str]
    at: int
    """Microseconds since 1970."""
    ids: list[str]
    values: list[tuple[Any, ...]]
    scores: list[float]
    callers: list[str]
    latencies: list[int]
    """Microseconds."""
    looked_up: dict[int, LookedUp] = {}
    """By place: what came from the online store, where something did."""
    defaults: dict[int, list[str]] = {}
    """By place: the features that had no value, where there are some."""
    reason: str = ""
    reasons: list[str] = []
    """By place, where each has its own."""
    units: list[str] = []
    """By place, where some were named."""


class LookedUp(msgspec.Struct, array_like=True):
    entities: dict[str, Any]
    events: dict[str, int]
    """View -> microseconds since 1970."""
    batches: dict[str, str]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Turn).decode


class Writer:
    """Appends to files under `folder`. One thread."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        self._file, self._size = -1, 0

    def append(self, turn: Turn) -> None:
        """Write `turn`; when this returns it survives the end of this process. Raises Unavailable if it can't be written."""
        body = _encode(turn)
        frame = FRAME.pack(len(body), zlib.crc32(body)) + body
        try:
            if self._file < 0 or self._size > self.most_bytes:
                self._next()
            written = os.write(self._file, frame)
        except OSError as error:
            raise self._failed(error.strerror or str(error)) from None
        if written != len(frame):
            try:
                os.ftruncate(self._file, self._size)
            except OSError:  # nothing may follow a torn frame
                self.close()
            raise self._failed("the disk is full")
        self._size += written

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _next(self) -> None:
        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{ids.new('req').removeprefix('req_')}.log"
        begun = path.with_suffix(".begun")
        file = os.open(begun, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            begun.rename(path)  # listed only now: a free lock of what is listed says that its writer is gone
        except BaseException:
            os.close(file)
            begun.unlink(missing_ok=True)
            raise
        self._file, self._size = file, 0

    def _failed(self, why: str) -> Unavailable:
        return Unavailable("prediction log", "", f"can't be written ({why})", "nothing was answered; look at the disk")


def tidy(folder: Path) -> None:
    """Remove what writers that are gone had begun and never listed; there is nothing in it."""
    for path in folder.glob("*.begun"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > BEGUN_SECONDS and is_finished(path):
                path.unlink()


def listing(folder: Path) -> list[Path]:
    """Return the segments, oldest first."""
    return sorted(folder.glob("*.log"))


def turns(path: Path, offset: int) -> Iterator[tuple[Turn, int]]:
    """Yield each whole turn from `offset` on, with the offset behind it."""
    with path.open("rb") as file:
        file.seek(offset)
        while len(head := file.read(FRAME.size)) == FRAME.size:
            length, sum_ = FRAME.unpack(head)
            body = file.read(length)
            if not length or len(body) != length or zlib.crc32(body) != sum_:
                return
            offset += FRAME.size + length
            yield _decode(body), offset


def blank(path: Path, until: int) -> None:
    """Overwrite what stands before `until`, which nobody reads any more, with zeros; a segment that is gone is none."""
    try:
        with path.open("rb+") as file:
            for start in range(0, until, BLANK_BYTES):
                file.write(bytes(min(BLANK_BYTES, until - start)))
            file.flush()
            os.fsync(file.fileno())
    except FileNotFoundError:
        return


def is_finished(path: Path) -> bool:
    """Say whether nobody writes the segment any more."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
