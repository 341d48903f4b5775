"""`cellwork why ID`: where it comes from, or what was made of it."""

from __future__ import annotations

import click

from cellwork import lineage
from cellwork.cli import show
from cellwork.client import connect


@click.command()
@click.argument("id")
@click.option("--forward", is_flag=True, help="What was made of it, instead of where it comes from.")
@show.as_json
def why(id: str, forward: bool, json: bool) -> None:
    """Where ID comes from, as it was then: prediction, deployment, version, training run and cell, dataset, raw batches.

    ID is a prediction, deployment, evaluation, dataset, feature set, batch or run, a version project/name@3, or
    project/endpoint#observation.

    Example: cellwork why pred_01jd3v5w2n6q8r9s0t1v2w3x4y
    """
    trail = lineage.why(connect(), id, forward=forward)
    if json:
        return show.document(trail)
    return click.echo(str(trail))
