"""`cellwork feature`: apply definitions, follow their pipeline runs, look at values."""

from __future__ import annotations

import click

from cellwork import errors
from cellwork.cli import show

PROJECT = click.option("--project", default="", help="Project; default: that of the current folder.")


@click.group()
def feature() -> None:
    """Features: apply definitions, look at views, read online.

    Example: cellwork feature apply --wait
    """


@feature.command()
@click.option("--wait", "waits", is_flag=True, help="Return when all pipelines are done.")
@show.as_json
def apply(waits: bool, json: bool) -> None:
    """Send the definitions of the current folder's project; what is the same changes nothing.

    Example: cellwork feature apply --wait
    """
    from cellwork import features

    applied = features.apply()
    if not json:
        click.echo(f"{applied.project}: revision {applied.revision}")
        for name in applied.changed:
            click.echo(f"  new or changed: {name}")
        for name in applied.removed:
            click.echo(f"  removed: {name}")
        if not applied.changed and not applied.removed:
            click.echo("  nothing changed")
    if waits:
        features.wait(applied.project, progress=None if json else click.echo)
    if json:
        show.document(applied)


@feature.command("list")
@PROJECT
@show.as_json
def listing(project: str, json: bool) -> None:
    """List the feature views that are applied.

    Example: cellwork feature list
    """
    from cellwork import features

    views = features.views(project)
    if json:
        show.document(views)
        return
    show.table(
        [
            (
                v.name,
                ", ".join(v.entities),
                ", ".join(f.name for f in v.fields),
                v.pipeline.rows,
                v.ttl or "never",
                v.owner,
            )
            for v in views
        ],
        ("view", "entities", "features", "rows", "expires", "owner"),
        empty="no views; apply some with: cellwork feature apply",
    )


@feature.command()
@PROJECT
@click.option("--view", default="", help="Only of this view.")
@click.option("--batch", default="", help="Only those this batch caused.")
@click.option("--state", default="", type=click.Choice(["", "queued", "running", "succeeded", "failed"]))
@click.option("--limit", default=50, show_default=True, help="How many of the newest.")
@click.option("--wait", "waits", is_flag=True, help="First wait until none is open.")
@show.as_json
def runs(project: str, view: str, batch: str, state: str, limit: int, waits: bool, json: bool) -> None:
    """List pipeline runs, newest last; each made the feature rows that one batch caused in one view.

    Example: cellwork feature runs --state failed
    """
    from cellwork import features
    from cellwork import project as projects
    from cellwork.client import connect

    name = project or projects.find().name
    if waits:
        features.wait(name, progress=None if json else click.echo)
    found = list(connect().features.runs(name, view=view, batch=batch, state=state))[-limit:]
    if json:
        show.document(found)
        return
    show.table(
        [(r.view, r.batch, r.state, r.rows, r.seconds, r.at, r.error) for r in found],
        ("view", "batch", "state", "rows", "seconds", "at", "error"),
        empty="no runs",
    )


@feature.command()
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


@feature.command()
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
