"""People of `team` trust: accounts, groups that map to roles, members of projects, and what a login is answered."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from cellwork.wire import Struct

State = Literal["invited", "active", "removed"]
"""`invited`: may choose a password with a one-time code. `removed`: nothing of it works; its name is given to nobody else."""


class Account(Struct):
    name: str
    state: State
    role: str
    """What it may do: the highest of its own role and the roles of its groups; empty is nothing."""
    own_role: str
    groups: list[str]
    projects: list[str]
    created: datetime
    subject: str = ""
    """Who it is at the identity provider, if it logs in there."""


class NewAccount(Struct):
    name: str
    role: str = "author"
    external: bool = False
    """It logs in at the identity provider, so it gets no code."""
    subject: str = ""


class Invited(Struct):
    """An account and the code with which its owner chooses a password, once. Only this answer holds the code."""

    account: Account
    code: str
    until: datetime | None


class Change(Struct):
    """A new role, or a new state; what is None stays."""

    role: str | None = None
    state: Literal["active", "removed"] | None = None
    reason: str = ""


class Group(Struct):
    name: str
    role: str
    members: list[str] = []


class GroupRole(Struct):
    role: str


class Members(Struct):
    """A project and who reads and writes in it: users, and groups as ``@group``."""

    project: str
    members: list[str]


class Credential(Struct):
    name: str
    password: str
    address: str = ""
    """Where the attempt came from, as far as the hub knows."""


class Redeem(Struct):
    """A one-time code against a password of one's own."""

    name: str
    code: str
    password: str
    address: str = ""


class External(Struct):
    """Whom an identity provider vouches for."""

    subject: str
    """Issuer and subject; the only part that the provider never gives to somebody else."""
    name: str
    groups: list[str] = []


class Standing(Struct):
    """What the hub must know of a user now. Tokens and logins from before the two moments (seconds since 1970) count no more."""

    name: str
    active: bool
    groups: list[str]
    logins_after: float = 0.0
    tokens_after: float = 0.0
