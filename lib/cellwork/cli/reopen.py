"""`cellwork run open | resume | release`: look into a failed run's kept kernel, go on in it, or let it go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cellwork import errors, files, settings
from cellwork.cli import show
from cellwork.cli.follow import with_progress

if TYPE_CHECKING:
    from cellwork.client import Client


@click.command(name="open")
@click.argument("run_id")
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), help="Where the page is put; default: Lab's folder."
)
@show.as_json
def open_(run_id: str, folder: Path | None, json: bool) -> None:
    """Open a failed run in Lab: the page as it stands, attached to the kernel at the failing cell.

    \b
    Everything the run had made is there. Mend the cell on the page, save it, and go on with: cellwork run resume.
    Closing Lab or restarting its kernel leaves the run's kernel as it is.

    Example: cellwork run open run_01k9x0c6m2v5e8t3a7q4d1b6zj
    """
    import msgspec

    from cellwork.client import connect
    from cellwork.runs import attach

    client = connect()
    run = client.jobs.run(run_id)
    if run.kept is None:
        way_out = f"look at it with: cellwork run notebook {run_id}; start again: cellwork run resume --new-kernel"
        raise errors.Conflict("kernel of run", run_id, f"is not kept; the run is {run.state}", way_out)
    executed = msgspec.json.decode(client.jobs.notebook(run_id))
    kernel = attach.ensure_spec(jupyter_folder(), run_id, run.kept.cell)
    attach.tidy(jupyter_folder(), lambda other: _kept(client, other))
    target = opened_page(run_id, run.notebook, folder)
    files.write(target, msgspec.json.encode(attach.page(executed, kernel)), mode=0o600)
    url = lab_url(client, target, attach.cell_id(executed, run.kept.cell))
    if json:
        show.document({"run": run_id, "cell": run.kept.cell, "until": run.kept.until, "notebook": str(target), "kernel": kernel, "url": url})  # fmt: skip
        return
    click.echo(f"cell {run.kept.cell} failed; its kernel is kept until {run.kept.until:%H:%M:%S}Z\n{target}")
    click.echo(f"{url}\n" if url else "", nl=False)
    click.echo(f"mend it, save it, then: cellwork run resume {run_id} {target}")


def _kept(client: Client, run: str) -> bool:
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


def opened_page(run: str, notebook: str, folder: Path | None = None) -> Path:
    """Return where the page of an opened run lies."""
    return (folder or workspace() / "runs") / f"{Path(notebook).stem}-{run[-6:]}.ipynb"


def lab_url(client: Client, page: Path, cell: str) -> str:
    """Return the address that opens `page` at `cell` in Lab; empty if Lab does not show that folder."""
    from urllib.parse import quote

    root = workspace().resolve()
    if not page.resolve().is_relative_to(root):
        return ""
    place = quote(page.resolve().relative_to(root).as_posix()) + (f"#cell-id={cell}" if cell else "")
    return f"{client.connection.url}/hub/user-redirect/lab/tree/{place}"


@click.command()
@click.argument("run_id")
@click.argument("notebook", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--from", "first", type=click.IntRange(min=1), help="The cell to go on from; default: the one that failed."
)
@click.option(
    "--new-kernel", is_flag=True, help="Start on a new kernel: from the last checkpoint, else from the first cell."
)
@click.option("--follow", is_flag=True, help="Show its progress, and wait for its end.")
@show.as_json
def resume(run_id: str, notebook: Path | None, first: int | None, new_kernel: bool, follow: bool, json: bool) -> None:
    """Go on with a failed run in its kept kernel, from the cell that failed, after the notebook was mended.

    \b
    NOTEBOOK is the mended one: the page that `run open` made, or the author's own. Without it the run goes on with the page
    that `run open` made, if there is one, else with the notebook as it is. Cells above the first one must be as they ran.

    Example: cellwork run resume run_01k9x0c6m2v5e8t3a7q4d1b6zj score.ipynb --follow
    """
    from cellwork.client import connect
    from cellwork.runs import attach
    from cellwork.wire.jobs import ResumeRequest

    client = connect()
    opened = opened_page(run_id, client.jobs.run(run_id).notebook)
    page = notebook or (opened if opened.is_file() else None)
    if page and not notebook:
        click.echo(f"with {page}", err=True)
    request = ResumeRequest(content=page.read_text() if page else "", first_cell=first or 0, new_kernel=new_kernel)
    begun = client.jobs.resume(run_id, request)
    with_progress(client, begun, follow=follow, json=json)
    attach.tidy(jupyter_folder(), lambda other: other == run_id or _kept(client, other))


@click.command()
@click.argument("run_id")
@show.as_json
def release(run_id: str, json: bool) -> None:
    """End the kernel that is kept for a failed run; the run and its notebook stay.

    Example: cellwork run release run_01k9x0c6m2v5e8t3a7q4d1b6zj
    """
    from cellwork.client import connect
    from cellwork.runs import attach

    client = connect()
    run = client.jobs.release(run_id)
    attach.tidy(jupyter_folder(), lambda other: other != run_id and _kept(client, other))
    if json:
        show.document(run)
    else:
        click.echo(f"{run.id}  {run.state}  no kernel is kept")
