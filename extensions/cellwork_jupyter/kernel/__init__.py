"""The kernel's part: it knows which cell runs, so that whatever the cell makes carries its origin, and it has magics.

The hook must never break a cell: it does no I/O and calls one function that sets three strings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellwork import origin

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionInfo, InteractiveShell


def remember_cell(info: ExecutionInfo) -> None:
    """Record the cell that starts now. Its id comes from the execute request's metadata (`cellId`)."""
    if not info.silent:
        origin.set_cell(info.cell_id or "", info.raw_cell or "")


def load(shell: InteractiveShell) -> None:
    """Register hook and magics; a second call changes nothing."""
    from cellwork_jupyter.kernel.deploy import DeployMagics
    from cellwork_jupyter.kernel.features import FeatureMagics
    from cellwork_jupyter.kernel.jobs import JobMagics
    from cellwork_jupyter.kernel.magics import CellworkMagics
    from cellwork_jupyter.kernel.register import RegisterMagics
    from cellwork_jupyter.kernel.train import TrainMagics

    unload(shell)
    shell.events.register("pre_run_cell", remember_cell)
    shell.register_magics(CellworkMagics, DeployMagics, FeatureMagics, JobMagics, RegisterMagics, TrainMagics)


def unload(shell: InteractiveShell) -> None:
    """Take the hook back; the magics stay, as IPython cannot forget them."""
    if remember_cell in shell.events.callbacks["pre_run_cell"]:
        shell.events.unregister("pre_run_cell", remember_cell)
