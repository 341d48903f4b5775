"""`cellwork key`: API keys for programs that ask endpoints."""

from __future__ import annotations

import click

from cellwork.cli import show
from cellwork.client import connect
from cellwork.wire.keys import SCOPES, KeyWish


@click.group()
def key() -> None:
    """API keys of endpoints.

    Example: cellwork key make flights web --days 30
    """


@key.command()
@click.argument("project")
@click.argument("name")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(SCOPES), default=("endpoints:predict",), show_default=True
)
@click.option("--days", default=90, show_default=True, help="How long it is good for; 0: until it is revoked.")
@show.as_json
def make(project: str, name: str, scopes: tuple[str, ...], days: int, json: bool) -> None:
    """Make a key for the endpoints of a project; it is printed this once.

    Example: cellwork key make flights web --days 30
    """
    made = connect().keys.make(KeyWish(project=project, name=name, scopes=list(scopes), days=days))
    if json:
        return show.document(made)
    click.echo(made.token)
    return click.echo(
        f"that is {made.key.id}; it is not shown again. Revoke it: cellwork key revoke {made.key.id}", err=True
    )


@key.command("list")
@click.argument("project", default="")
@show.as_json
def list_(project: str, json: bool) -> None:
    """The keys that were made, without what opens.

    Example: cellwork key list flights
    """
    found = connect().keys.list(project)
    if json:
        return show.document(found)
    rows = [(k.id, k.project, k.name, " ".join(k.scopes), k.by, k.expires, k.revoked) for k in found]
    return show.table(rows, ("key", "project", "name", "scopes", "made by", "expires", "revoked"))


@key.command()
@click.argument("id")
@show.as_json
def revoke(id: str, json: bool) -> None:
    """Let a key open nothing any more, within two seconds.

    Example: cellwork key revoke key_01...
    """
    revoked = connect().keys.revoke(id)
    if json:
        return show.document(revoked)
    return click.echo(f"{revoked.project}/{revoked.name} opens nothing any more")
