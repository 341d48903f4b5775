"""The gate's commands of `cellwork model`: the list, promotion and the way back, overrides, rules."""

from __future__ import annotations

import sys

import click

from cellwork import project as projects
from cellwork.cli import show
from cellwork.client import connect
from cellwork.models import versions
from cellwork.wire.gate import Gate, KeptRules, Promoted

VERSION = "PROJECT/NAME@VERSION"


@click.command()
@click.argument("version", metavar=VERSION)
@show.as_json
def gate(version: str, json: bool) -> None:
    """What the gate says about a version, line by line; exit code 3 if it does not pass.

    Example: cellwork model gate flights/delay@2
    """
    found = connect().gate.check(*versions.parse(version))
    if json:
        show.document(found)
    else:
        _print(found)
    if not found.passed:
        sys.exit(3)


@click.command()
@click.argument("version", metavar=VERSION)
@click.option("--reason", default="", help="Why; it stands in the audit and on the card.")
@show.as_json
def promote(version: str, reason: str, json: bool) -> None:
    """Make a version the champion if the gate passes; exit code 3 if it does not.

    Example: cellwork model promote flights/delay@2 --reason "better on November"
    """
    found = connect().gate.promote(*versions.parse(version), reason=reason)
    if json:
        return show.document(found)
    if found.gate:
        _print(found.gate)
    return _moved(found)


@click.command()
@click.argument("model", metavar="PROJECT/NAME[@VERSION]")
@click.option("--reason", default="", help="Why; it stands in the audit and on the card.")
@show.as_json
def rollback(model: str, reason: str, json: bool) -> None:
    """Make the champion before the champion again; with @VERSION only if that one is champion now.

    Example: cellwork model rollback flights/delay@3 --reason "late by an hour since the clocks changed"
    """
    name, number = versions.parse(model) if "@" in model else (model, 0)
    found = connect().gate.rollback(name, number, reason)
    return show.document(found) if json else _moved(found)


@click.command()
@click.argument("version", metavar=VERSION)
@click.option("--check", required=True, help="The line that blocks, e.g. champion.")
@click.option("--reason", required=True, help="Why it may pass all the same; it stands on the card.")
@show.as_json
def override(version: str, check: str, reason: str, json: bool) -> None:
    """Let a version pass one line of the gate that blocks; in team trust for a version of somebody else, who promotes it.

    Example: cellwork model override flights/delay@3 --check champion --reason "the champion has seen December"
    """
    found = connect().gate.override(*versions.parse(version), check, reason)
    if json:
        return show.document(found)
    return click.echo(f"{found.by} lets {version} pass {found.check!r} ({found.found}): {found.reason}")


@click.command()
@click.argument("version", metavar=VERSION)
@click.option("--reason", default="", help="Why; it stands on the card.")
@click.option("--look", is_flag=True, help="Only show the code.")
@show.as_json
def trust(version: str, reason: str, look: bool, json: bool) -> None:
    """Let the code that a version brings run on the platform, on your word; look at it first. In team trust not for one's own.

    Example: cellwork model trust flights/delay@3 --look
    """
    name, number = versions.parse(version)
    client = connect()
    if look:
        sources = client.gate.code(name, number)
        return (
            show.document(sources)
            if json
            else click.echo("\n".join(f"# {path}\n{code}" for path, code in sources.items()))
        )
    found = client.gate.trust(name, number, reason)
    if json:
        return show.document(found)
    return show.table(
        [(word.file, word.sha256[:12], word.by, word.at) for word in found], ("wheel", "sha256", "trusted by", "at")
    )


@click.command()
@click.argument("model", metavar="PROJECT/NAME")
@show.as_json
def moves(model: str, json: bool) -> None:
    """Who made which version the champion, newest first.

    Example: cellwork model moves flights/delay
    """
    found = list(connect().gate.moves(model))
    if json:
        return show.document(found)
    rows = [
        (m.at, m.kind.replace("_", " "), m.version.version, m.left.version if m.left else None, m.by, m.reason)
        for m in found
    ]
    return show.table(rows, ("at", "what", "champion", "before", "by", "why"), empty="no version was ever promoted")


@click.command()
@click.option("--project", default="", help="Default: the project of this folder.")
@click.option("--apply", "applies", is_flag=True, help="Make [gate] of this folder's cellwork.toml the rules.")
@show.as_json
def rules(project: str, applies: bool, json: bool) -> None:
    """What the gate goes by in a project; with --apply, what cellwork.toml says from now on.

    Example: cellwork model rules --apply
    """
    if applies:
        here = projects.find()
        found = connect().gate.set_rules(here.name, here.gate, owner=here.owner, contact=here.contact)
    else:
        found = connect().gate.rules(project or projects.find().name)
    return show.document(found) if json else _print_rules(found)


COMMANDS = (gate, promote, rollback, override, trust, moves, rules)


def _moved(found: Promoted) -> None:
    before = f", before it version {found.left.version}" if found.left else ""
    click.echo(f"champion of {found.version.name} is version {found.version.version}{before}")


def _print(found: Gate) -> None:
    verdicts = {
        check.name: "let pass" if check.override else "passed" if check.passed else "REFUSED" for check in found.checks
    }
    rows = [(verdicts[check.name], check.name, check.asked, check.text) for check in found.checks]
    show.table(rows, ("verdict", "line", "asked", "found"))
    for check in found.checks:
        if check.override:
            click.echo(f"{check.name}: {check.override}")
        elif not check.passed:
            click.echo(f"{check.name}: {check.way_out}")


def _print_rules(found: KeptRules) -> None:
    words = {name: getattr(found.rules, name) for name in found.rules.__struct_fields__}
    by = (
        f"revision {found.revision} by {found.by}, {show.text(found.at)}"
        if found.revision
        else "nobody set any: the defaults"
    )
    show.table(
        [("rules", by), ("owner", found.owner), ("contact", found.contact), *((k, str(v)) for k, v in words.items())],
        ("what", "value"),
    )
