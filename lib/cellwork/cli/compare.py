"""`cellwork run diff | check`: two runs beside each other, and whether a notebook would run alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cellwork import errors, files, project
from cellwork.cli import show


@click.command()
@click.argument("a")
@click.argument("b")
@click.option(
    "--html", "page", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with the plots side by side."
)
@show.as_json
def diff(a: str, b: str, page: Path | None, json: bool) -> None:
    """What differs between two runs: parameters, code, environment, batches, outputs, seconds a cell.

    Example: cellwork run diff run_01k9x0c6m2v5e8t3a7q4d1b6zj run_01k9y2f8n4w7g0v5c9s6f3d8bk --html diff.html
    """
    from cellwork.client import connect
    from cellwork.runs import diff as diffs

    found = diffs.of(connect(), a, b)
    if page:
        files.write(page, diffs.as_page(found))
    if json:
        show.document(found)
    else:
        click.echo(diffs.as_text(found) + (f"\n{page}" if page else ""))


@click.command()
@click.argument("notebook", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--dry", is_flag=True, help="Also run it on a clean kernel, in a copy of its folder.")
@click.option(
    "-p",
    "--parameters",
    "p",
    multiple=True,
    nargs=2,
    metavar="NAME VALUE",
    help="A parameter of the dry run, such as a small sample.",
)
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=300, show_default=True, help="Seconds for the dry run."
)
@show.as_json
def check(notebook: Path, dry: bool, p: Any, timeout: float, json: bool) -> None:
    """Would a notebook run alone, without the session it was written in? Exits with 3 if not.

    \b
    It looks for cells that ran out of order, names that only a live kernel has, paths of this machine, packages that are
    not installed or not pinned, and secrets that are written out. --dry proves it on a clean kernel.

    Example: cellwork run check train.ipynb --dry -p rows 1000
    """
    from cellwork.runs import check as checks
    from cellwork.runs import parameters

    content = parameters.read(notebook.read_bytes(), notebook.name)
    try:
        root: Path = project.find(notebook.absolute().parent).folder
    except errors.NotFound:
        root = notebook.absolute().parent
    found = checks.check(content, pinned=checks.pins(root), beside=notebook.absolute().parent)
    said = _dry_run(notebook, content, p, timeout) if dry else ""
    if json:
        show.document({"findings": found, "dry_run": said or ("passed" if dry else "")})
    else:
        for one in found:
            click.echo(
                f"{f'cell {one.cell}: ' if one.cell else ''}{one.kind} {one.subject} {one.verdict}; {one.way_out}"
            )
        click.echo(f"dry run: {said or 'it ran to its end on a clean kernel'}" if dry else "", nl=dry)
        if not found and not said:
            click.echo(
                f"{notebook.name} would run alone" + ("" if dry else ", as far as reading can tell (prove it: --dry)")
            )
    if found or said:
        sys.exit(3)


def _dry_run(notebook: Path, content: Any, p: Any, timeout: float) -> str:
    """Return how a clean kernel failed on the notebook; empty if it did not. What it writes stays in a copy of its folder."""
    import os
    import shutil
    import tempfile

    from cellwork.runs import engine, parameters

    known = parameters.declared(content)
    given = {name: parameters.from_text(text, known.get(name)) for name, text in p}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        work.mkdir()
        for path in notebook.absolute().parent.iterdir():
            if path.is_file() and path.stat().st_size < 64 << 20:
                shutil.copy2(path, work / path.name)
        given_environment = {key: os.environ[key] for key in ("CELLWORK_URL", "CELLWORK_TOKEN") if key in os.environ}
        try:
            engine.execute(
                work / notebook.name, Path(folder) / "out.ipynb", given, timeout=timeout, environment=given_environment
            )
        except engine.RunFailed as error:
            return str(error)
    return ""
