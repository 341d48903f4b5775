"""Accounts, groups and members, as rows. Who may do what is the routers' to check; nothing is ever deleted of a person.

A removed account keeps its name, so that nobody else gets the files, jobs and records that stand under it, and so that
`restore` finds it as it was. `logins_after` and `tokens_after` say from when on logins and tokens count: they only grow.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from cellwork import clock, ids, scopes
from cellwork.errors import BadInput, Conflict, NotFound, near_miss
from cellwork.wire.users import Account, Group, Members, Standing
from cellwork_hub.auth import SETTLE_SECONDS
from cellwork_hub.records import micros, moment

MIGRATION = (
    "CREATE TABLE accounts (name TEXT PRIMARY KEY, role TEXT NOT NULL, password TEXT NOT NULL, code TEXT NOT NULL, code_until BIGINT NOT NULL, "
    "external INTEGER NOT NULL, subject TEXT UNIQUE, created BIGINT NOT NULL, removed BIGINT NOT NULL, logins_after BIGINT NOT NULL, tokens_after BIGINT NOT NULL)",
    "CREATE TABLE account_groups (name TEXT PRIMARY KEY, role TEXT NOT NULL)",
    "CREATE TABLE group_members (name TEXT NOT NULL, account TEXT NOT NULL, external INTEGER NOT NULL, PRIMARY KEY (name, account))",
    "CREATE TABLE projects (name TEXT PRIMARY KEY, created BIGINT NOT NULL)",
    "CREATE TABLE project_members (project TEXT NOT NULL, member TEXT NOT NULL, PRIMARY KEY (project, member))",
)
CODE_MICROSECONDS = 72 * 3_600_000_000
Row = dict[str, Any]


def rows(db: Connection, statement: str, **values: Any) -> list[Row]:
    return [dict(row) for row in db.execute(text(statement), values).mappings()]


def write(db: Connection, statement: str, **values: Any) -> int:
    """Execute a change and return how many rows it touched."""
    return db.execute(text(statement), values).rowcount


def now() -> int:
    return micros(clock.now())


def check_role(role: str) -> str:
    if role not in scopes.ROLES:
        raise BadInput("role", role, "is not one of the platform's", near_miss(role, scopes.ROLES))
    return role


def find(db: Connection, name: str) -> Row | None:
    return next(iter(rows(db, "SELECT * FROM accounts WHERE name = :name", name=name)), None)


def require(db: Connection, name: str) -> Row:
    found = find(db, name)
    if found is None:
        names = [row["name"] for row in rows(db, "SELECT name FROM accounts")]
        raise NotFound("user", name[:80], "does not exist", near_miss(name, names))
    return found


def add(db: Connection, name: str, role: str, *, external: bool, subject: str) -> None:
    """Insert an account that nobody can log in to yet.

    Raises
    ------
    Conflict
        There is one of that name, perhaps a removed one, or one of that subject.
    """
    if found := find(db, ids.user(name)):
        way_out = f"bring it back: cellwork user restore {name}" if found["removed"] else "choose another name"
        raise Conflict("user", name, "was removed" if found["removed"] else "is there already", way_out)
    if subject and (other := rows(db, "SELECT name FROM accounts WHERE subject = :s", s=subject)):
        raise Conflict("subject", subject, f"is user {other[0]['name']!r} already", "give it to one user only")
    write(
        db,
        "INSERT INTO accounts VALUES (:name, :role, '', '', 0, :external, :subject, :now, 0, 0, 0)",
        name=name, role=role and check_role(role), external=int(external), subject=subject or None, now=now(),
    )  # fmt: skip


def groups_of(db: Connection, name: str) -> list[Row]:
    query = (
        "SELECT g.name, g.role FROM account_groups g JOIN group_members m ON m.name = g.name WHERE m.account = :name"
    )
    return rows(db, query + " ORDER BY g.name", name=name)


def projects_of(db: Connection, name: str, groups: Sequence[str]) -> list[str]:
    members = {name, *(f"@{group}" for group in groups)}
    found = rows(db, "SELECT project, member FROM project_members ORDER BY project")
    return sorted({row["project"] for row in found if row["member"] in members})


def account(db: Connection, row: Row) -> Account:
    groups = groups_of(db, row["name"])
    names = [group["name"] for group in groups]
    usable = row["password"] or row["external"]
    return Account(
        name=row["name"], state="removed" if row["removed"] else "active" if usable else "invited",
        role=scopes.highest([row["role"], *(group["role"] for group in groups)]), own_role=row["role"], groups=names,
        projects=projects_of(db, row["name"], names), created=moment(row["created"]), subject=row["subject"] or "",
    )  # fmt: skip


def standing(db: Connection, name: str) -> Standing:
    """Return what the hub must know of `name` now; of a name without an account, that nothing of it counts."""
    row = find(db, name)
    if row is None:
        return Standing(name=name, active=False, groups=[], logins_after=0, tokens_after=0)
    known = account(db, row)
    told = [f"{scopes.ROLE_GROUP}{known.role}"] if known.role else []
    told += [f"{scopes.USER_GROUP}{group}" for group in known.groups]
    told += [f"{scopes.PROJECT_GROUP}{project}" for project in known.projects]
    active = known.state != "removed"  # who chooses a new password keeps servers and runs meanwhile
    return Standing(
        name=name, active=active, groups=told if active else [],
        logins_after=row["logins_after"] / 1e6, tokens_after=row["tokens_after"] / 1e6,
    )  # fmt: skip


def settle() -> None:
    """Return when the hub has surely seen a grant that was committed, so that its receiver can use it at once."""
    time.sleep(SETTLE_SECONDS)


def group(db: Connection, name: str) -> Group:
    found = rows(db, "SELECT * FROM account_groups WHERE name = :name", name=name)
    if not found:
        names = [row["name"] for row in rows(db, "SELECT name FROM account_groups")]
        raise NotFound("group", name[:80], "does not exist", near_miss(name, names))
    members = rows(db, "SELECT account FROM group_members WHERE name = :name ORDER BY account", name=name)
    return Group(name=name, role=found[0]["role"], members=[row["account"] for row in members])


def members(db: Connection, project: str) -> Members:
    found = rows(db, "SELECT member FROM project_members WHERE project = :project ORDER BY member", project=project)
    return Members(project=project, members=[row["member"] for row in found])
