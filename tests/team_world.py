"""A platform in `team` trust as tests see it: people with passwords of their own, their browsers and their tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from running import Platform, address, started

from cellwork.client import Client
from cellwork.wire.users import Change

TRUST = {"CELLWORK_TRUST": "team"}
EVERYBODY = {"vera": "viewer", "anna": "author", "bert": "author", "dora": "deployer", "root1": "admin"}
"""Name -> role of the people who are there from the start; they share no project."""


def pass_phrase(name: str) -> str:
    return f"a long pass phrase of {name.encode().hex()}"


@dataclass(frozen=True)
class Person:
    team: Team
    name: str
    password: str

    @contextmanager
    def browser(self) -> Iterator[httpx.Client]:
        """Yield a client that is logged in as a person is: by the form, with cookies."""
        with self.team.browser() as browser:
            answer = self.team.sign_in(browser, self.name, self.password)
            assert answer.status_code == 200, answer.text
            yield browser

    def token(self, *scopes: str) -> str:
        """Return a fresh token with these hub scopes; by default all that the person has."""
        with self.team.hub() as hub:
            wanted = {"expires_in": 3600, "scopes": list(scopes or ("inherit",))}
            answer = hub.post(f"/users/{self.name}/tokens", json=wanted)
            answer.raise_for_status()
            return str(answer.json()["token"])

    def client(self) -> Client:
        return Client(self.team.url, self.token())


@dataclass(frozen=True)
class Team(Platform):
    people: dict[str, Person] = field(default_factory=dict)

    def form(self, browser: httpx.Client, page: str) -> dict[str, str]:
        """Open a page of the hub and return the hidden field of its form."""
        browser.headers["accept"] = "text/html"
        browser.get(page)
        return {"_xsrf": next(c.value for c in browser.cookies.jar if c.name == "_xsrf" and c.path == "/hub/")}

    def sign_in(self, browser: httpx.Client, name: str, password: str) -> httpx.Response:
        fields = self.form(browser, "/hub/login?next=%2Fhub%2Fhome")
        fields |= {"username": name, "password": password}
        return browser.post("/hub/login?next=%2Fhub%2Fhome", data=fields)

    def redeem(self, browser: httpx.Client, name: str, code: str, password: str, again: str = "") -> httpx.Response:
        """Choose a password with a one-time code, on the page that the link opens."""
        fields = self.form(browser, "/hub/welcome")
        fields |= {"username": name, "code": code, "password": password, "again": again or password}
        return browser.post("/hub/welcome", data=fields)

    def invite(self, name: str, role: str = "author") -> Person:
        """Make an account and walk its owner's way in."""
        made = json.loads(self.command("user", "add", name, "--role", role, "--json").stdout)
        with self.browser() as browser:
            answer = self.redeem(browser, name, made["code"], pass_phrase(name))
        assert answer.status_code == 200, answer.text
        return Person(self, name, pass_phrase(name))

    def change(self, name: str, **wish: Any) -> None:
        self.client().users.change(name, Change(**wish))


@contextmanager
def running(home: Path, people: Iterable[str] = tuple(EVERYBODY), **environ: str) -> Iterator[Team]:
    """Yield a team of `people` on a free port; at the end it is stopped, and nothing of it is left."""
    with started(home, **TRUST, **environ) as said:
        team = Team(home, address(said), TRUST)
        for name in people:
            team.people[name] = team.invite(name, EVERYBODY[name])
        yield team
