"""Execute a notebook: check its parameters, give it a fresh kernel, run its cells by papermill, keep what it printed.

Whatever happens, the executed notebook so far lies at `output`; how the run ended is told by the return or the error, never
read from the notebook.
"""

from __future__ import annotations

import logging
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cellwork.errors import BadInput, CellworkError, NotFound
from cellwork.runs import parameters as names
from cellwork.runs.kernel import Kernel, allowed

if TYPE_CHECKING:
    from cellwork.runs.checkpoints import Checkpoints
    from cellwork.runs.plugin import Manager
    from cellwork.secrets import Masker

Progress = Callable[[int, int], None]
"""Gets the number of the code cell that starts, and how many there are."""


ANSI = re.compile(r"\x1b\[[0-9;]*m")


class RunFailed(CellworkError):
    """A cell raised, the kernel died, or the time was up; `cell` says where, `traceback` what the cell showed."""

    cell: int = 0
    cells: int = 0
    traceback: str = ""


def execute(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    progress: Progress | None = None,
    timeout: float = math.inf,
    cell_timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    kernel_name: str = "python3",
    kernel: Kernel | None = None,
    report_mode: bool = False,
    spare: bool = False,
    checkpoints: Checkpoints | None = None,
    masker: Masker | None = None,
) -> None:
    """Run the cells of `notebook` with `parameters` and leave the executed notebook at `output`.

    Parameters
    ----------
    timeout, cell_timeout : seconds
        For the whole run, its kernel's start aside, and for one cell.
    environment
        What the kernel sees besides PATH, HOME and the like.
    cwd
        Where the kernel works; default: the notebook's folder.
    kernel
        One that was started ahead, and that the caller ends; else a fresh `kernel_name` is started and ended here.
    report_mode
        Hide the input of the cells in the output.
    spare
        At a deadline interrupt the given kernel, and kill it only if it does not give in: it may be kept.
    checkpoints
        Where cells tagged `checkpoint` save what the kernel holds; without it the tag says nothing.
    masker
        Hides secrets in the outputs that are saved, and in the error that is raised.

    Raises
    ------
    NotFound, BadInput
        There is no such notebook, a parameter is not one of its, or the output can't be written; nothing was started.
    RunFailed
        A cell raised, the kernel died, or the time was up.
    """
    content = _content(notebook)
    values = names.check(content, parameters or {}, notebook.name)
    _check_output(output)
    given, folder = dict(environment or {}), (cwd or notebook.parent).absolute()
    with tempfile.TemporaryDirectory(prefix="cellwork-") as sockets:
        used = kernel
        try:
            if used is None:
                used = Kernel.start(Path(sockets), {**allowed(os.environ), **given}, name=kernel_name, cwd=folder)
            else:
                used.prepare(given, folder)
            _papermill(
                notebook, output, values, used, progress=progress, timeout=timeout, cell_timeout=cell_timeout, report_mode=report_mode, spare=spare, checkpoints=checkpoints, masker=masker
            )  # fmt: skip
        finally:
            if used and used is not kernel:
                used.stop(gently=3)


def resume(
    page: Mapping[str, Any], output: Path, kernel: Kernel, *, first: int, name: str, progress: Progress | None = None, timeout: float = math.inf,
    cell_timeout: float | None = None, environment: Mapping[str, str] | None = None, spare: bool = False, checkpoints: Checkpoints | None = None,
    cwd: Path | None = None, begin: Callable[[], None] | None = None, masker: Masker | None = None,
) -> None:  # fmt: skip
    """Go on with the notebook `page` (made by `runs.resume.merge`) in the `kernel` it ran in, from its code cell number `first`.

    Or in a new kernel, which `begin` then fills from a checkpoint, with `cwd` as its folder. The other arguments, and what is
    raised, as for `execute`; `name` is the notebook's.
    """
    import nbformat
    from papermill.exceptions import PapermillExecutionError
    from papermill.execute import raise_for_execution_errors

    from cellwork.runs.plugin import Manager, run_cells

    kernel.drain()
    kernel.prepare(dict(environment or {}), cwd)
    if begin:
        begin()
    nb = nbformat.reads(msgspec.json.encode(page).decode(), as_version=4)
    nb.metadata.setdefault("papermill", nbformat.from_dict({"input_path": name}))
    manager = Manager(nb, output, progress, first, masker)
    run_cells(manager, kernel, timeout=timeout, cell_timeout=cell_timeout, spare=spare, checkpoints=checkpoints)
    try:
        raise_for_execution_errors(manager.nb, None)
    except PapermillExecutionError as error:
        manager.save()
        raise _failure(error, manager, name) from None


def _content(notebook: Path) -> dict[str, Any]:
    try:
        return names.read(notebook.read_bytes(), notebook.name)
    except OSError as error:
        raise NotFound("notebook", notebook, f"can't be read ({error.strerror})", "check its path") from None


def _check_output(output: Path) -> None:
    """Raise BadInput unless a file can be written at `output`; an hour later would be late to hear of it."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output.parent).close()
        reason = "it is a folder" if output.is_dir() else ""
    except (FileExistsError, NotADirectoryError):
        reason = "its folder is a file"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise BadInput("output", output, f"can't be written ({reason})", "name a file in a folder you may write in")


def _papermill(notebook: Path, output: Path, values: dict[str, Any], kernel: Kernel, **options: Any) -> None:
    import papermill
    from papermill.engines import papermill_engines
    from papermill.exceptions import PapermillExecutionError

    from cellwork.runs.plugin import CellworkEngine

    kept: list[Manager] = []
    papermill_engines.register("cellwork", CellworkEngine)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it warns of is told by our errors
    literal = str(notebook).replace("{", "{{").replace("}", "}}")  # papermill reads paths as templates
    try:
        papermill.execute_notebook(
            literal, None, values, engine_name="cellwork", kernel_name=kernel.manager.kernel_name, language="python",
            progress_bar=False, kernel=kernel, keep=kept.append, save_to=output, **options,
        )  # fmt: skip
    except PapermillExecutionError as error:
        kept[0].save()  # with papermill's banner, which it puts in after the engine
        raise _failure(error, kept[0], notebook.name) from None


def _failure(error: Any, manager: Manager, name: str) -> RunFailed:
    from cellwork.runs.plugin import DIED, OUT_OF_TIME

    number, count = manager.code_cells.index(error.cell_index) + 1, len(manager.code_cells)
    value, verdict = f"{error.ename}: {error.evalue}", "was raised"
    if error.ename in (DIED, OUT_OF_TIME):
        value, verdict = "", error.evalue
    value, verdict = manager.masker.text(value), manager.masker.text(verdict)
    failed = RunFailed(f"cell {number} of {count} of {name}", value, verdict, "look at the executed notebook")
    failed.cell, failed.cells = number, count
    failed.traceback = manager.masker.text(ANSI.sub("", "\n".join(error.traceback)))
    return failed
