"""`cellwork user`: who may log in and do what. In `personal` trust one user with one password; in `team` trust accounts.

A shell around the platform's routes; every change says how to take it back, and is in the audit (`cellwork user history`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cellwork import files, scopes, settings
from cellwork.cli import show
from cellwork.errors import BadInput, NotFound, Unavailable
from cellwork_hub import preparation

if TYPE_CHECKING:
    from cellwork.client import Client
    from cellwork.settings import Settings
    from cellwork.wire.users import Account, Group, Invited

ROLE = click.Choice([*scopes.ROLES, "none"])


@click.group(invoke_without_command=True)
@click.pass_context
@show.as_json
def user(context: click.Context, json: bool) -> None:
    """The users who may log in.

    Example: cellwork user add ada --role author
    """
    if context.invoked_subcommand is None:
        _list(settings.load()[0], json)


def _list(chosen: Settings, json: bool) -> None:
    if chosen.trust == "team":
        _print(_connect().users.list(), json)
        return
    name, path = preparation.one_user(chosen), str(chosen.folder.secret("password"))
    if json:
        show.document([{"name": name, "trust": chosen.trust, "password_file": path}])
    else:
        show.table([(name, chosen.trust, path)], ("user", "trust", "password in"))


def _connect() -> Client:
    from cellwork.client import connect

    return connect()


def _print(accounts: list[Account], json: bool) -> None:
    if json:
        show.document(accounts)
        return
    rows = [
        (
            a.name,
            a.state,
            a.role or "none",
            " ".join(a.groups),
            " ".join(a.projects),
            a.subject or "password",
            a.created,
        )
        for a in accounts
    ]
    head = ("user", "state", "role", "groups", "projects", "logs in by", "since")
    show.table(rows, head, empty="nobody yet; invite somebody: cellwork user add NAME --role admin")


def _say(json: bool, document: Any, text: str, undo: str = "") -> None:
    if json:
        show.document(document)
        return
    click.echo(text)
    if undo:
        click.echo(f"  undo: {undo}")


@user.command(name="list")
@show.as_json
def list_(json: bool) -> None:
    """Everybody who has an account, with role, groups and projects.

    Example: cellwork user list --json
    """
    _list(settings.load()[0], json)


@user.command(name="show")
@click.argument("name")
@show.as_json
def show_(name: str, json: bool) -> None:
    """One user.

    Example: cellwork user show ada
    """
    found = _connect().users.get(name)
    if json:
        show.document(found)
    else:
        _print([found], json=False)


@user.command()
@click.argument("name")
@click.option("--role", type=ROLE, default="author", show_default=True, help="What the user may do.")
@click.option("--external", is_flag=True, help="Logs in at the identity provider, under this name.")
@click.option("--subject", default="", help="Logs in at the identity provider, as this subject (issuer#sub).")
@show.as_json
def add(name: str, role: str, external: bool, subject: str, json: bool) -> None:
    """Invite a user: prints a link and a one-time code with which they choose their own password. Both are shown only now.

    Example: cellwork user add ada --role deployer
    """
    client = _connect()
    made = client.users.add(name, "" if role == "none" else role, external=external, subject=subject)
    _invitation(client, made, json, f"{name} is invited as {role}", f"cellwork user remove {name}")


def _invitation(client: Client, made: Invited, json: bool, text: str, undo: str) -> None:
    link = f"{client.connection.url}/hub/welcome#{made.account.name}/{made.code}" if made.code else ""
    if json:
        show.document({"account": made.account, "code": made.code, "link": link, "until": made.until})
        return
    click.echo(text)
    if made.code:
        click.echo(f"  link   {link}")
        click.echo(f"  code   {made.code}   (works once, until {show.text(made.until)}; it is not shown again)")
    else:
        click.echo("  they log in at the identity provider")
    if undo:
        click.echo(f"  undo: {undo}")


@user.command()
@click.argument("name")
@click.option("--reason", default="", help="Why, for the audit.")
@show.as_json
def remove(name: str, reason: str, json: bool) -> None:
    """Lock a user out: servers stop, tokens and logins end. Files and records stay, and nobody else gets the name.

    Example: cellwork user remove ada --reason "left the team"
    """
    from cellwork.wire.users import Change
    from cellwork_hub import accounts

    after = _connect().users.change(name, Change(state="removed", reason=reason))
    stopped = accounts.stop_servers(name)
    text = f"{name} is removed; {stopped} server{'' if stopped == 1 else 's'} stopped, every token and login is void"
    _say(json, after, text, f"cellwork user restore {name}")


@user.command()
@click.argument("name")
@show.as_json
def restore(name: str, json: bool) -> None:
    """Let a removed user in again, with the old password, role and memberships.

    Example: cellwork user restore ada
    """
    from cellwork.wire.users import Change

    after = _connect().users.change(name, Change(state="active"))
    _say(json, after, f"{name} may log in again, as {after.role or 'none'}", f"cellwork user remove {name}")


@user.command()
@click.argument("name")
@click.argument("role", type=ROLE)
@show.as_json
def role(name: str, role: str, json: bool) -> None:
    """Give a user another role of their own; a group may give more.

    Example: cellwork user role ada deployer
    """
    from cellwork.wire.users import Change

    client = _connect()
    before = client.users.get(name).own_role or "none"
    after = client.users.change(name, Change(role="" if role == "none" else role))
    text = f"{name} is {after.role or 'none'} now, at every service within a minute"
    if after.role != after.own_role:
        text += f" (the role of {', '.join(after.groups)}; of their own: {after.own_role or 'none'})"
    _say(json, after, text, f"cellwork user role {name} {before}" if before != role else "")


@user.command()
@click.argument("name", default="")
@click.option("--reset", is_flag=True, help="Personal trust: make a new one; every browser has to log in again.")
@show.as_json
def password(name: str, reset: bool, json: bool) -> None:
    """Team trust: void NAME's password, and print a code for a new one. Personal trust: show the one password, or --reset it.

    Example: cellwork user password ada
    """
    chosen = settings.load()[0]
    if chosen.trust == "team":
        if not name:
            raise BadInput("password", "", "belongs to nobody: in team trust each user has one", "name the user")
        client = _connect()
        made = client.users.new_code(name)
        _invitation(client, made, json, f"{name}'s password and logins are void; servers and runs go on", "")
    else:
        _the_one_password(chosen, name, reset, json)


def _the_one_password(chosen: Settings, name: str, reset: bool, json: bool) -> None:
    from cellwork_hub import accounts

    one, path = preparation.one_user(chosen), chosen.folder.secret("password")
    if name not in ("", one):
        raise NotFound("user", name, f"does not exist: personal trust has one, {one!r}", "leave the name out")
    if reset:
        accounts.reset_password(chosen)
    if not path.exists():
        raise Unavailable("password", path, "was not made yet", "start the platform once: cellwork up")
    secret = files.read_secret(path)
    if json:
        show.document({"user": one, "password": secret, "file": str(path)})
    else:
        click.echo(secret)


@user.command()
@click.argument("name", default="")
@show.as_json
def history(name: str, json: bool) -> None:
    """Who changed what about users, groups and projects; NAME narrows it.

    Example: cellwork user history ada
    """
    client, after, found = _connect(), 0, []
    while rows := client.records.audit(after=after):
        after = rows[-1].seq
        found += [row for row in rows if row.action.startswith(("user.", "group.", "project."))]
    found = [row for row in found if name in ("", row.subject) or name in row.after]
    if json:
        show.document(found)
    else:
        rows_ = [(r.at, r.principal, r.action, r.subject, r.after[:60], r.reason) for r in found]
        show.table(rows_, ("at", "by", "did", "to", "now", "reason"))


@user.group()
def group() -> None:
    """Groups: a role for several users at once; an identity provider's groups of the same name count too.

    Example: cellwork user group make modellers --role author
    """


@group.command(name="list")
@show.as_json
def group_list(json: bool) -> None:
    """Groups, their roles and members.

    Example: cellwork user group list
    """
    found = _connect().users.groups()
    if json:
        show.document(found)
    else:
        show.table([(g.name, g.role, " ".join(g.members)) for g in found], ("group", "role", "members"))


@group.command()
@click.argument("name")
@click.option("--role", type=click.Choice(list(scopes.ROLES)), required=True, help="What its members may do.")
@show.as_json
def make(name: str, role: str, json: bool) -> None:
    """Make a group, or give it another role.

    Example: cellwork user group make modellers --role author
    """
    client = _connect()
    before = next((g.role for g in client.users.groups() if g.name == name), "")
    undo = f"cellwork user group make {name} --role {before}" if before else f"cellwork user group drop {name}"
    _say(json, client.users.ensure_group(name, role), f"group {name}: {role}", undo if before != role else "")


@group.command()
@click.argument("name")
@show.as_json
def drop(name: str, json: bool) -> None:
    """Forget a group; its members lose what it gave them.

    Example: cellwork user group drop modellers
    """
    client = _connect()
    before = next((g for g in client.users.groups() if g.name == name), None)
    client.users.remove_group(name)
    assert before is not None  # else it was refused
    members = "".join(f"; cellwork user group add {name} {member}" for member in before.members)
    _say(json, before, f"group {name} is gone", f"cellwork user group make {name} --role {before.role}{members}")


@group.command(name="add")
@click.argument("name")
@click.argument("member")
@show.as_json
def group_add(name: str, member: str, json: bool) -> None:
    """Put a user into a group.

    Example: cellwork user group add modellers ada
    """
    after = _connect().users.join(name, member)
    _say(json, after, _members(after), f"cellwork user group remove {name} {member}")


@group.command(name="remove")
@click.argument("name")
@click.argument("member")
@show.as_json
def group_remove(name: str, member: str, json: bool) -> None:
    """Take a user out of a group.

    Example: cellwork user group remove modellers ada
    """
    after = _connect().users.leave(name, member)
    _say(json, after, _members(after), f"cellwork user group add {name} {member}")


def _members(group: Group) -> str:
    return f"group {group.name} ({group.role}): {', '.join(group.members) or 'nobody'}"
