"""The C kernel for trees: built once on this machine by its own compiler, from the source in this package, or not at all.

No compiled code is ever taken from an artifact or a download. Without a C compiler trees are computed by NumPy: the same
numbers, some times slower; `Machine.how` says which.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

FLAGS = ("-O3", "-shared", "-fPIC", "-ffp-contract=off")
BUILD_SECONDS = 60


@functools.cache
def library(folder: Path | None) -> Path | None:
    """Return the built kernel under `folder`, made if it is not there; None without a folder or a compiler."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if folder is None or compiler is None:
        return None
    source = resources.files(__package__).joinpath("trees.c").read_bytes()
    name = hashlib.sha256(source + " ".join((*FLAGS, os.uname().machine)).encode()).hexdigest()[:16]
    target = folder / f"trees-{name}.so"
    return target if target.is_file() or _built(compiler, source, target) else None


def _built(compiler: str, source: bytes, target: Path) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as temporary:
        code, made = Path(temporary) / "trees.c", Path(temporary) / "trees.so"
        code.write_bytes(source)
        try:
            subprocess.run(
                [compiler, *FLAGS, "-o", str(made), str(code), "-lm"],
                check=True,
                capture_output=True,
                timeout=BUILD_SECONDS,
            )
        except (OSError, subprocess.SubprocessError):  # a compiler that can't compile is none
            return False
        made.rename(target)
    return True


def kernel(path: Path, *, keep_lock: bool) -> ctypes._NamedFuncPointer:
    """Return the kernel of a built library. `keep_lock` keeps Python's lock, which is quicker for some hundred rows."""
    loaded = (ctypes.PyDLL if keep_lock else ctypes.CDLL)(str(path))
    function = loaded.score_trees
    size, pointer, number, flag = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double, ctypes.c_int
    function.argtypes = [pointer, size, size, *[pointer] * 4, size, number, number, flag, flag, flag, pointer]
    function.restype = ctypes.c_int
    return function
