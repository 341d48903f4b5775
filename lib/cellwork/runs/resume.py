"""Continue a notebook where it failed: which cells stand, which run again, and what the page looks like in between.

Cells are numbered as a run counts them: code cells with source, the injected parameters among them, from 1. Cells above the
first one that runs again keep their source, outputs and times; whoever changes one of them must run from there.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from cellwork.errors import BadInput

Notebook = Mapping[str, Any]
BANNER, INJECTED, PARAMETERS = "papermill-error-cell-tag", "injected-parameters", "parameters"


def tags(cell: Mapping[str, Any]) -> list[str]:
    found: list[str] = (cell.get("metadata") or {}).get("tags") or []
    return found


def source(cell: Mapping[str, Any]) -> str:
    text = cell.get("source") or ""
    return text if isinstance(text, str) else "".join(text)


def counted(cell: Mapping[str, Any]) -> bool:
    """Say whether a run counts `cell`."""
    return cell.get("cell_type") == "code" and bool(source(cell).strip())


def without_banners(notebook: Notebook) -> dict[str, Any]:
    """Return a copy of `notebook` without the cells in which papermill shows an error."""
    kept = [copy.deepcopy(cell) for cell in notebook["cells"] if BANNER not in tags(cell)]
    return {**copy.deepcopy({k: v for k, v in notebook.items() if k != "cells"}), "cells": kept}


def merge(executed: Notebook, mended: Notebook, first: int) -> dict[str, Any]:
    """Return `mended` with the cells before number `first` as they were executed, and the rest without outputs.

    Raises
    ------
    BadInput
        `first` is no cell of it, or a cell before it differs from what was executed; the first such cell is named.
    """
    page = {**without_banners(mended), "metadata": copy.deepcopy(executed["metadata"])}
    done = [cell for cell in without_banners(executed)["cells"] if counted(cell)]
    page["cells"] = _with_injected(page["cells"], without_banners(executed)["cells"])
    numbers = [k for k, cell in enumerate(page["cells"]) if counted(cell)]
    if not 1 <= first <= len(numbers):
        raise BadInput("cell", first, "is not one of the notebook", f"its code cells are 1 to {len(numbers)}")
    for number, index in enumerate(numbers, start=1):
        if number >= first:
            page["cells"][index] |= {"outputs": [], "execution_count": None}
        elif number > len(done) or source(done[number - 1]) != source(page["cells"][index]):
            raise BadInput(
                f"cell {number}", "", "differs from what ran in the kernel", f"run from it: --from {number}; or take the change back"
            )  # fmt: skip
        else:
            page["cells"][index] = done[number - 1]
    return page


def _with_injected(cells: list[dict[str, Any]], executed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return `cells` with the parameters that were injected, where papermill had put them."""
    injected = next((cell for cell in executed if INJECTED in tags(cell)), None)
    if injected is None or any(INJECTED in tags(cell) for cell in cells):
        return cells
    at = next((k + 1 for k, cell in enumerate(cells) if PARAMETERS in tags(cell)), 0)
    return [*cells[:at], copy.deepcopy(injected), *cells[at:]]


def plain(notebook: Notebook) -> dict[str, Any]:
    """Return `notebook` as its author wrote it: no banner, no injected parameters, no outputs."""
    page = without_banners(notebook)
    page["cells"] = [cell for cell in page["cells"] if INJECTED not in tags(cell)]
    for cell in page["cells"]:
        (cell.get("metadata") or {}).pop("papermill", None)
        if cell.get("cell_type") == "code":
            cell |= {"outputs": [], "execution_count": None}
    (page.get("metadata") or {}).pop("papermill", None)
    return page
