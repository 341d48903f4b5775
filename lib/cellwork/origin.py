"""Where work comes from: notebook, cell, source hash, run, user, image. Gathered from what is at hand, never asked for."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from cellwork.wire.origin import Origin

_cell: dict[str, str] = {}


def set_cell(cell_id: str, source: str, notebook: str = "") -> None:
    """Say which cell executes now; called by the kernel extension and by runs before each cell."""
    _cell.update(cell_id=cell_id, source_sha256=hashlib.sha256(source.encode()).hexdigest() if source else "")
    if notebook:
        _cell["notebook"] = notebook


def gather() -> Origin:
    """Return the origin of what this process does now. Empty fields are unknown."""
    environ = os.environ
    notebook = _cell.get("notebook") or environ.get("CELLWORK_NOTEBOOK") or environ.get("JPY_SESSION_NAME", "")
    return Origin(
        user=environ.get("JUPYTERHUB_USER") or environ.get("CELLWORK_USER") or environ.get("USER", ""),
        project=environ.get("CELLWORK_PROJECT", ""),
        notebook=Path(notebook).name,
        cell_id=_cell.get("cell_id", ""),
        source_sha256=_cell.get("source_sha256", ""),
        run=environ.get("CELLWORK_RUN", ""),
        attempt=int(environ.get("CELLWORK_ATTEMPT", "0")),
        git_commit=_git_commit(str(Path.cwd())),
        image_digest=environ.get("CELLWORK_IMAGE_DIGEST", ""),
        env=environ.get("CELLWORK_ENV", f"python-{sys.version_info.major}.{sys.version_info.minor}"),
    )


@functools.lru_cache(maxsize=8)
def _git_commit(folder: str) -> str:
    try:
        answer = subprocess.run(
            ["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
