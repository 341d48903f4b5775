"""How commands show the progress of a run: a line a cell on standard error, and how it ended."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from cellwork.cli import show

if TYPE_CHECKING:
    from cellwork.client import Client
    from cellwork.wire.jobs import Run
    from cellwork.wire.records import Event


class Line:
    """`cell 3 of 7  4.2 s`, on standard error, once a cell."""

    def __init__(self, started: float) -> None:
        self.started, self.last = started, (0, 0)

    def cell(self, cell: int, cells: int) -> None:
        if (cell, cells) != self.last and cell:
            click.echo(f"cell {cell} of {cells}  {time.monotonic() - self.started:.1f} s", err=True)
        self.last = (cell, cells)

    def event(self, event: Event) -> None:
        """Say what an event of a run tells; its own end is told by who follows it."""
        if event.name == "run.cell":
            self.cell(event.data["cell"], event.data["cells"])
        elif event.name == "run.started":
            click.echo(f"attempt {event.data['attempt']} on {event.data['runner']}", err=True)


def with_progress(client: Client, begun: Run, *, follow: bool, json: bool) -> None:
    """Print the run, or follow it to its end; exits with 1 unless it succeeded."""
    if not follow:
        if json:
            show.document(begun)
        else:
            click.echo(f"{begun.id}  {begun.state}  (follow it with: cellwork run show {begun.id})")
        return
    line = Line(time.monotonic())
    for event in client.jobs.follow(begun.id):
        if not json:
            line.event(event)
    ended = client.jobs.run(begun.id)
    if json:
        show.document(ended)
    else:
        click.echo(
            f"{ended.id}  {ended.state}"
            + (f"\n{ended.attempts[-1].error}" if ended.attempts and ended.attempts[-1].error else "")
        )
    if ended.kept and not json:
        click.echo(
            f"its kernel is kept at cell {ended.kept.cell}; look into it with: cellwork run open {ended.id}", err=True
        )
    if ended.state != "succeeded":
        sys.exit(1)


def seconds(of: Run) -> float | None:
    """Return how long the last attempt took, or None while it lasts."""
    last = of.attempts[-1] if of.attempts else None
    return (last.ended - last.started).total_seconds() if last and last.ended else None
