"""`cellwork job`: scheduled notebooks, from the files beside them to their runs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cellwork import project
from cellwork.cli import backfill, show
from cellwork.cli.follow import seconds, with_progress
from cellwork.cli.run import gather, takes_parameters

if TYPE_CHECKING:
    from cellwork.wire.jobs import Job, Schedule


@click.group()
def job() -> None:
    """Scheduled notebooks.

    Example: cellwork job apply scheduled/
    """


for _command in (backfill.backfill, backfill.grid):
    job.add_command(_command)


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
    made = [connect().jobs.ensure(request) for request in requests]
    _print(made, json)
    for of in made if not json else []:
        if of.next_due and (times := next_times(of.schedule, 3)):
            click.echo(f"{of.project}/{of.name} is next due {', '.join(times)}")


def next_times(plan: Schedule, count: int) -> list[str]:
    """Return the next times at which `plan` is due, on its own clocks."""
    from cellwork import clock
    from cellwork.jobs import schedule

    zone = clock.zone(plan.timezone)
    return [
        f"{due.astimezone(zone):%a %Y-%m-%d %H:%M %Z}"
        for due in itertools.islice(schedule.due(plan, clock.now()), count)
    ]


@job.command(name="when")
@click.argument("cron")
@click.option("--timezone", default="UTC", show_default=True, help="On whose clocks it is read.")
@click.option("--count", default=3, show_default=True, type=click.IntRange(1, 100), help="How many times.")
@show.as_json
def when_(cron: str, timezone: str, count: int, json: bool) -> None:
    """When a cron line is next due; nonsense is told apart from what is merely rare.

    Example: cellwork job when "30 6 * * 1-5" --timezone Europe/Berlin
    """
    from cellwork.jobs import schedule
    from cellwork.wire.jobs import Schedule

    plan = Schedule(cron=cron, timezone=timezone)
    schedule.check(plan, {})
    times = next_times(plan, count)
    if json:
        show.document({"cron": cron, "timezone": timezone, "times": times})
    else:
        click.echo("\n".join(times))


def _print(jobs: list[Job], json: bool) -> None:
    if json:
        show.document(jobs)
        return
    rows = [(f"{j.project}/{j.name}", when(j.schedule), j.paused, j.next_due, j.owner, j.revision) for j in jobs]
    show.table(rows, ("job", "when", "paused", "next due", "owner", "revision"))


def when(schedule: Schedule) -> str:
    if schedule.cron:
        return f"{schedule.cron} {schedule.timezone}"
    if schedule.every_seconds:
        return f"every {schedule.every_seconds} s"
    if schedule.after:
        return f"after {schedule.after}"
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


@job.group()
def export() -> None:
    """Jobs as files for another scheduler.

    Example: cellwork job export airflow -o dags/
    """


@export.command()
@click.argument("names", nargs=-1)
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), default=Path("dags"), show_default=True, help="Airflow's folder of DAGs.")  # fmt: skip
@show.as_json
def airflow(names: tuple[str, ...], output: Path, json: bool) -> None:
    """Write jobs (default: all) as DAG files for Airflow 3, each with its notebook; what Airflow can't do is told, and left out.

    Airflow's workers need the program `cellwork`, on their path or named by $CELLWORK_PROGRAM.

    Example: cellwork job export airflow flights/score -o dags/
    """
    from cellwork.client import connect
    from cellwork.jobs import airflow as dags

    jobs = connect().jobs
    chosen = [full_name(name) for name in names] or [f"{found.project}/{found.name}" for found in jobs.list()]
    made, left = dags.exported([jobs.request(name) for name in chosen], output)
    if json:
        show.document({"files": [str(path) for path in made], "left": left})
        return
    for path in made:
        click.echo(f"wrote {path}")
    for reason in left.values():
        click.echo(f"left out: {reason}", err=True)
