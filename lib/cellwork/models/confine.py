"""A model of the allowed classes alone opens no file of the platform: some of those classes open what a row, or their state, names.

`CountVectorizer(input="filename")` does, and so may a class that is used as a function. The types of such a model say nothing of it, and its
scores would tell what stands in the file. Code that a project trusts may open what it wants.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

SYSTEM = ("/usr", "/lib", "/lib64", "/sys", "/dev", "/etc/localtime", "/etc/timezone", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat")  # fmt: skip
"""What Python's own libraries may look at while they compute."""


def confine(folder: Path) -> None:
    """Let this process open only what is in the model's `folder`, of Python or of the system from now on; it cannot be undone.

    Anything else raises PermissionError where it is opened. What is open already stays open.
    """
    own: list[str | Path] = [
        folder,
        sys.prefix,
        sys.base_prefix,
        sys.exec_prefix,
        *(path for path in sys.path if path),
        *SYSTEM,
    ]
    allowed = tuple(f"{os.path.realpath(path).rstrip('/')}/" for path in own)

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(path := arguments[0], str | bytes):
            real = os.path.realpath(os.fsdecode(path))
            if not f"{real}/".startswith(allowed):
                raise PermissionError(errno.EACCES, "a model opens no files but its own", os.fsdecode(path))

    sys.addaudithook(look)
