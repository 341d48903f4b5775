"""`cellwork run`: execute a notebook here, or look at the runs of the platform. ``cellwork run FILE`` is ``cellwork run here FILE``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cellwork import errors, project
from cellwork.cli import compare, reopen, show
from cellwork.cli.follow import Line, seconds, with_progress
from cellwork.runs import parameters

if TYPE_CHECKING:
    from cellwork.wire.jobs import Run

F = TypeVar("F", bound=Callable[..., Any])


class Verbs(click.Group):
    """A group whose first verb may be left out: what is no verb belongs to `here`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["here", *args]
        return super().parse_args(ctx, args)


@click.group(cls=Verbs)
def run() -> None:
    """Execute notebooks and look at their runs.

    Example: cellwork run train.ipynb -p days 30 -o trained.ipynb
    """


for _command in (reopen.open_, reopen.resume, reopen.release, compare.diff, compare.check):
    run.add_command(_command)


def takes_parameters(command: F) -> F:
    """Add papermill's flags for parameters; the command gets `p`, `r`, `f` and `y`."""
    for option in (
        click.option("-y", "--parameters-yaml", "y", multiple=True, help="Parameters as YAML text."),
        click.option(
            "-f",
            "--parameters-file",
            "f",
            multiple=True,
            type=click.Path(path_type=Path),
            help="Parameters from a YAML or JSON file.",
        ),
        click.option(
            "-r", "--parameters-raw", "r", multiple=True, nargs=2, metavar="NAME TEXT", help="A parameter, as text."
        ),
        click.option("-p", "--parameters", "p", multiple=True, nargs=2, metavar="NAME VALUE", help="A parameter."),
    ):
        command = option(command)
    return command


def gather(notebook: parameters.Notebook | None, p: Any, r: Any, f: Any, y: Any) -> dict[str, Any]:
    """Return the parameters of the flags, the more particular flag last; `notebook` says which `-p` are text."""
    given: dict[str, Any] = {}
    for path in f:
        if not path.is_file():
            raise errors.NotFound("parameters file", path, "is not there", "check its path")
        given |= parameters.from_yaml(path.read_text(), f"parameters file {path.name}")
    for text in y:
        given |= parameters.from_yaml(text, "--parameters-yaml")
    known = parameters.declared(notebook) if notebook else {}
    return given | {name: parameters.from_text(text, known.get(name)) for name, text in p} | dict(r)


def read(notebook: Path) -> str:
    if not notebook.is_file():
        raise errors.NotFound("notebook", notebook, "is not there", "check its path")
    return notebook.read_text()


@run.command()
@click.argument("notebook", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The executed notebook; default: NAME.out.ipynb here."
)
@takes_parameters
@click.option(
    "--cwd", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Where it works; default: its folder."
)
@click.option("-k", "--kernel", default="python3", show_default=True, help="The kernel's name.")
@click.option("--timeout", type=click.FloatRange(min=0.1), help="Seconds for the whole run.")
@click.option("--cell-timeout", type=click.FloatRange(min=0.1), help="Seconds for one cell.")
@click.option("--report-mode", is_flag=True, help="Hide the input of the cells.")
@show.as_json
def here(
    notebook: Path, output: Path | None, p: Any, r: Any, f: Any, y: Any, cwd: Path | None, kernel: str, timeout: float | None, cell_timeout: float | None,
    report_mode: bool, json: bool,
) -> None:  # fmt: skip
    """Execute a notebook on this machine, with your rights. The word `here` may be left out.

    Example: cellwork run score.ipynb -p day 2013-12-24 -o scored.ipynb
    """
    import math

    from cellwork.runs import engine

    content = parameters.read(read(notebook), notebook.name)
    given = gather(content, p, r, f, y)
    target, started = output or Path(f"{notebook.stem}.out.ipynb"), time.monotonic()
    try:
        engine.execute(
            notebook, target, given, progress=None if json else Line(started).cell, timeout=timeout or math.inf, cell_timeout=cell_timeout,
            environment={**os.environ, **_platform(notebook)}, cwd=cwd, kernel_name=kernel, report_mode=report_mode,
        )  # fmt: skip
    except engine.RunFailed as error:
        click.echo(f"{error.traceback}\noutput so far: {target}", err=True)
        raise
    seconds = time.monotonic() - started
    if json:
        show.document({"state": "succeeded", "output": str(target), "seconds": round(seconds, 3), "parameters": given})
    else:
        click.echo(f"succeeded  {seconds:.1f} s  {target}")


def _platform(notebook: Path) -> dict[str, str]:
    """Return what a kernel needs to reach the platform that runs here, if one does, and the project's name."""
    from cellwork.client.base import address
    from cellwork.wire import PREFIX

    known = {"CELLWORK_NOTEBOOK": notebook.name}
    try:
        known["CELLWORK_PROJECT"] = project.find(notebook.absolute().parent).name
    except errors.NotFound:
        click.echo("no cellwork.toml above the notebook: it runs in no project", err=True)
    try:
        url, token = address()
    except errors.Unavailable:
        return known
    return {
        "MLFLOW_TRACKING_URI": url + PREFIX["mlflow"],
        "MLFLOW_TRACKING_TOKEN": token,
        **known,
        "CELLWORK_URL": url,
        "CELLWORK_TOKEN": token,
    }


