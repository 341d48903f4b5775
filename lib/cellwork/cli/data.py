"""`cellwork data`: what is in raw data sets and feature views, and what checks held back."""

from __future__ import annotations

import click

from cellwork.cli import show

PROJECT = click.option("--project", help="Project of a short name; default: that of the current folder.")
REASON = click.option("--reason", required=True, help="Why; it goes into the audit.")


@click.group()
def data() -> None:
    """Look into data: statistics, SQL, held deliveries.

    Example: cellwork data describe flights
    """


@data.command()
@click.argument("name")
@click.option("--view", is_flag=True, help="NAME is a feature view.")
@click.option("--batch", "batch_id", default="", help="Only this batch.")
@click.option("--as-of", default="", help="As it was when this batch was the newest, or at this time.")
@PROJECT
@show.as_json
def describe(name: str, view: bool, batch_id: str, as_of: str, project: str | None, json: bool) -> None:
    """Print the statistics of a raw data set or view NAME; no row is read for it.

    Example: cellwork data describe flights --as-of 2013-06-01T00:00:00Z
    """
    from cellwork import data as library

    found = library.describe(name, batch=batch_id, as_of=as_of, view=view, project=project)
    if json:
        show.document(found)
        return
    click.echo(f"{found.project}/{found.name}: {found.rows:,} rows in {found.batches:,} batches, {found.bytes:,} bytes")
    for word, text in (("owner", found.owner), ("is", found.description), ("read by", ", ".join(found.used_by))):
        if text:
            click.echo(f"{word} {text}")
    if found.newest:
        click.echo(f"newest batch {show.text(found.newest)}")
    rows = [
        (c.name, c.kind, c.nulls, c.distinct if c.exact else f"~{show.text(c.distinct)}", *(_short(value) for value in (c.min, c.max, c.mean, c.deviation)),
         _short(c.quantiles[2] if c.quantiles else None), ", ".join(f"{f.text} ({f.rows:,})" for f in c.frequent[:3]))
        for c in found.columns
    ]  # fmt: skip
    show.table(rows, ("column", "kind", "nulls", "distinct", "min", "max", "mean", "deviation", "median", "frequent"))


def _short(value: str | float | None) -> str | None:
    """Return a number with six digits, whole ones without a point; texts cut."""
    return value[:32] if isinstance(value, str) else None if value is None else f"{value:,.6g}"


@data.command()
@click.argument("dataset")
@PROJECT
@show.as_json
def held(dataset: str, project: str | None, json: bool) -> None:
    """List deliveries of DATASET that a check held back.

    Example: cellwork data held flights
    """
    from cellwork import data as library

    found = library.held(dataset, project=project)
    if json:
        show.document(found)
        return
    rows = [
        (
            h.partition,
            h.id,
            h.rows,
            h.at,
            "; ".join(f"{c.check}: not in {c.failed:,}" for c in h.checks if not c.passed),
        )
        for h in found
    ]
    show.table(rows, ("partition", "delivery", "rows", "at", "failed"), empty="nothing is held back")


@data.command()
@click.argument("dataset")
@click.argument("delivery")
@REASON
@PROJECT
@show.as_json
def release(dataset: str, delivery: str, reason: str, project: str | None, json: bool) -> None:
    """Publish a held DELIVERY of DATASET whole, whatever the checks say.

    Example: cellwork data release flights bat_01… --reason "the airport was closed that day"
    """
    from cellwork import data as library

    taken = library.release(dataset, delivery, reason, project=project)
    if json:
        show.document(taken)
    else:
        click.echo(f"{taken.batch.id} is published: {taken.batch.partition}, {taken.batch.rows:,} rows")


@data.command()
@click.argument("dataset")
@click.argument("delivery")
@REASON
@PROJECT
@show.as_json
def discard(dataset: str, delivery: str, reason: str, project: str | None, json: bool) -> None:
    """Drop a held DELIVERY of DATASET.

    Example: cellwork data discard flights bat_01… --reason "sent twice by mistake"
    """
    from cellwork import data as library

    dropped = library.discard(dataset, delivery, reason, project=project)
    if json:
        show.document(dropped)
    else:
        click.echo(f"{dropped.id} is dropped: {dropped.partition}, {dropped.rows:,} rows")


