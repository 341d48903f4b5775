"""What the hub asks before it lets somebody in, and again every few seconds: is this the right person, what may they do now.

Only the hub's own token has the scope. An answer never says which part was wrong; a wrong one costs as much time as a right one.
"""

from __future__ import annotations

import logging

from sqlalchemy import Connection

from cellwork import ids
from cellwork.errors import BadInput, Refused
from cellwork.wire.users import Credential, External, Redeem, Standing
from cellwork_hub import passwords, records
from cellwork_hub.platform import people
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

log = logging.getLogger("cellwork.logins")


def wrong() -> Refused:
    return Refused(
        "login", "", "is not right", "check name and password; an admin gives a new code: cellwork user password"
    )


class Door:
    """Checks credentials against the accounts of `state`; counts the wrong ones."""

    def __init__(self, state: State) -> None:
        self.state, self.throttle = state, passwords.Throttle()

    def enter(self, credential: Credential) -> Standing:
        """Return the standing of whose name and password these are.

        Raises
        ------
        Refused
            They are nobody's.
        TooBusy
            There were too many wrong ones.
        """
        name, address = credential.name[:80], credential.address
        self.throttle.check(name, address)
        with self.state.engine.connect() as db:
            row = people.find(db, name) or {}
        stored = "" if row.get("removed") else row.get("password", "")
        if not passwords.matches(stored, credential.password):
            self.throttle.wrong(name, address)
            log.warning("wrong password for %r from %s", name, address or "an unknown address")
            raise wrong()
        self.throttle.right(name, address)
        with self.state.engine.begin() as db:
            if passwords.outdated(stored):
                self._store(db, name, credential.password, stored)
            return people.standing(db, name)

    def _store(self, db: Connection, name: str, password: str, before: str) -> None:
        statement = "UPDATE accounts SET password = :new WHERE name = :name AND password = :before"
        people.write(db, statement, new=passwords.hashed(password), name=name, before=before)

    def redeem(self, call: Call, asked: Redeem) -> Standing:
        """Take a one-time code, once, and the password that its owner chose.

        Raises
        ------
        BadInput
            The password is too weak; the code still counts.
        Refused
            The code is nobody's, used or too old.
        """
        name = asked.name[:80]
        self.throttle.check(name, asked.address)
        passwords.check_strength(asked.password, name)
        new, code = passwords.hashed(asked.password), passwords.code_hash(asked.code)
        statement = (
            "UPDATE accounts SET password = :new, code = '' "
            "WHERE name = :name AND code = :code AND code_until > :now AND removed = 0"
        )
        with self.state.engine.begin() as db:
            taken = people.write(db, statement, new=new, name=name, code=code, now=people.now())
            if taken:
                records.audit(db, call, "user.chose_password", name)
        if not taken:
            self.throttle.wrong(name, asked.address)
            raise Refused(
                "code", "", "is not right for that name, was used, or is too old", "ask an admin for a new one"
            )
        self.throttle.right(name, asked.address)
        with self.state.engine.connect() as db:
            return people.standing(db, name)

    def arrive(self, call: Call, external: External) -> Standing:
        """Let in whom an identity provider vouches for: an account of that subject, else one that waits for its first
        login, else a new one if the provider's groups give it a role.

        Raises
        ------
        Refused
            It has no account and no group here, or the name belongs to another subject.
        """
        with self.state.engine.begin() as db:
            name = self._of_subject(db, call, external)
            row = people.require(db, name)
            if row["removed"]:
                raise Refused("user", name, "was removed", "ask an admin")
            self._take_groups(db, name, external.groups)
            return people.standing(db, name)

    def _of_subject(self, db: Connection, call: Call, external: External) -> str:
        bound = people.rows(db, "SELECT name FROM accounts WHERE subject = :s", s=external.subject)
        if bound:
            return str(bound[0]["name"])
        try:
            name = ids.user(external.name)
        except BadInput as error:
            way_out = "an admin gives it another: cellwork user add NAME --subject " + external.subject
            raise Refused("name from the identity provider", external.name[:80], error.verdict, way_out) from None
        row = people.find(db, name)
        if row is None:
            if not self._known(db, external.groups):
                raise Refused(
                    "user", name, "is not known here", f"an admin lets it in: cellwork user add {name} --external"
                )
            people.add(db, name, "", external=True, subject=external.subject)
            records.audit(db, call, "user.add", name, after=external, reason="first login, by its groups")
        elif row["subject"] or not row["external"]:
            raise Refused("user", name, "is somebody else here", "an admin gives you another name: cellwork user add")
        else:
            people.write(db, "UPDATE accounts SET subject = :s WHERE name = :name", s=external.subject, name=name)
            records.audit(db, call, "user.bind", name, after=external.subject, reason="first login")
        return name

    def _known(self, db: Connection, groups: list[str]) -> list[str]:
        here = {row["name"] for row in people.rows(db, "SELECT name FROM account_groups")}
        return sorted(here & set(groups))

    def _take_groups(self, db: Connection, name: str, groups: list[str]) -> None:
        """Make the memberships that came from the provider what it says now; those given here stay."""
        people.write(db, "DELETE FROM group_members WHERE account = :name AND external = 1", name=name)
        statement = "INSERT INTO group_members VALUES (:group, :name, 1) ON CONFLICT (name, account) DO NOTHING"
        for group in self._known(db, groups):
            people.write(db, statement, group=group, name=name)


def routes(state: State) -> list[Route]:
    door = Door(state)

    def standing(call: Call) -> Standing:
        with state.engine.connect() as db:
            return people.standing(db, call.path["user"])

    one = "/api/v1/logins"
    return [
        Route("POST", one, lambda call: door.enter(call.body), "users:check", Credential, Standing, "Whose name and password these are.", within="platform"),
        Route("POST", one + "/code", lambda call: door.redeem(call, call.body), "users:check", Redeem, Standing, "A one-time code against a password.", within="platform"),
        Route("POST", one + "/external", lambda call: door.arrive(call, call.body), "users:check", External, Standing, "Whom an identity provider vouches for.", within="platform"),
        Route("GET", one + "/{user}", standing, "users:check", answer=Standing, doc="What a user may do now.", within="platform"),
    ]  # fmt: skip
