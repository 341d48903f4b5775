"""Open a failed run in Lab: a page that shows the run so far, and a kernel spec that leads to the run's kept kernel.

The spec starts `cellwork_jupyter.kernel.attach`, which is only a way; any Jupyter client can use it. A spec lives as long as
the kernel is kept: `tidy` removes the others.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from cellwork import files
from cellwork.runs import resume

PREFIX = "cellwork-"


def ensure_spec(folder: Path, run: str, cell: int) -> str:
    """Write the kernel spec of `run` below `folder` (one of Jupyter's data folders); returns the kernel's name."""
    name = PREFIX + run
    spec = {
        "argv": [sys.executable, "-m", "cellwork_jupyter.kernel.attach", run, "-f", "{connection_file}"],
        "display_name": f"{run[:12]}… at cell {cell}",
        "language": "python",
        "interrupt_mode": "message",
        "metadata": {"cellwork_run": run},
    }
    files.write(folder / "kernels" / name / "kernel.json", msgspec.json.encode(spec))
    return name


def tidy(folder: Path, kept: Callable[[str], bool]) -> list[str]:
    """Remove the specs of runs whose kernel is not `kept`; returns those runs."""
    specs = [path for path in (folder / "kernels").glob(f"{PREFIX}run_*") if path.is_dir()]
    gone = [path for path in specs if not kept(path.name.removeprefix(PREFIX))]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name.removeprefix(PREFIX) for path in gone]


def page(executed: Mapping[str, Any], kernel: str) -> dict[str, Any]:
    """Return the executed notebook without papermill's banners, to be opened with `kernel`."""
    opened = resume.without_banners(executed)
    opened["metadata"]["kernelspec"] = {"name": kernel, "display_name": kernel, "language": "python"}
    return opened


def cell_id(executed: Mapping[str, Any], number: int) -> str:
    """Return the id of code cell `number`, as runs count; empty if it has none."""
    cells = [cell for cell in resume.without_banners(executed)["cells"] if resume.counted(cell)]
    return str(cells[number - 1].get("id", "")) if 1 <= number <= len(cells) else ""
