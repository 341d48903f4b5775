"""`cellwork batch`: ingest raw data, list its batches, read rows."""

from __future__ import annotations

from pathlib import Path

import click

from cellwork.cli import show
from cellwork.wire.batches import Ingested

PROJECT = click.option("--project", help="Project of a short name; default: that of the current folder.")


@click.group()
def batch() -> None:
    """Raw data: immutable batches.

    Example: cellwork batch list flights
    """


@batch.command()
@click.argument("dataset")
@click.argument("file")
@click.option("--partition", default="", help="What the file is the data of, such as 2013-01; default: its name.")
@click.option(
    "--null", "nulls", multiple=True, default=("",), help="A text that stands for a missing value; may be repeated."
)
@click.option(
    "--text", "texts", multiple=True, help="A column to read as text, whatever it looks like; may be repeated."
)
@PROJECT
@show.as_json
def ingest(
    dataset: str,
    file: str,
    partition: str,
    nulls: tuple[str, ...],
    texts: tuple[str, ...],
    project: str | None,
    json: bool,
) -> None:
    """Send FILE (CSV, JSON lines or parquet, compressed or not; a path, a URL, or a folder of them) as batches of DATASET.

    Example: cellwork batch ingest flights flights-2013-01.csv.gz --partition 2013-01 --null NA
    """
    from cellwork import data
    from cellwork.data.ingest import partition_of

    reading = {"nulls": nulls, "types": dict.fromkeys(texts, "string")}
    if Path(file).is_dir():
        taken = data.ingest_folder(dataset, file, project=project, **reading)
    else:
        taken = [data.ingest(dataset, file, partition or partition_of(file), project=project, **reading)]  # type: ignore[arg-type]
    if json:
        show.document(taken if Path(file).is_dir() else taken[0])
        return
    for each in taken:
        _tell(each)


def _tell(taken: Ingested) -> None:
    one = taken.batch
    said = "is there already" if not taken.new else f"corrects {one.supersedes}" if one.supersedes else "is new"
    click.echo(f"{one.id} {said}: {one.project}/{one.dataset} {one.partition}, {one.rows:,} rows")
    if one.superseded_by:
        click.echo(f"It was corrected by {one.superseded_by}, which stays the current one.")
    if one.rejected:
        click.echo(f"{one.rejected:,} rows are in quarantine; see why: cellwork batch rejected {one.id}")


@batch.command("list")
@click.argument("dataset")
@click.option("--all", "everything", is_flag=True, help="Also batches that were corrected.")
@PROJECT
@show.as_json
def listing(dataset: str, everything: bool, project: str | None, json: bool) -> None:
    """List the batches of DATASET, oldest first.

    Example: cellwork batch list flights --all
    """
    from cellwork import data

    found = data.batches(dataset, current=not everything, project=project)
    if json:
        show.document(found)
        return
    rows = [(b.seq, b.partition, b.id, b.rows, b.rejected, b.sealed, b.superseded_by, b.at) for b in found]
    show.table(rows, ("seq", "partition", "id", "rows", "rejected", "sealed for", "corrected by", "at"))


@batch.command("show")
@click.argument("batch_id", metavar="BATCH")
@show.as_json
def describe(batch_id: str, json: bool) -> None:
    """Show one batch: its columns with their statistics.

    Example: cellwork batch show bat_01…
    """
    from cellwork.client import connect

    found = connect().batches.get(batch_id)
    if json:
        show.document(found)
        return
    click.echo(
        f"{found.id}  {found.project}/{found.dataset} {found.partition}: {found.rows:,} rows, {found.rejected:,} rejected"
    )
    click.echo(
        f"by {found.origin.user or 'unknown'} at {show.text(found.at)}"
        + (f", sealed for {found.sealed}" if found.sealed else "")
    )
    types = {column.name: column.type for column in found.columns}
    rows = [(s.name, types[s.name], s.nulls, s.distinct, s.min, s.max, s.mean) for s in found.statistics]
    show.table(rows, ("column", "type", "nulls", "distinct", "min", "max", "mean"))


@batch.command()
@click.argument("dataset")
@click.option("--batch", "batch_id", default="", help="Only this batch.")
@click.option("--as-of", default="", help="As it was when this batch was the newest.")
@click.option("--limit", default=20, show_default=True, help="At most so many rows.")
@PROJECT
@show.as_json
def rows(dataset: str, batch_id: str, as_of: str, limit: int, project: str | None, json: bool) -> None:
    """Print rows of DATASET; what is sealed is empty.

    Example: cellwork batch rows flights --limit 5
    """
    from cellwork import data

    _print(data.rows(dataset, batch=batch_id, as_of=as_of, limit=limit, project=project).to_dicts(), json)


@batch.command()
@click.argument("batch_id", metavar="BATCH")
@show.as_json
def rejected(batch_id: str, json: bool) -> None:
    """Print the rows of BATCH that are in quarantine, and why.

    Example: cellwork batch rejected bat_01…
    """
    from cellwork import data

    _print(data.rejected(batch_id).to_dicts(), json)


def _print(found: list[dict[str, object]], json: bool) -> None:
    if json:
        show.document(found)
    else:
        show.table([list(row.values()) for row in found], list(found[0]) if found else [], empty="no rows")
