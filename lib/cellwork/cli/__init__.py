"""`cellwork <noun> <verb>`: each noun is an entry point of `cellwork.commands`, imported only when it is used.

Exit codes: 0 ok, 1 failed, 2 usage, 3 refused by a gate or check, 4 unavailable.
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points

import click

from cellwork import __version__, errors

EXIT = {errors.Refused: 3, errors.Conflict: 3, errors.Unavailable: 4, errors.TooBusy: 4, errors.BadInput: 2}
HELP = {
    "up": "Start the platform (and run the demo with --demo).",
    "down": "Stop the platform; no process is left.",
    "status": "What runs, where, and how much memory it takes.",
    "doctor": "Check this machine and this installation.",
    "config": "Every setting, its value and where it came from.",
    "user": "Who may log in, and what they may do.",
    "project": "Projects, and who reads and writes in them.",
    "image": "Container images: build, list, verify.",
    "profile": "What a user's server may take, and who may have it.",
    "kubernetes": "User servers on a cluster, from the same profiles.",
    "demo": "Walk the flights from raw batch to dashboard.",
    "batch": "Raw data: ingest, list, read.",
    "data": "Look into data: statistics, SQL, held deliveries.",
    "search": "Find data, features and labels by words.",
    "feature": "Features: apply definitions, look at views, read online.",
    "dataset": "Training frames: build, list, read.",
    "model": "Registered models: evaluate, promote, roll back.",
    "endpoint": "Endpoints: deploy, roll back, predict.",
    "run": "Execute notebooks and look at their runs.",
    "job": "Scheduled notebooks.",
    "runner": "Runners on further hosts and on Dask clusters.",
    "monitor": "Monitors: drift, quality, absence.",
    "alert": "Alerts of the monitors.",
    "dashboard": "Publish notebooks as dashboards.",
    "why": "Where a prediction (or any id) comes from.",
}


class Nouns(click.Group):
    """Lists nouns without importing them; imports the one that is called."""

    def _points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group="cellwork.commands")}

    def list_commands(self, ctx: click.Context) -> list[str]:
        known = self._points()
        return [name for name in HELP if name in known] + sorted(set(known) - set(HELP))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        point = self._points().get(name)
        if point is None:
            return None
        try:
            command: click.Command = point.load()
        except ModuleNotFoundError as error:
            raise errors.Unavailable(
                f"command {name!r}",
                error.name or "",
                "needs a package that is not installed",
                "run: pip install 'cellwork[all]'",
            ) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Nouns"):
            formatter.write_dl([(name, HELP.get(name, "")) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except errors.CellworkError as error:
            click.echo(f"cellwork: {error}", err=True)
            sys.exit(next((code for kind, code in EXIT.items() if isinstance(error, kind)), 1))


@click.group(cls=Nouns, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cellwork")
def main() -> None:
    """Cellwork: from a notebook cell to a traced prediction.

    Example: cellwork up --demo
    """
