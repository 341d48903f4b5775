"""`cellwork feature`: apply definitions, follow their pipeline runs, look at values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from cellwork.cli import feature_values, show
from cellwork.cli.feature_values import PROJECT

if TYPE_CHECKING:
    from cellwork.client import Client


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
        said = (
            f"proposed as {applied.proposal}; somebody with features:apply accepts it"
            if applied.proposal
            else f"revision {applied.revision}"
        )
        click.echo(f"{applied.project}: {said}")
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
        return
    for twin in features.near_duplicates(applied):
        used = f", used by {', '.join(twin.used_by)}" if twin.used_by else ""
        click.echo(f"  {twin.feature} nearly repeats {twin.twin} of {twin.owner or 'nobody'}: {twin.reason}{used}")


@feature.command("list")
@PROJECT
@show.as_json
def listing(project: str, json: bool) -> None:
    """List the feature views that are applied, whether they are filled, and the labels.

    Example: cellwork feature list
    """
    from cellwork import features
    from cellwork import project as projects
    from cellwork.client import connect

    name = project or projects.find().name
    views, states = features.views(name), _states(connect(), name)
    labels = features.labels(name)
    if json:
        said = [{**msgspec.to_builtins(v), "kind": "view", "state": states.get(v.name, "ready")} for v in views]
        show.document([*said, *({**msgspec.to_builtins(label), "kind": "label"} for label in labels)])
        return
    show.table(
        [
            (
                v.name,
                ", ".join(v.entities),
                ", ".join(f.name for f in v.fields),
                v.pipeline.rows,
                f"every {v.schedule}" if v.schedule else "with each batch",
                v.ttl or "never",
                v.owner,
                states.get(v.name, "ready"),
            )
            for v in views
        ],
        ("view", "entities", "features", "rows", "computed", "expires", "owner", "state"),
        empty="no views; apply some with: cellwork feature apply",
    )
    if labels:
        click.echo()
        rows = [
            (label.name, label.rows, label.id, label.value, label.owner, label.description[:60]) for label in labels
        ]
        show.table(rows, ("label", "rows", "id", "value", "owner", "description"))


def _states(client: Client, project: str) -> dict[str, str]:
    """Return what is to be said of the views that are not ready; the worst comes last and holds."""
    said: dict[str, str] = {}
    for state in ("queued", "running"):
        for run in client.features.runs(project, state=state):
            said[run.view] = "is being filled"
    for state in ("waiting", "failed"):
        for run in client.features.runs(project, state=state):
            said[run.view] = run.error if state == "waiting" else f"failed: {run.error}"
    return said


@feature.command()
@PROJECT
@click.option("--view", default="", help="Only of this view.")
@click.option("--batch", default="", help="Only those this batch caused.")
@click.option(
    "--state", default="", type=click.Choice(["", "scheduled", "queued", "running", "waiting", "succeeded", "failed"])
)
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
@click.argument("view")
@PROJECT
@show.as_json
def run(view: str, project: str, json: bool) -> None:
    """Compute now what of a view waits for its schedule, or failed.

    Example: cellwork feature run weather
    """
    from cellwork import project as projects
    from cellwork.client import connect

    name = project or projects.find().name
    queued = connect().features.run(name, view)
    if json:
        show.document({"view": view, "queued": queued})
    else:
        click.echo(f"{queued} runs of view '{name}/{view}' are queued; follow them: cellwork feature runs --wait")


@feature.command()
@PROJECT
@show.as_json
def proposals(project: str, json: bool) -> None:
    """List definitions that authors proposed.

    Example: cellwork feature proposals
    """
    from cellwork import project as projects
    from cellwork.client import connect

    found = connect().features.proposals(project or projects.find().name)
    if json:
        show.document(found)
        return
    rows = [(p.id, p.state, p.by, p.at, ", ".join([*p.changed, *(f"-{name}" for name in p.removed)])) for p in found]
    show.table(rows, ("proposal", "state", "by", "at", "changes"), empty="no proposals")


@feature.command()
@click.argument("proposal")
@click.option("--reject", is_flag=True, help="Refuse it instead.")
@PROJECT
@show.as_json
def accept(proposal: str, reject: bool, project: str, json: bool) -> None:
    """Apply the definitions of PROPOSAL (or refuse them).

    Example: cellwork feature accept prop_01jd3v5w2n6q8r9s0t1v2w3x4y
    """
    from cellwork import project as projects
    from cellwork.client import connect

    decided = connect().features.decide(project or projects.find().name, proposal, accept=not reject)
    if json:
        show.document(decided)
        return
    click.echo(f"{decided.id}: {decided.state}")


@feature.command()
@click.option("--write", "writes", is_flag=True, help="Write it beside cellwork.toml instead of printing it.")
@show.as_json
def store(writes: bool, json: bool) -> None:
    """Print the feature_store.yaml by which Feast's own commands and clients use this project.

    Example: cellwork feature store --write
    """
    from cellwork import files
    from cellwork import project as projects
    from cellwork.features import feast_store

    project = projects.find()
    content = feast_store.configuration(project.name)
    if writes:
        files.write(project.folder / feast_store.FILE, content)
    if json:
        show.document({"file": feast_store.FILE, "content": content})
        return
    click.echo(f"wrote {project.folder / feast_store.FILE}" if writes else content)


@feature.command()
@click.argument("views", nargs=-1)
@click.option(
    "--start", default="", help="Only values true after this time (ISO 8601); default: where the last one ended."
)
@click.option("--end", default="", help="Only values true until this time; default now, never later.")
@PROJECT
@show.as_json
def materialize(views: tuple[str, ...], start: str, end: str, project: str, json: bool) -> None:
    """Write the newest values of VIEWS (default: all that are online) from the feature tables online again.

    Pipelines and pushes write online as they go; this is for a store that was lost or emptied. A view of which the store has nothing
    is written whole, from the beginning until now.

    Example: cellwork feature materialize weather --start 2013-01-01T00:00:00Z
    """
    from cellwork import clock
    from cellwork import project as projects
    from cellwork.client import connect
    from cellwork.wire.features import MaterializeRequest

    asked = MaterializeRequest(
        project=project or projects.find().name,
        views=list(views),
        start=clock.utc(start) if start else None,
        end=clock.utc(end) if end else None,
    )
    done = connect().features.materialize(asked)
    if json:
        show.document(done)
        return
    rows = [(m.view, m.start or "the beginning", m.end, m.rows, m.entities, m.written) for m in done]
    show.table(rows, ("view", "after", "until", "rows", "entities", "newer than before"), empty="no view is online")


@feature.command()
@click.argument("topic")
@click.option("--kafka", default="", help="Brokers of Kafka, host:port by commas.")
@click.option("--redis", default="", help="Address of a Redis, redis://host:port/db; TOPIC is a stream of it.")
@click.option("--view", default="", help="Push the messages to this view.")
@click.option("--dataset", default="", help="Ingest the messages as batches of this raw data set.")
@click.option(
    "--group", default="cellwork", show_default=True, help="Name under which the broker remembers what was taken."
)
@click.option("--seconds", type=float, default=0, help="Stop after that long; default never.")
@PROJECT
@show.as_json
def consume(
    topic: str, kafka: str, redis: str, view: str, dataset: str, group: str, seconds: float, project: str, json: bool
) -> None:
    """Take messages of TOPIC, a JSON object each, into a view or a raw data set until stopped.

    What is delivered twice counts once. A message that is no row is set aside, and told at once; so are messages that a declared
    check of the data set holds back (see: cellwork data held).

    Example: cellwork feature consume clicks --kafka localhost:9092 --view clicks
    """
    import time

    from cellwork import project as projects
    from cellwork.client import connect
    from cellwork.features import brokers, streams

    if bool(kafka) == bool(redis) or bool(view) == bool(dataset):
        raise click.UsageError("name one of --kafka and --redis, and one of --view and --dataset")
    name, client = project or projects.find().name, connect()
    deliver = streams.to_view(client, name, view) if view else streams.to_dataset(client, name, dataset)
    broker = brokers.Kafka(kafka, topic, group) if kafka else brokers.RedisStream(redis, topic, group)
    end = time.monotonic() + seconds if seconds else float("inf")
    try:
        count = streams.consume(
            broker,
            deliver,
            stop=lambda: time.monotonic() > end,
            refused=lambda words: click.echo(f"set aside: {words}", err=True),
        )
    finally:
        broker.close()
    if json:
        show.document({"messages": count.messages, "rows": count.rows, "aside": count.aside, "refused": count.refused})
        return
    click.echo(f"{count.messages} messages, {count.rows} rows taken, {count.aside} set aside")


for command in (feature_values.online, feature_values.rows, feature_values.join):
    feature.add_command(command)
