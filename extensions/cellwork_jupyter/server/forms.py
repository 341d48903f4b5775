"""From Lab's form to our requests: the notebook and what travels with it are read from the server's folder, here and now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyter_scheduler.exceptions import InputUriError, SchedulerError

from cellwork import errors, project
from cellwork.jobs import schedule
from cellwork.runs import parameters
from cellwork.wire.jobs import Schedule

MOST_FILES, MOST_BYTES = 200, 8 << 20


def read(root: Path, uri: str, *, folder_too: bool) -> dict[str, Any]:
    """Return what a request says of the notebook at `uri` below `root`: project, notebook, content and files beside it.

    Raises
    ------
    InputUriError
        There is no such file.
    SchedulerError
        It is no notebook of ours, belongs to no project, or a file beside it can't travel; with the sentence that says so.
    """
    path = (root / uri).resolve()
    if not (path.is_file() and path.is_relative_to(root.resolve())):
        raise InputUriError(uri)
    try:
        owner = project.find(path.parent)
        parameters.read(path.read_bytes(), path.name)
        inside = path.is_relative_to(owner.folder.resolve())
        folder = owner.folder.resolve() if inside and not folder_too else path.parent
        files = schedule.beside(path, folder, owner if folder != path.parent else None)
    except errors.CellworkError as error:
        raise SchedulerError(str(error)) from None
    if folder_too:
        files |= packaged(path)
    return {"project": owner.name, "notebook": path.relative_to(folder).as_posix(), "content": path.read_text(), "files": files}  # fmt: skip


def packaged(notebook: Path) -> dict[str, str]:
    """Return the files below the notebook's folder, without hidden ones and other notebooks' checkpoints."""
    found: dict[str, str] = {}
    for path in sorted(notebook.parent.rglob("*")):
        name = path.relative_to(notebook.parent)
        if path == notebook or not path.is_file() or any(part.startswith((".", "__")) for part in name.parts):
            continue
        try:
            found[name.as_posix()] = path.read_text()
        except UnicodeDecodeError:
            raise SchedulerError(f"file {name} is not text; runs take along text files, data is read from the platform: ingest it") from None  # fmt: skip
        if len(found) > MOST_FILES or sum(map(len, found.values())) > MOST_BYTES:
            raise SchedulerError(f"the folder of {notebook.name} has over {MOST_FILES} files or {MOST_BYTES >> 20} MB; run it without its folder")  # fmt: skip
    return found


def values(content: str, given: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the parameters of the form, which are text there, as what the notebook declares them to be."""
    known = parameters.declared(parameters.read(content))
    return {name: parameters.from_text(text, known.get(name)) for name, text in (given or {}).items()}


def plan(cron: str | None, timezone: str | None) -> Schedule:
    return Schedule(cron=cron or "", timezone=timezone or "UTC")
