"""The papermill engine `cellwork`, also for papermill's own command: ``papermill --engine cellwork in.ipynb out.ipynb``.

It names the cell in each execute request, saves the notebook as a whole file while it runs, ends a run at its deadline, and
turns a dead kernel and a deadline into errors in the notebook, so that papermill's banner stands above them too. A kernel that
may be kept (`spare`) is interrupted at its deadline and killed only if it does not give in. It is papermill's by nature and
imports it; nothing else of the library imports this module at its top.
"""

from __future__ import annotations

import copy
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, NotebookExecutionManager
from papermill.log import logger

from cellwork import files
from cellwork.runs.checkpoints import TAG, Checkpoints
from cellwork.runs.kernel import Kernel
from cellwork.runs.resume import BANNER
from cellwork.secrets import Masker

OUT_OF_TIME, DIED = "OutOfTime", "KernelDied"
AUTOSAVE_SECONDS = 2
GIVE_IN_SECONDS = 5.0


class Manager(NotebookExecutionManager):  # type: ignore[misc]
    """Papermill's book-keeping, with whole files and our progress. `progress` gets the code cell's number and how many there are.

    `first` is the number of the code cell to begin with; what stands above it was executed before and stays as it is.
    """

    def __init__(
        self, nb: Any, output: Path | None, progress: Callable[[int, int], None] | None, first: int = 1, masker: Masker | None = None
    ) -> None:  # fmt: skip
        self._between = False
        super().__init__(nb, None, progress_bar=False, autosave_cell_every=AUTOSAVE_SECONDS)
        self.output, self.progress, self.first, self.masker = output, progress, first, masker or Masker([])
        self.code_cells = [k for k, cell in enumerate(nb.cells) if cell.cell_type == "code" and cell.source.strip()]

    def save(self, **_: Any) -> None:
        if self.output and not self._between:
            files.write(self.output, nbformat.writes(self._masked()), sync=False)
        self.last_save_time = self.now()

    def _masked(self) -> Any:
        """Return the notebook as it may be seen; what runs on keeps the outputs it has, for a value may be whole only later."""
        if not self.masker:
            return self.nb
        shown = copy.deepcopy(self.nb)
        for cell in shown.cells:
            self.masker.cell(cell)
            if BANNER in cell.metadata.get("tags", []):
                cell.source = self.masker.text(cell.source)
        return shown

    def notebook_start(self, **_: Any) -> None:
        about = self.nb.metadata.papermill
        about.input_path = Path(str(about.get("input_path") or "")).name  # names only: the folder is one machine's
        about.output_path = self.output.name if self.output else ""
        done = [(cell, cell.metadata.get("papermill"), cell.execution_count, cell.outputs) for cell in self._done()]
        super().notebook_start()
        for cell, times, count, outputs in done:
            cell.execution_count, cell.outputs = count, outputs
            cell.metadata.papermill = times or cell.metadata.papermill
        if done:
            self.save()

    def cell_complete(self, cell: Any, cell_index: int | None = None, **options: Any) -> None:
        """Papermill's, without its save: the start of the next cell, or the end, saves in the same moment."""
        self._between = True
        try:
            super().cell_complete(cell, cell_index, **options)
        finally:
            self._between = False

    def start_index(self) -> int:
        """Return the index of the cell to begin with."""
        return self.code_cells[self.first - 1] if self.first > 1 else 0

    def _done(self) -> list[Any]:
        return [self.nb.cells[index] for index in self.code_cells[: self.first - 1]]

    def cell_start(self, cell: Any, cell_index: int | None = None, **_: Any) -> None:
        super().cell_start(cell, cell_index)
        if self.progress and cell_index in self.code_cells:
            self.progress(self.code_cells.index(cell_index) + 1, len(self.code_cells))


