"""`cellwork run open | resume | release`: look into a failed run's kept kernel, go on in it, or let it go."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from cellwork.cli import show
from cellwork.cli.follow import with_progress


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
    from cellwork.client import connect
    from cellwork.runs import opened

    client = connect()
    run = client.jobs.run(run_id)
    made = opened.open_kept(client, run, folder)
    assert run.kept is not None
    if json:
        show.document({**msgspec.structs.asdict(made), "until": run.kept.until})
        return
    click.echo(f"cell {made.cell} failed; its kernel is kept until {run.kept.until:%H:%M:%S}Z\n{made.notebook}")
    click.echo(f"{made.url}\n" if made.url else "", nl=False)
    click.echo(f"mend it, save it, then: cellwork run resume {run_id} {made.notebook}")


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
    from cellwork.runs import attach, opened
    from cellwork.wire.jobs import ResumeRequest

    client = connect()
    made = opened.page(run_id, client.jobs.run(run_id).notebook)
    page = notebook or (made if made.is_file() else None)
    if page and not notebook:
        click.echo(f"with {page}", err=True)
    request = ResumeRequest(content=page.read_text() if page else "", first_cell=first or 0, new_kernel=new_kernel)
    begun = client.jobs.resume(run_id, request)
    with_progress(client, begun, follow=follow, json=json)
    attach.tidy(opened.jupyter_folder(), lambda other: other == run_id or opened.is_kept(client, other))


@click.command()
@click.argument("run_id")
@show.as_json
def release(run_id: str, json: bool) -> None:
    """End the kernel that is kept for a failed run; the run and its notebook stay.

    Example: cellwork run release run_01k9x0c6m2v5e8t3a7q4d1b6zj
    """
    from cellwork.client import connect
    from cellwork.runs import attach, opened

    client = connect()
    run = client.jobs.release(run_id)
    attach.tidy(opened.jupyter_folder(), lambda other: other != run_id and opened.is_kept(client, other))
    if json:
        show.document(run)
    else:
        click.echo(f"{run.id}  {run.state}  no kernel is kept")
