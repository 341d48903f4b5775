"""`cellwork feature`, what reads values: online, rows, and the join of one's own rows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cellwork import errors, files
from cellwork.cli import show

if TYPE_CHECKING:
    import polars as pl

PROJECT = click.option("--project", default="", help="Project; default: that of the current folder.")


@click.command()
@click.argument("features", nargs=-1, required=True)
@click.option(
    "--entity", "entities", multiple=True, required=True, help="KEY=VALUE; one per key, several entities by commas."
)
@PROJECT
@show.as_json
def online(features: tuple[str, ...], entities: tuple[str, ...], project: str, json: bool) -> None:
    """Read the newest values of FEATURES (services, view or view:feature) of some entities.

    Example: cellwork feature online weather --entity origin=JFK,LGA
    """
    from cellwork import features as author

    keys = dict(_entity(text) for text in entities)
    answer = author.read_online(list(features), keys, project)
    if json:
        show.document(answer)
        return
    for view, found in answer.views.items():
        names = sorted({name for value in found for name in value.values})
        rows = [
            (*(column[at] for column in keys.values()), *(value.values.get(name) for name in names), value.event)
            for at, value in enumerate(found)
        ]
        show.table(rows, (*keys, *(f"{view}:{name}" for name in names), "event"))


def _entity(text: str) -> tuple[str, list[str | int]]:
    key, equals, values = text.partition("=")
    if not equals or not values:
        raise errors.BadInput("--entity", text, "is not KEY=VALUE", "write e.g. --entity origin=JFK,LGA")
    return key, [int(value) if value.lstrip("-").isdigit() else value for value in values.split(",")]


@click.command()
@click.argument("view")
@click.option("--batch", default="", help="Only those this batch caused.")
@click.option("--limit", default=20, show_default=True, help="How many.")
@PROJECT
@show.as_json
def rows(view: str, batch: str, limit: int, project: str, json: bool) -> None:
    """Show feature rows of VIEW.

    Example: cellwork feature rows weather --limit 5
    """
    from cellwork import project as projects
    from cellwork.client import connect

    found = connect().features.rows(project or projects.find().name, view, batch=batch, limit=limit)
    if json:
        show.document(found.to_dicts())
        return
    show.table(found.rows(), found.columns, empty="no rows")


@click.command()
@click.argument("rows", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("features", nargs=-1, required=True)
@click.option("--at", default="event_timestamp", show_default=True, help="The column of the time, with a zone.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where the joined rows go, as parquet.")
@click.option("--memory", "memory_mb", type=int, metavar="MB", help="What the join may take; default no limit.")
@click.option("--no-arrival", is_flag=True, help="Take values as known from their event on, whenever they arrived.")
@click.option("--late", is_flag=True, help="Report values that came too late.")
@click.option("--estimate", "only_estimate", is_flag=True, help="Say what it will take, and join nothing.")
@PROJECT
@show.as_json
def join(
    rows: Path, features: tuple[str, ...], at: str, out: Path | None, memory_mb: int | None, no_arrival: bool,
    late: bool, only_estimate: bool, project: str, json: bool,
) -> None:  # fmt: skip
    """Join FEATURES (services, view or view:feature) to the rows of a parquet file, as they were known at each row's time.

    What it will take and how far it is comes on standard error; an interrupt cancels it and writes nothing.

    Example: cellwork feature join departures.parquet weather traffic:delay --at asked --out training.parquet
    """
    from cellwork.features import joins

    frame = _frame(rows)
    if only_estimate:
        told = joins.estimate(frame, features, at=at, project=project, memory_mb=memory_mb)
        show.document(told) if json else click.echo(joins.say_estimate(told))
        return
    if out is None:
        raise click.UsageError("say where the rows go: --out FILE.parquet (or ask for --estimate alone)")
    joined = joins.join(
        frame, features, at=at, project=project, arrival=not no_arrival, late=late, memory_mb=memory_mb,
        tell=None if json else joins.Teller(lambda line: click.echo(line, err=True)),
    )  # fmt: skip
    content = io.BytesIO()
    joined.frame.write_parquet(content)
    files.write(out, content.getvalue())
    if json:
        show.document({"rows": joined.frame.height, "file": str(out), "coverage": joined.coverage, "late": joined.late})
    else:
        click.echo(f"{joined!r}\nwrote {out}")


def _frame(file: Path) -> pl.DataFrame:
    import polars as pl

    try:
        return pl.read_parquet(file)
    except pl.exceptions.PolarsError as error:
        raise errors.BadInput("rows", file, f"are no parquet: {error}", "write the frame with write_parquet") from None
