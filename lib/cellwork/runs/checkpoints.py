"""Checkpoints of a run: cells tagged `checkpoint` save what the kernel holds, and a later attempt starts from the last one that fits.

A checkpoint fits if the parameters and every cell up to it are as they were (its `key` says so), and if no cell below uses a
name that could not be saved; a function that would use one could not be either. It is one archive: what `runs.checkpoint` wrote,
the page so far, and the files the run had made in its folder. What the kernel wrote is another's: it is copied as `runs.taken`
does, and read by nobody but a kernel.
"""

from __future__ import annotations

import ast
import hashlib
import io
import os
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from cellwork.errors import CellworkError, Refused
from cellwork.runs import resume, taken
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
    read |= {n.target.id for n in ast.walk(tree) if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name)}
    return read | set(re.findall(r"\w+", "\n".join(magics)))


class TooLarge(Exception):
    """An archive would be larger than it may be."""


class Checkpoints:
    """Saves checkpoints while a notebook runs.

    `folder` is for them alone, where the kernel can write; `work` is where the run works.
    """

    def __init__(self, folder: Path, work: Path, parameters: Mapping[str, Any], send: Send) -> None:
        self.folder, self.work, self.parameters, self.send = folder, work, parameters, send
        self.before = {path: _stamp(about) for path, about in _found(work)}

    def save(self, kernel: Kernel, nb: Any, index: int) -> str:
        """Save what `kernel` holds after the cell `index` of `nb`; returns a line about it. A checkpoint that fails fails no run."""
        started = time.monotonic()
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            kernel.silently(CALL.format(what="save", folder=str(self.folder)), SAVE_SECONDS)  # fmt: skip
            data, saved, left = self._packed(nb)
            done = sum(resume.counted(cell) for cell in nb.cells[: index + 1])
            plain = sum(resume.INJECTED not in resume.tags(c) and resume.counted(c) for c in nb.cells[: index + 1])
            about = Checkpoint(
                key=keys({"cells": nb.cells}, self.parameters)[plain - 1], cell=done, missing=saved.missing
            )
            self.send(about, data)
        except TooLarge:
            return (
                f"checkpoint: what the kernel holds is over the limit of {MOST_BYTES / 1e6:.0f} MB; nothing was saved"
            )
        except (CellworkError, OSError, RuntimeError, msgspec.MsgspecError) as error:
            return f"checkpoint: nothing was saved: {error}"
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        lost = [f"{name} ({why.partition(':')[0]})" for name, why in saved.missing.items()] + left
        seconds = time.monotonic() - started
        return f"checkpoint: {saved.names} names, {len(data) / 1e6:.1f} MB, {seconds:.1f} s" + (f"; not saved: {', '.join(lost)}" if lost else "")  # fmt: skip

    def _packed(self, nb: Any) -> tuple[bytes, Saved, list[str]]:
        """Return the archive, what the kernel says of its state, and the files that were too large for it."""
        stream, saved = io.BytesIO(), b""
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for path, file in taken.files(self.folder):
                if str(path) == "saved.json":
                    saved = file.read(MOST_BYTES)
                    file.seek(0)
                _add(archive, str(path), file, os.fstat(file.fileno()).st_size)
            left = self._take_files(archive)
            page = msgspec.json.encode(nb)
            _add(archive, "page.ipynb", io.BytesIO(page), len(page))
        return stream.getvalue(), msgspec.json.decode(saved, type=Saved), left

    def _take_files(self, archive: tarfile.TarFile) -> list[str]:
        """Put the files that the run has made or changed in its folder into `archive`; returns those that are too large."""
        left, total = [], 0
        for path, file in taken.files(self.work):
            about = os.fstat(file.fileno())
            if "__pycache__" in path.parts or self.before.get(path) == _stamp(about):
                continue
            total += about.st_size
            if total > MOST_FILE_BYTES:
                left.append(f"file {path}")
            else:
                _add(archive, f"files/{path}", file, about.st_size)
        return left


def _add(archive: tarfile.TarFile, name: str, file: IO[bytes], size: int) -> None:
    if archive.offset + size > MOST_BYTES:
        raise TooLarge
    member = tarfile.TarInfo(name)
    member.size = size
    archive.addfile(member, file)


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


def _found(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path, file in taken.files(folder):
        yield path, os.fstat(file.fileno())


def _stamp(about: os.stat_result) -> tuple[int, int]:
    return about.st_mtime_ns, about.st_size
