"""`cellwork model`: registered versions, their evaluations, the gate, promotion."""

from __future__ import annotations

import sys

import click
import msgspec

from cellwork import project as projects
from cellwork.cli import show
from cellwork.client import connect
from cellwork.evaluation.compare import report
from cellwork.models import versions
from cellwork.wire.evaluations import EvaluationRequest, Gate


@click.group()
def model() -> None:
    """Registered models: evaluate, promote.

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
@click.option("--baseline", default="", help="An input column: the baseline is the label's rate by it.")
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


@model.command()
@click.argument("version", metavar="PROJECT/NAME@VERSION")
@show.as_json
def gate(version: str, json: bool) -> None:
    """What the gate says about a version; exit code 3 if it does not pass.

    Example: cellwork model gate flights/delay@2
    """
    found = connect().evaluations.gate(*versions.parse(version))
    if json:
        show.document(found)
    else:
        _print(found)
    if not found.passed:
        sys.exit(3)


@model.command()
@click.argument("version", metavar="PROJECT/NAME@VERSION")
@click.option("--reason", default="", help="Why; it stands in the audit.")
@show.as_json
def promote(version: str, reason: str, json: bool) -> None:
    """Make a version the champion if the gate passes; exit code 3 if it does not.

    Example: cellwork model promote flights/delay@2 --reason "better on November"
    """
    found = connect().evaluations.promote(*versions.parse(version), reason=reason)
    if json:
        return show.document(msgspec.to_builtins(found))
    _print(found.gate)
    before = f", before it version {found.previous.version}" if found.previous else ""
    return click.echo(f"champion of {found.version.name} is version {found.version.version}{before}")


def _print(found: Gate) -> None:
    show.table(
        [("passed" if check.passed else "REFUSED", check.name, check.text) for check in found.checks],
        ("verdict", "check", "what was seen"),
    )
