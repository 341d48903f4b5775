"""What published pages last showed, in files: kept, bounded, found again, ended.

A folder a dashboard (`Home.views`), a file a view: a line of JSON that says what was asked and when it was whole, then the page, compressed.
The platform service writes and ends them (`platform.dashboard_views`), the hub reads them when a page's server does not
run (`config.pages`); no user's server reads the folder. A file appears whole, so that a killed writer leaves the one before or none. At most
`MOST_VIEWS` views and `MOST_KEPT` bytes a dashboard: what was made first goes first.
"""

from __future__ import annotations

import hashlib
import shutil
import time
import zlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from cellwork import files
from cellwork.wire import Struct

MOST_VIEWS, MOST_KEPT = 32, 32 * 1024 * 1024
ENDING = ".view"
PART_SECONDS = 3600.0


class About(Struct):
    """What a view shows: the page and query that were asked for, and when it was whole."""

    asked: str
    made: datetime


class View(Struct):
    about: About
    page: bytes


def keep(folder: Path, asked: str, made: datetime, page: bytes) -> None:
    """Keep `page` as what `asked` last showed; a page too large for `MOST_KEPT` is not kept, nor is what it replaces."""
    content = msgspec.json.encode(About(asked=asked, made=made)) + b"\n" + zlib.compress(page, 1)
    path = _path(folder, asked)
    if len(content) > MOST_KEPT:
        path.unlink(missing_ok=True)
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write(path, content, mode=0o600)
    _make_room(folder, path)


def find(folder: Path, asked: str) -> View | None:
    """Return what `asked` last showed, if it is kept."""
    return _read(_path(folder, asked))


def front(folder: Path) -> About | None:
    """Return what is known of the view that was made last of those that nothing was asked of, if there is one."""
    found = [about for path in folder.glob(f"*{ENDING}") if (about := _about(path)) and about.asked.endswith("?")]
    return max(found, key=lambda about: about.made, default=None)


def about(folder: Path, asked: str) -> About | None:
    return _about(_path(folder, asked))


def forget(folder: Path) -> None:
    """End all that is kept in `folder`; twice is once."""
    shutil.rmtree(folder, ignore_errors=True)


def _path(folder: Path, asked: str) -> Path:
    return folder / f"{hashlib.sha256(asked.encode()).hexdigest()}{ENDING}"


def _make_room(folder: Path, newest: Path) -> None:
    kept, room = 1, MOST_KEPT - newest.stat().st_size
    for _, size, path in sorted(_ages(folder, newest), reverse=True):
        kept, room = kept + 1, room - size
        if kept > MOST_VIEWS or room < 0:
            path.unlink(missing_ok=True)
    for path in folder.glob(".*"):  # of a writer that was killed
        if time.time() - path.stat().st_mtime > PART_SECONDS:
            path.unlink(missing_ok=True)


def _ages(folder: Path, newest: Path) -> Iterator[tuple[int, int, Path]]:
    for path in folder.glob(f"*{ENDING}"):
        if path != newest:
            found = path.stat()
            yield found.st_mtime_ns, found.st_size, path


def _about(path: Path) -> About | None:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.readline(), type=About)
    except (OSError, msgspec.MsgspecError):  # none, or of another time
        return None


def _read(path: Path) -> View | None:
    try:
        head, _, packed = path.read_bytes().partition(b"\n")
        return View(about=msgspec.json.decode(head, type=About), page=zlib.decompress(packed))
    except (OSError, msgspec.MsgspecError, zlib.error):
        return None
