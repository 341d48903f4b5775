"""Accounts and groups, for admins. A change holds at once here and within a minute at every service; each is audited.

Codes are answered once and kept as hashes. In `personal` trust there is one user, and nothing here changes anything.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection

from cellwork import ids
from cellwork.errors import BadInput, Conflict, Refused
from cellwork.wire.users import Account, Change, Group, GroupRole, Invited, NewAccount
from cellwork_hub import passwords, records
from cellwork_hub.platform import logins, members, people
from cellwork_hub.platform.state import State
from cellwork_hub.records import moment
from cellwork_hub.route import Call, Route

MIGRATION = people.MIGRATION


def check_trust(state: State) -> None:
    if state.context.settings.trust != "team":
        raise Refused(
            "user",
            "",
            "can't be managed in personal trust, which has one",
            "start the platform with CELLWORK_TRUST=team",
        )


def add(state: State, call: Call, new: NewAccount) -> Invited:
    """Make an account; unless it logs in elsewhere, with a code for its owner to choose a password."""
    check_trust(state)
    with state.engine.begin() as db:
        external = new.external or bool(new.subject)
        people.add(db, new.name, new.role, external=external, subject=new.subject)
        records.audit(db, call, "user.add", new.name, after=new)
        if external:
            return Invited(account=people.account(db, people.require(db, new.name)), code="", until=None)
        return _invite(db, new.name)


def _invite(db: Connection, name: str) -> Invited:
    """Give `name` a code. Its password and its logins count no more."""
    code, now = passwords.new_code(), people.now()
    until = now + people.CODE_MICROSECONDS
    change = (
        "UPDATE accounts SET password = '', code = :code, code_until = :until, logins_after = :now WHERE name = :name"
    )
    people.write(db, change, code=passwords.code_hash(code), until=until, now=now, name=name)
    return Invited(account=people.account(db, people.require(db, name)), code=code, until=moment(until))


def new_code(state: State, call: Call, name: str) -> Invited:
    check_trust(state)
    with state.engine.begin() as db:
        row = people.require(db, name)
        if row["removed"] or row["external"]:
            verdict = "is removed" if row["removed"] else "logs in at the identity provider"
            raise Conflict("user", name, verdict, "there is no password to choose")
        records.audit(db, call, "user.password", name, reason="a new code; the old password is void")
        return _invite(db, name)


def change(state: State, call: Call, name: str, wish: Change) -> Account:
    """Give `name` another role, or remove or restore it; what is so already changes nothing."""
    check_trust(state)
    with state.engine.begin() as db:
        row = people.require(db, name)
        before = people.account(db, row)
        if wish.role is not None and wish.role != row["role"]:
            role = wish.role and people.check_role(wish.role)
            people.write(db, "UPDATE accounts SET role = :role WHERE name = :name", role=role, name=name)
        if wish.state is not None and (wish.state == "removed") != bool(row["removed"]):
            _set_removed(db, name, removed=wish.state == "removed")
        after = people.account(db, people.require(db, name))
        if after != before:
            records.audit(db, call, "user.change", name, before=before, after=after, reason=wish.reason)
    if after.role != before.role or after.state != before.state:
        people.settle()
    return after


def _set_removed(db: Connection, name: str, *, removed: bool) -> None:
    """Both ways every login and token from before is void: a restored user starts afresh, with the old password."""
    now = people.now()
    statement = (
        "UPDATE accounts SET removed = :removed, code = '', logins_after = :now, tokens_after = :now WHERE name = :name"
    )
    people.write(db, statement, removed=now if removed else 0, now=now, name=name)


def ensure_group(state: State, call: Call, name: str, role: str) -> Group:
    check_trust(state)
    people.check_role(role)
    with state.engine.begin() as db:
        found = people.rows(db, "SELECT role FROM account_groups WHERE name = :name", name=ids.name(name, "group"))
        if not found or found[0]["role"] != role:
            statement = "INSERT INTO account_groups VALUES (:name, :role) ON CONFLICT (name) DO UPDATE SET role = :role"
            people.write(db, statement, name=name, role=role)
            records.audit(db, call, "group.set", name, before=found[0]["role"] if found else "", after=role)
        return people.group(db, name)


def remove_group(state: State, call: Call, name: str) -> None:
    """Forget a group; its members and its memberships in projects end with it."""
    check_trust(state)
    with state.engine.begin() as db:
        before = people.group(db, name)
        for table, column, value in (
            ("account_groups", "name", name),
            ("group_members", "name", name),
            ("project_members", "member", f"@{name}"),
        ):
            people.write(db, f"DELETE FROM {table} WHERE {column} = :value", value=value)
        records.audit(db, call, "group.remove", name, before=before)


def set_member(state: State, call: Call, name: str, user: str, *, inside: bool) -> Group:
    check_trust(state)
    with state.engine.begin() as db:
        people.group(db, name)
        people.require(db, user)
        statement = (
            "INSERT INTO group_members VALUES (:name, :user, 0) ON CONFLICT (name, account) DO NOTHING"
            if inside
            else "DELETE FROM group_members WHERE name = :name AND account = :user"
        )
        changed = people.write(db, statement, name=name, user=user)
        if changed:
            records.audit(db, call, "group.join" if inside else "group.leave", name, after=user)
        after = people.group(db, name)
    if changed:
        people.settle()
    return after


def routes(state: State) -> list[Route]:
    return [*_accounts(state), *_groups(state), *members.routes(state), *logins.routes(state)]


def _accounts(state: State) -> list[Route]:
    def listing(call: Call) -> list[Account]:
        with state.engine.connect() as db:
            return [people.account(db, row) for row in people.rows(db, "SELECT * FROM accounts ORDER BY name")]

    def get(call: Call) -> Account:
        with state.engine.connect() as db:
            return people.account(db, people.require(db, call.path["user"]))

    def put(call: Call) -> Account:
        if call.body == msgspec.structs.replace(Change(), reason=call.body.reason):
            raise BadInput("change", "", "changes nothing", "send a role or a state")
        return change(state, call, call.path["user"], call.body)

    users, one = "/api/v1/users", "/api/v1/users/{user}"
    return [
        Route("GET", users, listing, "admin", answer=list[Account], doc="Everybody who has an account.", within="platform"),
        Route("POST", users, lambda call: add(state, call, call.body), "admin", NewAccount, Invited, "Make an account; its code is answered once.", within="platform"),
        Route("GET", one, get, "admin", answer=Account, doc="One account.", within="platform"),
        Route("PUT", one, put, "admin", Change, Account, "Another role; remove or restore.", within="platform"),
        Route("POST", one + "/code", lambda call: new_code(state, call, call.path["user"]), "admin", answer=Invited, doc="Void the password; a code for a new one.", within="platform"),
    ]  # fmt: skip


def _groups(state: State) -> list[Route]:
    def listing(call: Call) -> list[Group]:
        with state.engine.connect() as db:
            names = people.rows(db, "SELECT name FROM account_groups ORDER BY name")
            return [people.group(db, row["name"]) for row in names]

    def put(call: Call) -> Group:
        return ensure_group(state, call, call.path["group"], call.body.role)

    def member(call: Call) -> Group:
        return set_member(state, call, call.path["group"], call.path["user"], inside=True)

    def leave(call: Call) -> Group:
        return set_member(state, call, call.path["group"], call.path["user"], inside=False)

    groups, one, person = "/api/v1/groups", "/api/v1/groups/{group}", "/api/v1/groups/{group}/members/{user}"
    return [
        Route("GET", groups, listing, "admin", answer=list[Group], doc="Groups, their roles and members.", within="platform"),
        Route("PUT", one, put, "admin", GroupRole, Group, "Make a group, or give it another role.", within="platform"),
        Route("DELETE", one, lambda call: remove_group(state, call, call.path["group"]), "admin", doc="Forget a group.", within="platform"),
        Route("PUT", person, member, "admin", answer=Group, doc="Put a user into a group.", within="platform"),
        Route("DELETE", person, leave, "admin", answer=Group, doc="Take a user out of a group.", within="platform"),
    ]  # fmt: skip
