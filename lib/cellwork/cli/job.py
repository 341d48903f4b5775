"""`cellwork job`: scheduled notebooks, from the files beside them to their runs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cellwork import project
from cellwork.cli import show
from cellwork.cli.follow import seconds, with_progress
from cellwork.cli.run import gather, takes_parameters

if TYPE_CHECKING:
    from cellwork.wire.jobs import Job, Schedule


@click.group()
def job() -> None:
    """Scheduled notebooks.

    Example: cellwork job apply scheduled/
    """


def full_name(name: str) -> str:
    """Return `project/name`; a short name belongs to the project of this folder."""
    return name if "/" in name else project.find().full_name(name)


@job.command()
@click.argument("path", type=click.Path(path_type=Path))
@show.as_json
def apply(path: Path, json: bool) -> None:
    """Make the jobs that a schedule file, or the schedule files in a folder, describe; applying them twice changes nothing.

    \b
    The file lies beside its notebook and is named like the job:
      notebook: score.ipynb          # default: the file's name
      on:
        schedule: {cron: "0 3 * * *", timezone: Europe/Berlin}
      # or, instead:  event: {name: batch.ready, match: {dataset: flights}}
      with: {day: "${date}"}         # also ${due}, ${batch}, ${event.<field>}
      timeout: 30m
      retries: 1

    Example: cellwork job apply scheduled/score.yaml
    """
    from cellwork.client import connect
    from cellwork.jobs import schedule

    requests = [schedule.read(file) for file in schedule.files(path)]
    _print([connect().jobs.ensure(request) for request in requests], json)


def _print(jobs: list[Job], json: bool) -> None:
    if json:
        show.document(jobs)
        return
    rows = [(f"{j.project}/{j.name}", when(j.schedule), j.paused, j.next_due, j.owner, j.revision) for j in jobs]
    show.table(rows, ("job", "when", "paused", "next due", "owner", "revision"))


def when(schedule: Schedule) -> str:
    if schedule.cron:
        return f"{schedule.cron} {schedule.timezone}"
    fields = " ".join(f"{key}={value}" for key, value in schedule.match.items())
    return f"{schedule.event} {fields}".strip() or "by hand"


@job.command(name="list")
@click.option("--project", "of_project", default="", help="Only jobs of this project.")
@show.as_json
def list_(of_project: str, json: bool) -> None:
    """Every job, when it runs, and when next.

    Example: cellwork job list --json
    """
    from cellwork.client import connect

    _print(list(connect().jobs.list(of_project)), json)


@job.command(name="show")
@click.argument("name")
@show.as_json
def show_(name: str, json: bool) -> None:
    """One job and its last runs.

    Example: cellwork job show flights/score
    """
    from cellwork.client import connect

    found = connect().jobs.get(full_name(name))
    runs = list(itertools.islice(connect().jobs.runs(job=full_name(name)), 10))
    if json:
        show.document({"job": found, "runs": runs})
        return
    _print([found], json=False)
    click.echo(
        f"notebook {found.notebook}, with {found.parameters}, {found.timeout_seconds} s, {found.retries} retries, {found.concurrency} at once"
    )
    show.table(
        [(r.id, r.state, r.cause, r.created, seconds(r)) for r in runs],
        ("run", "state", "cause", "created", "seconds"),
        empty="no runs yet",
    )


@job.command(name="run")
@click.argument("name")
@takes_parameters
@click.option("--follow", is_flag=True, help="Show its progress, and wait for its end.")
@show.as_json
def run_(name: str, p: Any, r: Any, f: Any, y: Any, follow: bool, json: bool) -> None:
    """Run a job now, with its parameters or others.

    Example: cellwork job run flights/score -p day 2013-12-24 --follow
    """
    from cellwork.client import connect
    from cellwork.wire.jobs import RunRequest

    request = RunRequest(job=full_name(name), parameters=gather(None, p, r, f, y))
    with_progress(connect(), connect().jobs.start(request), follow=follow, json=json)


@job.command()
@click.argument("name")
@show.as_json
def pause(name: str, json: bool) -> None:
    """Fire a job no more, until it is resumed; what comes due meanwhile is not made up for.

    Example: cellwork job pause flights/score
    """
    from cellwork.client import connect

    _print([connect().jobs.pause(full_name(name))], json)


@job.command()
@click.argument("name")
@show.as_json
def resume(name: str, json: bool) -> None:
    """Fire a paused job again.

    Example: cellwork job resume flights/score
    """
    from cellwork.client import connect

    _print([connect().jobs.pause(full_name(name), paused=False)], json)


@job.command()
@click.argument("name")
def remove(name: str) -> None:
    """Forget a job; its runs stay.

    Example: cellwork job remove flights/score
    """
    from cellwork.client import connect

    connect().jobs.remove(full_name(name))
    click.echo(f"{full_name(name)} is removed")