@data.command()
@click.argument("statement")
@click.option("--as-of", default="", help="As it was when this batch was the newest, or at this time.")
@click.option("--limit", default=100, show_default=True, help="At most so many rows.")
@click.option("--out", type=click.Path(dir_okay=False), help="Write the rows into this parquet file.")
@PROJECT
@show.as_json
def sql(statement: str, as_of: str, limit: int, out: str | None, project: str | None, json: bool) -> None:
    """Run one SELECT (DuckDB's SQL) over the raw data sets of a project, tables of their names.

    Example: cellwork data sql "SELECT carrier, avg(dep_delay) FROM flights GROUP BY 1" --as-of 2013-06-01T00:00:00Z
    """
    from cellwork.client import connect
    from cellwork.data.ingest import located

    found, more = connect().batches.sql(located("any", project)[0], statement, as_of=as_of, limit=limit)
    if out:
        found.write_parquet(out)
        click.echo(f"{found.height:,} rows are in {out}")
    elif json:
        show.document(found.to_dicts())
    else:
        show.table(found.rows(), found.columns, empty="no rows")
    if more:
        click.echo(f"There are more than {limit:,} rows: raise --limit, or narrow the statement.", err=True)


@data.command()
@click.argument("subject")
@REASON
@PROJECT
@click.option("--yes", is_flag=True, help="Do not ask.")
@show.as_json
def erase(subject: str, reason: str, project: str | None, yes: bool, json: bool) -> None:
    """Erase SUBJECT from all raw batches, features, online values and logged predictions of a project; it can't be undone.

    Rows of datasets built before, and predictions, are emptied where something names the subject; outcomes and feedback of those go. Says
    which places were rewritten and which were not, with what to do about those. The tombstone says it too; it does not say who the subject
    was. An erasure whose services are not all there waits, and is tried again by itself: `cellwork data erasures`.

    Example: cellwork data erase user-1234 --reason "request of 2 May" --yes
    """
    from cellwork.client import connect
    from cellwork.data.ingest import located

    space = located("any", project)[0]
    if not yes:
        click.confirm(f"Erase {subject!r} from every batch of {space}, for good?", abort=True)
    done = connect().batches.erase(space, subject, reason)
    if json:
        show.document(done)
        return
    counts = [f"{count:,} rows of {name}" for name, count in done.rows.items()]
    counts += [f"{done.predictions:,} predictions"] if done.predictions else []
    click.echo(f"{done.id}: {', '.join(counts) or 'nothing was there'}")
    if done.state == "waiting":
        click.echo(f"NOT FINISHED: it waits and is tried again by itself: {done.waits_for}")
        click.echo("    look how it stands: cellwork data erasures")
    for words, places in (("rewritten", done.rewritten), ("NOT touched", done.untouched)):
        for place in places:
            names = f" ({', '.join(place.names)})" if place.names else ""
            click.echo(f"{words}: {place.what}{names}: {place.said}")
            if place.way_out:
                click.echo(f"    {place.way_out}")


@data.command()
@PROJECT
@show.as_json
def erasures(project: str | None, json: bool) -> None:
    """List the erasures of a project, those that wait too; none says who the subject was.

    Example: cellwork data erasures --project shop
    """
    from cellwork.client import connect
    from cellwork.data.ingest import located

    found = connect().batches.erasures(located("any", project)[0])
    if json:
        show.document(found)
        return
    head = ("erasure", "at", "state", "rows", "predictions", "by", "reason", "waits for")
    rows = [
        (e.id, e.at, e.state, sum(e.rows.values()), e.predictions, e.by, e.reason, e.waits_for if e.state == "waiting" else "")
        for e in found
    ]  # fmt: skip
    show.table(rows, head, empty="none")


@data.command()
@click.argument("dataset")
@click.argument("folder", type=click.Path())
@click.option("--every", default=10.0, show_default=True, help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Look until all that is there is sent, then end.")
@click.option("--null", "nulls", multiple=True, default=("",), help="A text that stands for a missing value.")
@PROJECT
def watch(dataset: str, folder: str, every: float, once: bool, nulls: tuple[str, ...], project: str | None) -> None:
    """Send each file that comes into FOLDER, or changes there, as the batch of DATASET that its name tells.

    A file is sent when it did not change between two looks. One that can't be taken is named, and tried again when it changes.

    Example: cellwork data watch flights ./inbox --every 30
    """
    from cellwork.data.watch import Folder

    looking = Folder(dataset, folder, project=project, nulls=nulls)
    looking.follow(every=min(every, 0.5) if once else every, tell=click.echo, once=once)
    if looking.refused:
        raise click.exceptions.Exit(1)


@data.command()
@click.argument("dataset")
@PROJECT
@show.as_json
def compact(dataset: str, project: str | None, json: bool) -> None:
    """Put small files of DATASET together, batch by batch, and drop what no batch needs any more.

    Example: cellwork data compact flights
    """
    from cellwork.client import connect
    from cellwork.data.ingest import located

    done = connect().batches.compact(*located(dataset, project))
    if json:
        show.document(done)
    else:
        click.echo(
            f"{done.files_before:,} files, {done.bytes_before:,} bytes are now {done.files:,} files, {done.bytes:,} bytes"
        )