class Client(PapermillNotebookClient):  # type: ignore[misc]
    """Executes in a `Kernel` that somebody else starts and ends."""

    def __init__(
        self, manager: Manager, kernel: Kernel, *, deadline: float, cell_timeout: float | None, spare: bool = False,
        checkpoints: Checkpoints | None = None,
    ) -> None:  # fmt: skip
        super().__init__(manager, km=kernel.manager, timeout_func=self._seconds_left, iopub_timeout=30, log=logger)
        self.kc, self.kernel, self.deadline, self.cell_timeout = kernel.client, kernel, deadline, cell_timeout
        self.spare, self.checkpoints = spare, checkpoints

    def _seconds_left(self, _: Any) -> float | None:
        left = min(max(self.deadline - time.monotonic(), 0.001), self.cell_timeout or math.inf)
        return left if left < math.inf else None

    def execute(self, **_: Any) -> Any:
        self.reset_execution_trackers()
        self.nb.metadata["language_info"] = self.kernel.language_info
        self.papermill_execute_cells()
        self.set_widgets_metadata()
        return self.nb

    def papermill_execute_cells(self) -> None:
        start = self.nb_man.start_index()
        for index, cell in enumerate(self.nb.cells[start:], start=start):
            self.nb_man.cell_start(cell, index)
            self.kc.cell_id = cell.get("id", "")
            try:
                self.execute_cell(cell, index)
            except CellExecutionError as error:
                self.nb_man.cell_exception(cell, cell_index=index, exception=error)
                return
            except (CellTimeoutError, DeadKernelError) as error:
                told = self._output(error)
                at = next((k for k, o in enumerate(cell.outputs) if o.output_type == "error"), len(cell.outputs))
                cell.outputs.insert(at, told)  # before the interrupt's own traceback, which shows where the cell was
                self.nb_man.cell_exception(cell, cell_index=index, exception=error)
                return
            finally:
                self.nb_man.cell_complete(cell, cell_index=index)
            if self.checkpoints and TAG in cell.metadata.get("tags", []):
                said = self.checkpoints.save(self.kernel, self.nb, index)
                cell.outputs.append(nbformat.v4.new_output("stream", name="stderr", text=said + "\n"))

    def _output(self, error: Exception) -> Any:
        """Return the cell output that tells of a deadline or of the kernel's death."""
        if isinstance(error, DeadKernelError):
            process = self.kernel.manager.provisioner.process
            code = process.poll() if process else None
            text = f"the kernel died (exit status {code}{', killed: out of memory?' if code == -9 else ''})"
            return nbformat.v4.new_output("error", ename=DIED, evalue=text, traceback=[text])
        if not (self.spare and self.kernel.give_in(GIVE_IN_SECONDS)):
            self.kernel.kill()
        whole = time.monotonic() >= self.deadline
        text = f"the {'run' if whole else 'cell'} was out of time"
        return nbformat.v4.new_output("error", ename=OUT_OF_TIME, evalue=text, traceback=[text])


def run_cells(
    manager: Manager, kernel: Kernel, *, timeout: float, cell_timeout: float | None, spare: bool = False, checkpoints: Checkpoints | None = None
) -> None:  # fmt: skip
    """Run the cells of `manager`'s notebook, from its first on, in `kernel`; how they fared stands in the notebook."""
    manager.notebook_start()
    deadline = time.monotonic() + timeout
    try:
        Client(manager, kernel, deadline=deadline, cell_timeout=cell_timeout, spare=spare, checkpoints=checkpoints).execute()  # fmt: skip
        if kernel.alive():
            manager.nb.metadata["cellwork"] = {"packages": kernel.packages()}
    finally:
        manager.notebook_complete()


class CellworkEngine(Engine):  # type: ignore[misc]
    """What papermill finds under the name `cellwork`."""

    @classmethod
    def execute_notebook(
        cls, nb: Any, kernel_name: str, output_path: str | None = None, progress_bar: Any = False, log_output: bool = False,
        autosave_cell_every: int = AUTOSAVE_SECONDS, *, progress: Callable[[int, int], None] | None = None, keep: Callable[[Manager], None] | None = None,
        kernel: Kernel | None = None, save_to: Path | None = None, timeout: float = math.inf, cell_timeout: float | None = None, execution_timeout: float | None = None,
        spare: bool = False, checkpoints: Checkpoints | None = None, masker: Masker | None = None, **_: Any,
    ) -> Any:  # fmt: skip
        manager = Manager(nb, save_to or (Path(output_path) if output_path else None), progress, 1, masker)
        if keep:
            keep(manager)
        with tempfile.TemporaryDirectory(prefix="cellwork-") as folder:
            used = kernel or Kernel.start(Path(folder), os.environ, name=kernel_name, cwd=Path.cwd())
            try:
                run_cells(manager, used, timeout=timeout, cell_timeout=cell_timeout or execution_timeout, spare=spare, checkpoints=checkpoints)  # fmt: skip
            finally:
                if used is not kernel:
                    used.stop(gently=3)
        return manager.nb
