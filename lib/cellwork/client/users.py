"""People over HTTP: accounts, groups, members of projects."""

from __future__ import annotations

import builtins

from cellwork.client.base import Connection
from cellwork.wire.users import Account, Change, Group, GroupRole, Invited, Members, NewAccount

USERS, GROUPS, PROJECTS = "/api/v1/users", "/api/v1/groups", "/api/v1/projects"


class Users:
    def __init__(self, connection: Connection) -> None:
        self._to = connection

    def add(self, name: str, role: str = "author", *, external: bool = False, subject: str = "") -> Invited:
        """Make an account; the code in the answer is shown nowhere else."""
        new = NewAccount(name=name, role=role, external=external, subject=subject)
        return self._to.call("cellwork", "POST", USERS, Invited, new)

    def list(self) -> builtins.list[Account]:
        return self._to.call("cellwork", "GET", USERS, builtins.list[Account])

    def get(self, name: str) -> Account:
        return self._to.call("cellwork", "GET", f"{USERS}/{name}", Account)

    def change(self, name: str, change: Change) -> Account:
        return self._to.call("cellwork", "PUT", f"{USERS}/{name}", Account, change)

    def new_code(self, name: str) -> Invited:
        """Make the password void, and a code for a new one."""
        return self._to.call("cellwork", "POST", f"{USERS}/{name}/code", Invited)

    def groups(self) -> builtins.list[Group]:
        return self._to.call("cellwork", "GET", GROUPS, builtins.list[Group])

    def ensure_group(self, name: str, role: str) -> Group:
        return self._to.call("cellwork", "PUT", f"{GROUPS}/{name}", Group, GroupRole(role=role))

    def remove_group(self, name: str) -> None:
        self._to.raw("cellwork", "DELETE", f"{GROUPS}/{name}")

    def join(self, group: str, name: str) -> Group:
        return self._to.call("cellwork", "PUT", f"{GROUPS}/{group}/members/{name}", Group)

    def leave(self, group: str, name: str) -> Group:
        return self._to.call("cellwork", "DELETE", f"{GROUPS}/{group}/members/{name}", Group)


class Projects:
    """Who reads and writes the data of which project. A member is a user's name, or ``@group``."""

    def __init__(self, connection: Connection) -> None:
        self._to = connection

    def create(self, project: str) -> Members:
        """Make a project; who makes it is its first member."""
        return self._to.call("cellwork", "PUT", f"{PROJECTS}/{project}", Members)

    def list(self) -> builtins.list[Members]:
        """The projects that the caller may see."""
        return self._to.call("cellwork", "GET", PROJECTS, builtins.list[Members])

    def add(self, project: str, member: str) -> Members:
        return self._to.call("cellwork", "PUT", f"{PROJECTS}/{project}/members/{member}", Members)

    def remove(self, project: str, member: str) -> Members:
        return self._to.call("cellwork", "DELETE", f"{PROJECTS}/{project}/members/{member}", Members)
