"""`cellwork why ID`: where it comes from, or what was made of it."""

from __future__ import annotations

import click

from cellwork import lineage
from cellwork.cli import show
from cellwork.client import connect
from cellwork.wire.skew import Recomputed


@click.command()
@click.argument("id")
@click.option("--forward", is_flag=True, help="What was made of it, instead of where it comes from.")
@click.option(
    "--recompute",
    is_flag=True,
    help="Of a prediction: make its features anew from the raw batches they name, and compare.",
)
@show.as_json
def why(id: str, forward: bool, recompute: bool, json: bool) -> None:
    """Where ID comes from, as it was then: prediction, deployment, version, training run and cell, dataset, raw batches.

    ID is a prediction, deployment, evaluation, dataset, feature set, batch or run, a version project/name@3, or
    project/endpoint#observation.

    Example: cellwork why pred_01jd3v5w2n6q8r9s0t1v2w3x4y
    """
    if recompute:
        found = lineage.recompute(connect(), id)
        return show.document(found) if json else _recomputed(found)
    trail = lineage.why(connect(), id, forward=forward)
    if json:
        return show.document(trail)
    return click.echo(str(trail))


def _recomputed(found: Recomputed) -> None:
    """Print what came of the features of a prediction, a line a view."""
    for view in found.views:
        said = "the same, bit for bit" if view.same else view.words
        click.echo(f"{view.view}  {show.text(view.event)}  {view.batch}  {said}")
    if not found.views:
        click.echo("no feature of it came from a batch")
