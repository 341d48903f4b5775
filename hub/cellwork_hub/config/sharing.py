"""Servers that are published dashboards: what the hub starts under their names, and with whom it shares them.

A server whose name begins with ``page-`` is a dashboard, however it is started. Only such a server is ever shared, with a
group that its owner is in, so that a share never opens a Lab. The hub forgets a share with its server; beside it stands a role that says
the same, because JupyterHub counts what is shared with a group for its members' logins and not for their tokens.
"""

from __future__ import annotations

from typing import Any

from jupyterhub import orm
from jupyterhub.spawner import SpawnException
from sqlalchemy.orm import object_session

from cellwork.wire.dashboards import SERVERS

MODULE = "cellwork_hub.published"


def is_dashboard(spawner: Any) -> bool:
    return bool(spawner.name.startswith(SERVERS))


def become_dashboard(spawner: Any, python: str) -> None:
    """Let the hub start a dashboard where the server's name says so; called before each start."""
    if not is_dashboard(spawner):
        return
    spawner.cmd, spawner.args, spawner.default_url = [python, "-P", "-m", MODULE], [], ""
    if "group" in spawner.user_options:
        share(spawner, str(spawner.user_options["group"] or ""))
    open_to_tokens(spawner)


def share(spawner: Any, group: str) -> None:
    """Make `group` the one that may open the server beside its owner; empty is nobody."""
    db: Any = object_session(spawner.orm_spawner)
    groups = {each.name: each for each in spawner.user.groups}
    if group and group not in groups:
        raise SpawnException(f"group {group!r} is not one of {spawner.user.name}'s", reason="refused", status_code=403)
    for held in list(spawner.orm_spawner.shares):
        if held.group is None or held.group.name != group:
            db.delete(held)
    db.commit()
    if group:
        orm.Share.grant(db, spawner.orm_spawner, groups[group], scopes=[_scope(spawner)])


def open_to_tokens(spawner: Any) -> None:
    """Give the groups that the server is shared with, and no others, the role that opens it; without one there is no role."""
    db: Any = object_session(spawner.orm_spawner)
    name, groups = (
        f"{spawner.name}.{spawner.user.name}",
        [held.group for held in spawner.orm_spawner.shares if held.group],
    )
    role = orm.Role.find(db, name)
    if groups:
        role = role or orm.Role(
            name=name, managed_by_auth=True
        )  # others that are not configured go when the hub starts
        role.description, role.scopes, role.groups = f"Opens {spawner.name}", [_scope(spawner)], groups
        db.add(role)
    elif role:
        db.delete(role)
    db.commit()


def _scope(spawner: Any) -> str:
    return f"access:servers!server={spawner.user.name}/{spawner.name}"
