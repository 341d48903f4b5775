"""Put a run's page where Lab shows it: of a failed run attached to its kept kernel, of any other as it was executed.

`open_kept` replaces a page that is there; `open_any` leaves one that was saved since the run ended, for somebody may be mending it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cellwork import errors, files, settings
from cellwork.runs import attach, resume
from cellwork.wire import Struct

if TYPE_CHECKING:
    from cellwork.client import Client
    from cellwork.wire.jobs import Run


class Opened(Struct):
    """A run's page; `kernel` is empty where none is kept, `url` where Lab does not show the folder."""

    run: str
    notebook: str
    cell: int = 0
    kernel: str = ""
    url: str = ""


def open_kept(client: Client, run: Run, folder: Path | None = None) -> Opened:
    """Put the page of a failed `run` into `folder` (default: Lab's), attached to the kernel that is kept for it.

    Raises
    ------
    Conflict
        No kernel is kept for it.
    """
    if run.kept is None:
        way_out = f"look at it with: cellwork run notebook {run.id}; start again: cellwork run resume --new-kernel"
        raise errors.Conflict("kernel of run", run.id, f"is not kept; the run is {run.state}", way_out)
    executed = msgspec.json.decode(client.jobs.notebook(run.id))
    kernel = attach.ensure_spec(jupyter_folder(), run.id, run.kept.cell)
    attach.tidy(jupyter_folder(), lambda other: is_kept(client, other))
    target = page(run.id, run.notebook, folder)
    files.write(target, msgspec.json.encode(attach.page(executed, kernel)), mode=0o600)
    url = lab_url(client, target, attach.cell_id(executed, run.kept.cell))
    return Opened(run=run.id, notebook=str(target), cell=run.kept.cell, kernel=kernel, url=url)


def open_any(client: Client, run: Run, folder: Path | None = None) -> Opened:
    """Put the page of `run` into `folder`: attached to its kernel if one is kept, else as it was executed so far."""
    target = page(run.id, run.notebook, folder)
    ended = run.attempts[-1].ended if run.attempts else None
    if ended and target.is_file() and target.stat().st_mtime > ended.timestamp():
        return Opened(run=run.id, notebook=str(target), url=lab_url(client, target, ""))
    if run.kept is not None:
        return open_kept(client, run, folder)
    executed: dict[str, Any] = resume.without_banners(msgspec.json.decode(client.jobs.notebook(run.id)))
    files.write(target, msgspec.json.encode(executed), mode=0o600)
    return Opened(run=run.id, notebook=str(target), url=lab_url(client, target, ""))


def is_kept(client: Client, run: str) -> bool:
    try:
        return client.jobs.run(run).kept is not None
    except (errors.NotFound, errors.BadInput):
        return False


def jupyter_folder() -> Path:
    """Return the data folder of the Jupyter that shall see the kernel: this one, or the platform's account's."""
    from jupyter_core.paths import jupyter_data_dir

    return Path(jupyter_data_dir())


def workspace() -> Path:
    """Return the folder that Lab shows: this process's, in a user server; else the platform's that runs from here."""
    if os.environ.get("JUPYTERHUB_USER"):
        return Path(os.environ.get("JUPYTERHUB_ROOT_DIR", "") or Path.cwd())
    chosen = settings.load()[0]
    return chosen.workspace or chosen.folder.workspace()


def page(run: str, notebook: str, folder: Path | None = None) -> Path:
    """Return where the page of an opened run lies."""
    return (folder or workspace() / "runs") / f"{Path(notebook).stem}-{run[-6:]}.ipynb"


def lab_url(client: Client, page: Path, cell: str) -> str:
    """Return the address that opens `page` at `cell` in Lab; empty if Lab does not show that folder."""
    from urllib.parse import quote

    root = workspace().resolve()
    if not page.resolve().is_relative_to(root):
        return ""
    place = quote(page.resolve().relative_to(root).as_posix()) + (f"#cell-id={cell}" if cell else "")
    return f"{client.connection.public_url}/hub/user-redirect/lab/tree/{place}"
