"""`cellwork model`: registered versions, their evaluations, the gate, promotion."""

from __future__ import annotations

from pathlib import Path

import click

from cellwork import project as projects
from cellwork.cli import gate, show
from cellwork.client import connect
from cellwork.evaluation.compare import report
from cellwork.models import card, versions
from cellwork.wire.evaluations import EvaluationRequest


@click.group()
def model() -> None:
    """Registered models: evaluate, promote, roll back.

    Example: cellwork model gate flights/delay@2
    """


@model.command("list")
@click.option("--project", default="", help="Default: the project of this folder.")
@show.as_json
def list_(project: str, json: bool) -> None:
    """Every version of every model of a project, newest first.

    Example: cellwork model list --project flights
    """
    found = versions.of_project(connect(), project or projects.find().name)
    if json:
        return show.document(found)
    rows = [
        (
            v.name,
            v.version,
            ", ".join(v.aliases),
            v.tags.get("dataset", ""),
            v.tags.get("notebook", ""),
            v.digest[:12],
            v.at,
        )
        for v in found
    ]
    return show.table(rows, ("model", "version", "aliases", "dataset", "notebook", "digest", "registered"))


@model.command("show")
@click.argument("version", metavar="PROJECT/NAME@VERSION")
@show.as_json
def show_(version: str, json: bool) -> None:
    """One version: where it comes from, and its evaluations.

    Example: cellwork model show flights/delay@2
    """
    client = connect()
    name, number = versions.parse(version)
    found = versions.get(client, name, number)
    found.aliases = sorted(alias for alias, at in versions.aliases(client, name).items() if at == number)
    evaluations = list(client.evaluations.list(name, number))
    if json:
        return show.document({"version": found, "evaluations": evaluations})
    show.table(
        [("aliases", ", ".join(found.aliases)), ("training run", found.run), *sorted(found.tags.items())],
        ("what", "value"),
    )
    for evaluation in evaluations:
        click.echo(f"\n{evaluation.id}, {show.text(evaluation.at)}\n{report(evaluation)!r}")
    return None


@model.command()
@click.argument("version", metavar="PROJECT/NAME@VERSION")
@click.option("--holdout", required=True, help="The sealed holdout to ask.")
@click.option(
    "--baseline",
    default="",
    help="An input column: the baseline is the label's rate by it; =COLUMN: what it says; @N: version N.",
)
@show.as_json
def evaluate(version: str, holdout: str, baseline: str, json: bool) -> None:
    """Score a version on a sealed holdout; the question is counted.

    Example: cellwork model evaluate flights/delay@2 --holdout november
    """
    name, number = versions.parse(version)
    found = connect().evaluations.evaluate(
        EvaluationRequest(name=name, version=number, holdout=holdout, baseline=baseline)
    )
    if json:
        return show.document(found)
    return click.echo(repr(report(found)))


@model.command("card")
@click.argument("version", metavar="PROJECT/NAME@VERSION")
@click.option("--html", "as_page", is_flag=True, help="HTML, a page of its own; default Markdown.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write it to this file.")
@show.as_json
def card_(version: str, as_page: bool, output: Path | None, json: bool) -> None:
    """A version's card: origin, data, evaluations, questions, gate, overrides, environment.

    Example: cellwork model card flights/delay@2 --html --output delay.html
    """
    found = connect().evaluations.card(*versions.parse(version))
    if json:
        return show.document(found)
    said = card.html(found) if as_page else card.markdown(found)
    if output is None:
        return click.echo(said, nl=False)
    output.write_text(said)
    return click.echo(f"wrote {output}")


for _command in gate.COMMANDS:
    model.add_command(_command)
