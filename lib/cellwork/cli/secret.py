"""`cellwork secret`: what notebooks may use by name. Values come from a prompt or standard input, never from the command line."""

from __future__ import annotations

import sys

import click

from cellwork import errors, project
from cellwork.cli import show


@click.group()
def secret() -> None:
    """Secrets that notebooks use by name, and that runs hide.

    Example: cellwork secret set warehouse-password
    """


def _where(name: str) -> tuple[str, str]:
    """Return (project, name); a short name belongs to the project of this folder."""
    of, _, short = name.rpartition("/")
    return of or project.find().name, short


def _value() -> str:
    """Return the value: what is piped in, without its last line end, else what is typed twice and not shown."""
    if sys.stdin.isatty():
        return str(click.prompt("value", hide_input=True, confirmation_prompt=True))
    return sys.stdin.read().removesuffix("\n")


@secret.command(name="set")
@click.argument("name")
@click.option("--shared", is_flag=True, help="All members of the project may use it, not you alone.")
@show.as_json
def set_(name: str, shared: bool, json: bool) -> None:
    """Set a secret, or change one of yours; the value is asked for, or read from standard input.

    \b
    In a notebook:
      from cellwork.secrets import secret
      password = secret("warehouse-password")

    Example: cellwork secret set warehouse-password --shared
    """
    from cellwork.client import connect
    from cellwork.wire.secrets import SecretRequest

    of, short = _where(name)
    made = connect().secrets.put(of, short, SecretRequest(value=_value(), shared=shared))
    if json:
        show.document(made)
    else:
        click.echo(f"{made.project}/{made.name} version {made.version}, {'shared' if made.shared else 'yours alone'}")


@secret.command()
@click.argument("name")
@show.as_json
def rotate(name: str, json: bool) -> None:
    """Give a secret a new value; runs that have begun keep the old one, and both are hidden.

    Example: cellwork secret rotate warehouse-password
    """
    from cellwork.client import connect
    from cellwork.wire.secrets import SecretRequest

    of, short = _where(name)
    client = connect()
    found = next((one for one in client.secrets.list(of) if one.name == short), None)
    if found is None:
        raise errors.NotFound("secret", name, "is not there", "set it: cellwork secret set")
    made = client.secrets.put(of, short, SecretRequest(value=_value(), shared=found.shared))
    if json:
        show.document(made)
    else:
        click.echo(f"{made.project}/{made.name} version {made.version}")


@secret.command(name="list")
@click.option("--project", "of", default="", help="Default: the project of this folder.")
@show.as_json
def list_(of: str, json: bool) -> None:
    """The secrets you may use, without their values.

    Example: cellwork secret list
    """
    from cellwork.client import connect

    rows = connect().secrets.list(of or project.find().name)
    if json:
        show.document(rows)
    else:
        show.table([(f"{s.project}/{s.name}", s.version, s.owner, s.shared, s.at) for s in rows], ("secret", "version", "owner", "shared", "set"))  # fmt: skip


@secret.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove a secret; notebooks that ask for it fail from now on.

    Example: cellwork secret remove warehouse-password
    """
    from cellwork.client import connect

    of, short = _where(name)
    connect().secrets.remove(of, short)
    click.echo(f"{of}/{short} is removed")
