"""`cellwork endpoint`: what is served, deploying and rolling back, asking, the prediction log."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click
import msgspec

from cellwork import serving
from cellwork.cli import endpoint_topic, routes, show
from cellwork.client import connect
from cellwork.errors import BadInput, Unavailable
from cellwork.wire.endpoints import EndpointStatus, Explanation
from cellwork.wire.evaluations import VersionRef


@click.group()
def endpoint() -> None:
    """Endpoints: deploy, roll back, predict.

    Example: cellwork endpoint predict flights/delay -e origin=JFK -f hour=8
    """


for _command in (*routes.COMMANDS, endpoint_topic.consume):
    endpoint.add_command(_command)


@endpoint.command("list")
@show.as_json
def list_(json: bool) -> None:
    """Every endpoint with what it serves.

    Example: cellwork endpoint list
    """
    found = list(connect().endpoints.list())
    if json:
        return show.document(found)
    rows = [
        (s.routes.endpoint, s.routes.live.version, _number(s.routes.previous), s.ready, s.requests, s.errors, s.p50_ms, s.p99_ms)
        for s in found
    ]  # fmt: skip
    return show.table(rows, ("endpoint", "version", "previous", "ready", "requests", "errors", "p50 ms", "p99 ms"))


@endpoint.command("show")
@click.argument("name", metavar="PROJECT/NAME")
@show.as_json
def show_(name: str, json: bool) -> None:
    """One endpoint: its versions, its features, the checks its version passed.

    Example: cellwork endpoint show flights/delay
    """
    client = connect()
    status = client.endpoints.get(name)
    deployment = client.endpoints.deployment(status.routes.deployment)
    if json:
        return show.document({"status": status, "deployment": deployment})
    show.table(_facts(status), ("what", "value"))
    click.echo(f"\n{deployment.id}, {show.text(deployment.at)}, by {deployment.by}")
    for line in deployment.checks:
        click.echo(f"  {line}")
    return None


@endpoint.command()
@click.argument("name", metavar="PROJECT/NAME")
@click.argument("version", type=int)
@click.option("--model", default="", help="Full name of the model; default the endpoint's own.")
@click.option("--promote", is_flag=True, help="Move the model's alias `champion` to the version first.")
@click.option("--revision", type=int, help="The revision you saw; if it changed since, nothing happens.")
@click.option("--reason", default="", help="Why; it stands in the audit.")
@show.as_json
def deploy(name: str, version: int, model: str, promote: bool, revision: int | None, reason: str, json: bool) -> None:
    """Give an endpoint a version that passes the gate and the sanity test; exit code 3 if it does not.

    Example: cellwork endpoint deploy flights/delay 2 --reason "better on november"
    """
    routes.changed(serving.deploy(name, version, model=model, promote=promote, revision=revision, reason=reason), json)


@endpoint.command()
@click.argument("name", metavar="PROJECT/NAME")
@click.option("--reason", default="", help="Why; it stands in the audit.")
@show.as_json
def rollback(name: str, reason: str, json: bool) -> None:
    """Serve the previous version again.

    Example: cellwork endpoint rollback flights/delay --reason "scores too high"
    """
    routes.changed(serving.rollback(name, reason), json)


@endpoint.command()
@click.argument("name", metavar="PROJECT/NAME")
@click.option(
    "-e", "--entity", "entities", multiple=True, metavar="KEY=ID", help="A join key and its id, looked up online."
)
@click.option(
    "-f", "--feature", "features", multiple=True, metavar="NAME=VALUE", help="A value that comes with the request."
)
@click.option("--id", default="", help="Idempotency key: the same id gets the same answer.")
@click.option("--unit", default="", help="Who is served, such as a user's id: stays with its version.")
@click.option("--version", type=int, help="Ask this version of those at hand, and no other.")
@click.option("--observation", default="", help="Alone: what a batch has scored of this observation.")
@click.option("--explain", is_flag=True, help="Say what each column contributed.")
@show.as_json
def predict(
    name: str, entities: tuple[str, ...], features: tuple[str, ...], json: bool, observation: str, **asked: Any
) -> None:
    """Score one row. Values are JSON where they can be read as such, else text.

    Example: cellwork endpoint predict flights/delay -e origin=JFK -e carrier=UA -f hour=8
    """
    precomputed = observation and not entities and not features
    row = ((), ()) if precomputed else (_pairs(entities), _pairs(features))
    answer = serving.predict(name, *row, observations=[observation] if precomputed else [], **asked)
    if json:
        return show.document(answer)
    output = answer.outputs[0]
    click.echo(f"{output.score:.4f} by version {answer.model.version} ({answer.route}) in {answer.latency_ms:.1f} ms")
    if answer.reason:
        click.echo(f"the version asked first {answer.reason}" if answer.route == "fallback" else answer.reason)
    if output.defaults:
        click.echo(f"no value for: {', '.join(output.defaults)}")
    if output.explanation:
        _say_explanation(output.explanation)
    return click.echo(f"cellwork why {output.id}")


@endpoint.command()
@click.argument("name", metavar="PROJECT/NAME")
@click.argument("table", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--observation", required=True, metavar="COLUMN", help="The table's column that names its rows.")
@click.option("--threads", default=0, help="Row groups at once; default: one a core.")
@click.option("--dask", default="", metavar="ADDRESS", help="Score on the workers of this Dask cluster, which see the same files.")  # fmt: skip
@show.as_json
def score(name: str, table: Path, folder: Path, observation: str, threads: int, dask: str, json: bool) -> None:
    """Score a Parquet table by the version an endpoint serves; the answers have the columns of the prediction log.

    \b
    The answers appear in FOLDER, one file a row group, each whole or not at all. Called again it goes on with what is missing; a
    folder that holds answers of another table or version is refused.

    Example: cellwork endpoint score flights/delay rows.parquet answers --observation flight
    """
    from cellwork.serving.precomputed import score_table

    with contextlib.ExitStack() as opened:
        cluster = opened.enter_context(_cluster(dask)) if dask else None
        scored = score_table(name, table, folder, observation=observation, threads=threads, cluster=cluster)
    if json:
        return show.document(scored)
    already = f", {scored.skipped} of its {scored.parts} parts were there" if scored.skipped else ""
    return click.echo(f"{scored.rows:,} rows scored into {folder}{already}")


def _cluster(address: str) -> Any:
    from distributed import Client

    try:
        return Client(address, timeout=20)
    except OSError as error:
        raise Unavailable("Dask scheduler", address, f"does not answer ({error})", "name the address it prints, such as tcp://host:8786") from None  # fmt: skip


@endpoint.command()
@click.argument("name", metavar="PROJECT/NAME")
@click.option("-n", "--last", default=10, show_default=True, type=click.IntRange(1, 10_000), help="How many.")
@show.as_json
def log(name: str, last: int, json: bool) -> None:
    """The last predictions of an endpoint.

    Example: cellwork endpoint log flights/delay -n 20
    """
    found = connect().endpoints.predictions(name, after=-last, limit=last)
    if json:
        return show.document(found)
    rows = [
        (p.id, p.at, p.observation, "erased" if p.erased else p.score, p.version.version, p.route, p.caller)
        for p in found
    ]
    return show.table(rows, ("prediction", "for", "observation", "score", "version", "route", "caller"))


def _say_explanation(told: Explanation) -> None:
    click.echo(f"{told.base:+.4f}  base ({told.scale})")
    for name, part in sorted(told.contributions.items(), key=lambda each: -abs(each[1])):
        click.echo(f"{part:+.4f}  {name}")


def _facts(status: EndpointStatus) -> list[tuple[str, Any]]:
    table = status.routes
    return [
        ("endpoint", table.endpoint), ("revision", table.revision),
        ("live", f"{table.live.name}@{table.live.version}, digest {table.live.digest[:12]}"),
        ("previous", _number(table.previous)), *routes.beside(table), ("ready", status.ready), ("breaker", (status.breaker and f"open: it {status.breaker}") or "closed"), ("computed by", status.predictor),
        ("looked up", ", ".join(table.service) or "nothing"), ("columns", ", ".join(status.columns)),
        ("requests", status.requests), ("errors", status.errors), ("p50 ms", status.p50_ms), ("p99 ms", status.p99_ms),
    ]  # fmt: skip


def _number(ref: VersionRef | None) -> int | None:
    return ref.version if ref else None


def _pairs(texts: tuple[str, ...]) -> dict[str, Any]:
    """Return the values of ``name=value`` texts."""
    pairs: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise BadInput("value", text, "has no '='", "write name=value")
        try:
            pairs[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            pairs[name] = value
    return pairs
