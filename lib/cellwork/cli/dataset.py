"""`cellwork dataset`: build training frames and look at them."""

from __future__ import annotations

from pathlib import Path

import click

from cellwork.cli import show
from cellwork.cli.batch import PROJECT


@click.group()
def dataset() -> None:
    """Training frames: observations joined with what was known at each one's time.

    Example: cellwork dataset list
    """


@dataset.command()
@click.argument("name")
@click.option("--observations", required=True, help="Name of the observations, as the definitions have it.")
@click.option(
    "--feature",
    "features",
    multiple=True,
    required=True,
    help="Feature service, view or view:feature; may be repeated.",
)
@click.option("--start", required=True, help="First time taken, with a zone; a date is its midnight in UTC.")
@click.option("--end", required=True, help="First time not taken any more.")
@click.option("--labels/--no-labels", default=True, help="With or without the truth.")
@click.option("--label", default="", help="The label of that name; default: the observations' own.")
@click.option("--batch", "batch_id", default="", help="Only observations of this batch.")
@click.option("--memory", "memory_mb", type=int, metavar="MB", help="What the join may take; default no limit.")
@click.option("--estimate", "only_estimate", is_flag=True, help="Say what it will take, and build nothing.")
@PROJECT
@show.as_json
def build(
    name: str,
    observations: str,
    features: tuple[str, ...],
    start: str,
    end: str,
    labels: bool,
    label: str,
    batch_id: str,
    memory_mb: int | None,
    only_estimate: bool,
    project: str | None,
    json: bool,
) -> None:
    """Build the dataset NAME, or find the one that the same request made before.

    What it will take and how far it is comes on standard error; an interrupt cancels it.

    Example: cellwork dataset build training --observations departures --feature delay_v1 --start 2013-01-01 --end 2013-09-01
    """
    from cellwork.data import dataset as datasets
    from cellwork.features import joins

    if only_estimate:
        told = datasets.estimate(
            name, observations=observations, features=features, start=start, end=end, batch=batch_id, project=project, memory_mb=memory_mb
        )  # fmt: skip
        show.document(told) if json else click.echo(joins.say_estimate(told))
        return
    made = datasets.build(
        name, observations=observations, features=features, start=start, end=end, labels=labels and (label or True), batch=batch_id, project=project,
        memory_mb=memory_mb, tell=None if json else joins.Teller(lambda line: click.echo(line, err=True)),
    )  # fmt: skip
    if json:
        show.document(made.record)
    else:
        click.echo(repr(made))


@dataset.command("list")
@PROJECT
@show.as_json
def listing(project: str | None, json: bool) -> None:
    """List the project's datasets, oldest first.

    Example: cellwork dataset list --project flights
    """
    from cellwork.data import dataset as datasets

    found = datasets.listing(project)
    if json:
        show.document(found)
        return
    rows = [(d.name, d.id, d.rows, d.labelled, len(d.features), d.start, d.end, d.at) for d in found]
    show.table(rows, ("name", "id", "rows", "labelled", "features", "start", "end", "built at"))


@dataset.command()
@click.argument("dataset_id", metavar="DATASET")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@show.as_json
def save(dataset_id: str, file: Path, json: bool) -> None:
    """Write the rows of DATASET to FILE, as parquet; they are never in memory all at once.

    Example: cellwork dataset save ds_01jd3v5w2n6q8r9s0t1v2w3x4y training.parquet
    """
    from cellwork.data import dataset as datasets

    found = datasets.get(dataset_id)
    found.save(file)
    if json:
        show.document({"dataset": found.id, "rows": len(found), "file": str(file)})
    else:
        click.echo(f"wrote {len(found):,} rows to {file}")


@dataset.command("show")
@click.argument("dataset_id", metavar="DATASET")
@show.as_json
def describe(dataset_id: str, json: bool) -> None:
    """Show one dataset: what it was made of and how well its features were covered.

    Example: cellwork dataset show ds_01…
    """
    from cellwork.data import dataset as datasets

    found = datasets.get(dataset_id)
    if json:
        show.document(found.record)
    else:
        click.echo(repr(found))