@run.command()
@click.argument("notebook", type=click.Path(path_type=Path))
@takes_parameters
@click.option(
    "--timeout", type=click.IntRange(min=1), default=3600, show_default=True, help="Seconds for the whole run."
)
@click.option("--follow", is_flag=True, help="Show its progress, and wait for its end.")
@show.as_json
def start(notebook: Path, p: Any, r: Any, f: Any, y: Any, timeout: int, follow: bool, json: bool) -> None:
    """Run a notebook on the platform, with the modules beside it; it goes on when you leave.

    Example: cellwork run start score.ipynb -p day 2013-12-24 --follow
    """
    from cellwork.client import connect
    from cellwork.jobs import schedule
    from cellwork.wire.jobs import RunRequest

    text, root = read(notebook), project.find(notebook.absolute().parent)
    content = parameters.read(text, notebook.name)
    given = parameters.check(content, gather(content, p, r, f, y), notebook.name)
    path, folder = notebook.resolve(), root.folder.resolve()
    request = RunRequest(
        project=root.name, notebook=path.relative_to(folder).as_posix(), content=text, files=schedule.beside(path, folder, root),
        parameters=given, timeout_seconds=timeout,
    )  # fmt: skip
    with_progress(connect(), connect().jobs.start(request), follow=follow, json=json)


@run.command(name="list")
@click.option("--job", default="", help="Only runs of this job, project/name.")
@click.option("--project", "of_project", default="", help="Only runs of this project.")
@click.option(
    "--state",
    default="",
    type=click.Choice(["", "queued", "running", "succeeded", "failed", "stopped"]),
    help="Only runs in this state.",
)
@click.option("--limit", default=20, show_default=True, help="How many.")
@show.as_json
def list_(job: str, of_project: str, state: str, limit: int, json: bool) -> None:
    """Runs on the platform, newest first.

    Example: cellwork run list --state failed
    """
    from itertools import islice

    from cellwork.client import connect

    rows = list(islice(connect().jobs.runs(job=job, project=of_project, state=state), limit))
    if json:
        show.document(rows)
        return
    show.table(
        [(r.id, r.job or r.notebook, r.state, _cells(r), r.created, seconds(r), r.cause) for r in rows],
        ("run", "of", "state", "cell", "created", "seconds", "cause"),
    )


def _cells(of: Run) -> str:
    last = of.attempts[-1] if of.attempts else None
    return f"{last.cell} of {last.cells}" if last and last.cells else "-"


@run.command(name="show")
@click.argument("run_id")
@show.as_json
def show_(run_id: str, json: bool) -> None:
    """One run: its parameters, its attempts and how they ended.

    Example: cellwork run show run_01k9x0c6m2v5e8t3a7q4d1b6zj
    """
    from cellwork.client import connect

    found = connect().jobs.run(run_id)
    if json:
        show.document(found)
        return
    click.echo(f"{found.id}  {found.state}  {found.job or found.notebook}  by {found.principal}  ({found.cause})")
    for name, value in found.parameters.items():
        click.echo(f"  {name} = {value!r}")
    rows = [(a.n, a.runner, a.state, f"{a.cell} of {a.cells}", a.started, a.ended) for a in found.attempts]
    show.table(rows, ("attempt", "runner", "state", "cell", "started", "ended"), empty="no attempt yet")
    for attempt in found.attempts:
        if attempt.error:
            click.echo(f"attempt {attempt.n}: {attempt.error}")
    if found.kept:
        until = found.kept.until.strftime("%H:%M:%SZ")
        click.echo(
            f"its kernel is kept at cell {found.kept.cell} until {until}; look into it with: cellwork run open {found.id}"
        )


@run.command()
@click.argument("run_id")
@show.as_json
def follow(run_id: str, json: bool) -> None:
    """Show the progress of a run from its first cell on, and wait for its end.

    Example: cellwork run follow run_01k9x0c6m2v5e8t3a7q4d1b6zj
    """
    from cellwork.client import connect

    with_progress(connect(), connect().jobs.run(run_id), follow=True, json=json)


@run.command()
@click.argument("run_id")
@show.as_json
def stop(run_id: str, json: bool) -> None:
    """Stop a run; its output so far stays.

    Example: cellwork run stop run_01k9x0c6m2v5e8t3a7q4d1b6zj
    """
    from cellwork.client import connect

    stopped = connect().jobs.stop(run_id)
    if json:
        show.document(stopped)
    else:
        click.echo(f"{stopped.id}  {stopped.state}")


@run.command()
@click.argument("run_id")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to; default: RUN.ipynb here.")
def notebook(run_id: str, output: Path | None) -> None:
    """Fetch the executed notebook of a run, also while it runs.

    Example: cellwork run notebook run_01k9x0c6m2v5e8t3a7q4d1b6zj -o out.ipynb
    """
    from cellwork import files
    from cellwork.client import connect

    target = output or Path(f"{run_id}.ipynb")
    files.write(target, connect().jobs.notebook(run_id))
    click.echo(str(target))
