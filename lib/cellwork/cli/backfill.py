"""`cellwork job backfill | grid`: runs for times that have passed, and what became of each."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click

from cellwork import clock, project
from cellwork.cli import show
from cellwork.errors import BadInput

if TYPE_CHECKING:
    from cellwork.wire.jobs import Run

SIGNS = {"succeeded": "+", "failed": "x", "running": ">", "queued": ".", "stopped": "-"}


def moment(text: str, zone: str, *, end: bool = False) -> datetime:
    """Return the time that `text` means: a day is its beginning (or its end) on the clocks of `zone`."""
    try:
        if len(text) == 10:
            day = datetime.fromisoformat(text).replace(tzinfo=clock.zone(zone))
            return (day + timedelta(days=1) - timedelta(microseconds=1)) if end else day
        return clock.utc(text)
    except ValueError:
        raise BadInput("time", text, "is no day and no time", "write 2013-11-01, or 2013-11-01T06:00:00Z") from None


def full_name(name: str) -> str:
    return name if "/" in name else project.find().full_name(name)


@click.command()
@click.argument("name")
@click.option("--from", "first", required=True, metavar="DAY", help="The first day, or time.")
@click.option("--to", "last", required=True, metavar="DAY", help="The last day, or time; it counts.")
@click.option("--parallel", default=1, show_default=True, type=click.IntRange(1, 100), help="How many at once.")
@click.option("--again", is_flag=True, help="Also the times that have succeeded.")
@show.as_json
def backfill(name: str, first: str, last: str, parallel: int, again: bool, json: bool) -> None:
    """Run a job for every time in the past at which it was, or would have been, due; asking twice changes nothing.

    \b
    ${date}, ${due} and ${last_success} stand for what they were then. The runs wait behind what is due now.

    Example: cellwork job backfill flights/score --from 2013-11-01 --to 2013-11-30 --parallel 2
    """
    from cellwork.client import connect
    from cellwork.wire.jobs import BackfillRequest

    jobs, of = connect().jobs, full_name(name)
    zone = jobs.get(of).schedule.timezone
    request = BackfillRequest(
        first=moment(first, zone), last=moment(last, zone, end=True), parallel=parallel, again=again
    )
    made = jobs.backfill(of, request)
    if json:
        show.document(made)
    else:
        click.echo(
            f"{len(made.queued)} runs are queued, {made.left_alone} times left alone; look at: cellwork job grid {of} --from {first} --to {last}"
        )


@click.command()
@click.argument("name")
@click.option("--from", "first", required=True, metavar="DAY", help="The first day, or time.")
@click.option("--to", "last", required=True, metavar="DAY", help="The last day, or time; it counts.")
@show.as_json
def grid(name: str, first: str, last: str, json: bool) -> None:
    """What became of a job's times: a line a day, a sign a run (+ succeeded, x failed, > running, . queued, - stopped).

    Example: cellwork job grid flights/score --from 2013-11-01 --to 2013-11-30
    """
    from cellwork.client import connect

    jobs, of = connect().jobs, full_name(name)
    zone = jobs.get(of).schedule.timezone
    rows = jobs.grid(of, moment(first, zone).isoformat(), moment(last, zone, end=True).isoformat())
    if json:
        show.document(rows)
        return
    days: dict[str, list[Run]] = defaultdict(list)
    for row in rows:
        if row.due:
            days[row.due.astimezone(clock.zone(zone)).date().isoformat()].append(row)
    show.table(
        [(day, "".join(SIGNS[run.state] for run in of_day), sum(run.state == "failed" for run in of_day)) for day, of_day in days.items()],
        ("day", "runs", "failed"), empty="no runs in these days",
    )  # fmt: skip
