"""Checkpoints of a run: cells tagged `checkpoint` save what the kernel holds, and a later attempt starts from the last one that fits.

A checkpoint fits if the parameters and every cell up to it are as they were (its `key` says so), and if no cell below uses a
name that could not be saved. It is one archive: what `runs.checkpoint` wrote, the page so far, and the files the run had made
in its folder.
"""

from __future__ import annotations

import ast
import hashlib
import io
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cellwork.errors import CellworkError, Refused
from cellwork.runs import resume
from cellwork.runs.checkpoint import Saved
from cellwork.runs.kernel import Kernel
from cellwork.wire.jobs import Checkpoint

TAG = "checkpoint"
MOST_FILE_BYTES = 64 << 20
MOST_BYTES = 200 << 20
SAVE_SECONDS = 600.0
CALL = "__import__('cellwork.runs.checkpoint', fromlist=['x']).{what}({folder!r}, get_ipython().user_ns)"
"""Leaves no name behind in the notebook's."""

Send = Callable[[Checkpoint, bytes], None]


def keys(notebook: Mapping[str, Any], parameters: Mapping[str, Any]) -> list[str]:
    """Return for each code cell of `notebook` (but the injected parameters) what stands for all that ran up to it."""
    digest = hashlib.sha256(msgspec.json.encode(parameters, order="sorted"))
    found = []
    for cell in notebook["cells"]:
        if resume.counted(cell) and resume.INJECTED not in resume.tags(cell):
            digest.update(b"\0" + resume.source(cell).encode())
            found.append(digest.hexdigest())
    return found


def choose(
    notebook: Mapping[str, Any], parameters: Mapping[str, Any], there: Sequence[Checkpoint]
) -> Checkpoint | None:
    """Return the last checkpoint of `there` from which `notebook` can go on, if there is one; below it there is a cell to run."""
    known = keys(notebook, parameters)
    cells = [c for c in notebook["cells"] if resume.counted(c) and resume.INJECTED not in resume.tags(c)]
    by_key = {checkpoint.key: checkpoint for checkpoint in there}
    for at in range(len(known) - 2, -1, -1):
        found = by_key.get(known[at])
        if found and not any(found.missing.keys() & used(resume.source(cell)) for cell in cells[at + 1 :]):
            return found
    return None


def used(source: str) -> set[str]:
    """Return the names that `source` reads; all words in it if it is not plain Python."""
    magics = [line for line in source.splitlines() if line.lstrip().startswith(("%", "!"))]
    plain = "\n".join(line for line in source.splitlines() if line not in magics)
    try:
        tree = ast.parse(plain)
    except SyntaxError:
        return set(re.findall(r"\w+", source))
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Store)}
    return read | set(re.findall(r"\w+", "\n".join(magics)))


class Checkpoints:
    """Saves checkpoints while a notebook runs. `folder` is for them alone; `work` is where the run works."""

    def __init__(self, folder: Path, work: Path, parameters: Mapping[str, Any], send: Send) -> None:
        self.folder, self.work, self.parameters, self.send = folder, work, parameters, send
        self.before = {path: _stamp(path) for path in _files(work)}

    def save(self, kernel: Kernel, nb: Any, index: int) -> str:
        """Save what `kernel` holds after the cell `index` of `nb`; returns a line about it. A checkpoint that fails fails no run."""
        started = time.monotonic()
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            kernel.silently(CALL.format(what="save", folder=str(self.folder)), SAVE_SECONDS)  # fmt: skip
            saved = msgspec.json.decode((self.folder / "saved.json").read_bytes(), type=Saved)
            left = self._take_files()
            done = sum(resume.counted(cell) for cell in nb.cells[: index + 1])
            plain = sum(resume.INJECTED not in resume.tags(c) and resume.counted(c) for c in nb.cells[: index + 1])
            about = Checkpoint(
                key=keys({"cells": nb.cells}, self.parameters)[plain - 1], cell=done, missing=saved.missing
            )
            (self.folder / "page.ipynb").write_bytes(msgspec.json.encode(nb))
            data = _packed(self.folder)
            if len(data) > MOST_BYTES:
                return f"checkpoint: {len(data) / 1e6:.0f} MB are over the limit of {MOST_BYTES / 1e6:.0f} MB; nothing was saved"
            self.send(about, data)
        except (CellworkError, OSError, RuntimeError) as error:
            return f"checkpoint: nothing was saved: {error}"
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        lost = [f"{name} ({why.partition(':')[0]})" for name, why in saved.missing.items()] + left
        seconds = time.monotonic() - started
        return f"checkpoint: {saved.names} names, {len(data) / 1e6:.1f} MB, {seconds:.1f} s" + (f"; not saved: {', '.join(lost)}" if lost else "")  # fmt: skip

    def _take_files(self) -> list[str]:
        """Copy the files that the run has made or changed in its folder; returns those that are too large."""
        left, total = [], 0
        for path in _files(self.work):
            if self.before.get(path) == _stamp(path):
                continue
            total += path.stat().st_size
            relative = path.relative_to(self.work)
            if total > MOST_FILE_BYTES:
                left.append(f"file {relative}")
                continue
            target = self.folder / "files" / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        return left


def unpack(data: bytes, folder: Path, work: Path) -> dict[str, Any]:
    """Lay the archive `data` out in `folder` and its files in `work`; returns the page as it stood.

    Raises
    ------
    Refused
        A member is neither file nor folder, or would be written elsewhere.
    """
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:  # `filter="data"` came with Python 3.11.4
            inside = (folder / member.name).resolve().is_relative_to(folder.resolve())
            if not inside or not (member.isfile() or member.isdir()):
                raise Refused("checkpoint", member.name, "is no file of its own", "run from the first cell")
            archive.extract(member, folder, set_attrs=False)
    if (folder / "files").is_dir():
        shutil.copytree(folder / "files", work, dirs_exist_ok=True)
    page: dict[str, Any] = msgspec.json.decode((folder / "page.ipynb").read_bytes())
    return page


def put_back(kernel: Kernel, folder: Path) -> None:
    """Put what the checkpoint in `folder` holds into `kernel`."""
    kernel.silently(CALL.format(what="restore", folder=str(folder)), SAVE_SECONDS)  # fmt: skip


def _packed(folder: Path) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.add(folder, arcname=".")
    return stream.getvalue()


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink() and "__pycache__" not in path.parts]  # fmt: skip


def _stamp(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_mtime_ns, about.st_size
