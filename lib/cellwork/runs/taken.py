"""Files that another's program wrote, opened for reading: plain files only, and only those that lie where they seem to.

A name is looked up in a folder that is open already, and no link is followed: whatever the program puts in a file's place
meanwhile, nothing outside the folder is read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def files(folder: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """Yield each plain file below `folder`, by its path from there and open until the next; nothing if `folder` is no folder itself."""
    if not folder.is_dir():
        return
    for root, folders, names, opened in os.fwalk(folder):
        folders.sort()
        for name in sorted(names):
            if file := _open(name, opened):
                with file:
                    yield Path(root).relative_to(folder) / name, file


def _open(name: str, folder: int) -> IO[bytes] | None:
    """Return the file `name` in the open `folder`; None for a link, a pipe, a device, and for what is gone."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    return None
