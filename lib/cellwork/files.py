"""Files appear whole: write beside, fsync, rename. Locks are the kernel's, so a killed holder frees them."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cellwork.errors import Conflict, Refused, Unavailable


def write(path: Path, data: bytes | str, *, mode: int = 0o644, sync: bool = True) -> None:
    """Replace `path` by `data` atomically; a reader sees the old or the new content, never a part.

    Without `sync` a power loss may leave the old content, or none; for what is written often and can be made again.
    """
    with _beside(path, data, mode, sync) as temporary:
        temporary.replace(path)


def write_once(path: Path, data: bytes | str, *, mode: int = 0o644) -> None:
    """Write `data` unless the file is there; of several who try at once one is the first, and the others change nothing."""
    with _beside(path, data, mode, True) as temporary, suppress(FileExistsError):
        os.link(temporary, path)


@contextmanager
def _beside(path: Path, data: bytes | str, mode: int, sync: bool) -> Iterator[Path]:
    """Yield a whole file beside `path` with `data`; what is left of it afterwards goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.chmod(mode)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Return when a closed file, or the names in a folder, survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_secret(path: Path) -> str:
    """Return the secret in `path`; a file that others may read is refused."""
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise Refused("secret file", path, f"is open to others (mode {mode:o})", f"run: chmod 600 {path}")
    return path.read_text().strip()


FULL = ("No space left on device", "database or disk is full", "Disk quota exceeded")
"""What the libraries that write for us say when the disk is full; each has an exception of its own."""


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Turn what is raised when the disk of `folder` is full into Unavailable; all else passes."""
    try:
        yield
    except Exception as error:
        if not any(words in str(error) for words in FULL):
            raise
        way_out = "free some space, then send it again: nothing of it was published"
        raise Unavailable("disk", folder, "is full", way_out) from error


@contextmanager
def locked(path: Path, holder: str) -> Iterator[None]:
    """Hold the lock `path`, or raise Conflict at once; `holder` says for whom in the other's message."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            other = file.read().strip() or "another process"
            raise Conflict("lock", path, f"is held by {other}", "wait for it, or stop it with: cellwork down") from None
        file.seek(0)
        file.truncate()
        file.write(f"{holder} (pid {os.getpid()})")
        file.flush()
        yield
