"""`cellwork project`: what data and features belong to, and who reads and writes them. Membership counts in `team` trust."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cellwork.cli import show

if TYPE_CHECKING:
    from cellwork.wire.users import Members


@click.group()
def project() -> None:
    """Projects, and who reads and writes in them.

    Example: cellwork project add flights ada
    """


def _print(projects: list[Members], json: bool, undo: str = "") -> None:
    if json:
        show.document(projects)
        return
    show.table(
        [(p.project, " ".join(p.members)) for p in projects], ("project", "members"), empty="no project of yours"
    )
    if undo:
        click.echo(f"  undo: {undo}")


@project.command(name="list")
@show.as_json
def list_(json: bool) -> None:
    """Your projects and their members; an admin sees all.

    Example: cellwork project list
    """
    from cellwork.client import connect

    _print(connect().projects.list(), json)


@project.command()
@click.argument("name")
@show.as_json
def create(name: str, json: bool) -> None:
    """Make a project; you are its first member. Making it twice changes nothing.

    Example: cellwork project create flights
    """
    from cellwork.client import connect

    _print([connect().projects.create(name)], json)


@project.command()
@click.argument("name")
@click.argument("member")
@show.as_json
def add(name: str, member: str, json: bool) -> None:
    """Let a user, or the members of @GROUP, read and write in a project.

    Example: cellwork project add flights @modellers
    """
    from cellwork.client import connect

    _print([connect().projects.add(name, member)], json, f"cellwork project remove {name} {member}")


@project.command()
@click.argument("name")
@click.argument("member")
@show.as_json
def remove(name: str, member: str, json: bool) -> None:
    """Take a user or @GROUP out of a project.

    Example: cellwork project remove flights ada
    """
    from cellwork.client import connect

    _print([connect().projects.remove(name, member)], json, f"cellwork project add {name} {member}")
