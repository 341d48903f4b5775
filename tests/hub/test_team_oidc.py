"""Logging in at an OpenID Connect provider: a real one in its own process, the hub's real OAuth dance, accounts bound to subjects."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
import team_world
import tied
from ports import free_port
from running import wait_for
from team_world import Team

from cellwork.errors import Refused, Unavailable
from cellwork_hub.config import logins

pytestmark = pytest.mark.timeout(600)
CLAIMS = {
    "s-1": {"preferred_username": "frida", "groups": ["modellers", "unknown"]},
    "s-2": {"preferred_username": "frida", "groups": ["modellers"]},
    "s-3": {"preferred_username": "Günther", "groups": ["modellers"]},
    "s-4": {"preferred_username": "hugo", "groups": []},
    "s-5": {"preferred_username": "ida", "groups": "modellers"},
    "s-6": {"preferred_username": "../../etc", "groups": ["modellers"]},
    "s-7": {"preferred_username": "jon", "groups": ["modellers"]},
}


@dataclass(frozen=True)
class Provider:
    issuer: str

    def set_groups(self, subject: str, groups: list[str]) -> None:
        claims = {**CLAIMS[subject], "groups": groups}
        httpx.put(f"{self.issuer}/users/{subject}", json=claims, trust_env=False, timeout=60).raise_for_status()


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    port = free_port()
    users = [word for sub, claims in CLAIMS.items() for word in ("--user-claims", json.dumps({"sub": sub, **claims}))]
    program = str(Path(sys.executable).parent / "oidc-provider-mock")
    process = tied.start([program, "-p", str(port), *users], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        issuer = f"http://127.0.0.1:{port}"
        wait_for(lambda: _answers(issuer), 60, "the provider")
        yield Provider(issuer)
    finally:
        tied.stop(process)


def _answers(issuer: str) -> bool:
    try:
        return httpx.get(issuer + logins.DISCOVERY, trust_env=False, timeout=60).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def team(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    home = tmp_path_factory.mktemp("oidc") / "home"
    secret = home / "secrets" / "oidc-client-secret"
    secret.parent.mkdir(parents=True, mode=0o700)
    secret.write_text("shared with the provider")
    secret.chmod(0o600)
    settings = {
        "CELLWORK_LOGIN": "oidc",
        "CELLWORK_OIDC_ISSUER": provider.issuer,
        "CELLWORK_OIDC_CLIENT_ID": "cellwork",
        "CELLWORK_OIDC_SCOPES": "openid profile groups",
    }
    with team_world.running(home, people=(), **settings) as team:
        team.client().users.ensure_group("modellers", "author")
        yield team


@contextmanager
def arriving(team: Team, subject: str) -> Iterator[tuple[httpx.Client, httpx.Response]]:
    """Log in as a person does: the hub's button, the provider's form, and back; yield the browser and where it ended."""
    with team.browser() as browser:
        browser.headers["accept"] = "text/html"
        page = browser.get("/hub/login?next=%2Fhub%2Fhome")
        assert "Sign in with your organisation" in page.text
        form = browser.get("/hub/oauth_login?next=%2Fhub%2Fhome")
        assert form.url.path == "/oauth2/authorize"
        yield browser, browser.post(form.url, data={"sub": subject})


def refusal(team: Team, subject: str) -> str:
    """Return what a person reads who is not let in."""
    with arriving(team, subject) as (browser, answer):
        assert answer.status_code == 403
        assert "login" in str(browser.get("/hub/home").url)
        return answer.text


def test_a_known_group_of_the_provider_lets_one_in_with_its_role(team: Team, provider: Provider) -> None:
    with arriving(team, "s-1") as (browser, answer):
        assert (answer.status_code, answer.url.path) == (200, "/hub/home")
        found = team.client().users.get("frida")
        assert (found.role, found.groups, found.own_role) == ("author", ["modellers"], "")
        assert found.subject == f"{provider.issuer}#s-1"
        assert browser.get("/services/mlflow/version").status_code == 200
    provider.set_groups("s-1", [])
    with arriving(team, "s-1"):
        assert team.client().users.get("frida").role == ""


def test_the_same_name_of_another_person_is_somebody_else_and_stays_out(team: Team) -> None:
    with arriving(team, "s-1"):
        assert "is somebody else here" in refusal(team, "s-2")


@pytest.mark.parametrize("subject", ["s-3", "s-6"])
def test_a_name_that_is_not_safe_is_refused_and_an_admin_can_give_another(
    team: Team, provider: Provider, subject: str
) -> None:
    assert "is not a user name" in refusal(team, subject)
    name = f"named-{subject}"
    team.client().users.add(name, "viewer", subject=f"{provider.issuer}#{subject}")
    with arriving(team, subject) as (_, answer):
        assert answer.status_code == 200
        assert name in answer.text


def test_whom_nobody_knows_stays_out_until_an_admin_lets_them_in(team: Team, provider: Provider) -> None:
    assert "is not known here" in refusal(team, "s-4")
    assert "is not known here" in refusal(team, "s-5")  # whose groups are no list
    team.client().users.add("hugo", "author", external=True)
    with arriving(team, "s-4") as (_, answer):
        assert answer.status_code == 200
    assert team.client().users.get("hugo").subject == f"{provider.issuer}#s-4"


def test_a_removed_user_does_not_come_back_by_the_provider(team: Team) -> None:
    with arriving(team, "s-7") as (browser, answer):
        assert answer.status_code == 200
        team.change("jon", state="removed")
        wait_for(lambda: browser.get("/hub/home").url.path != "/hub/home", 60, "the end of the login")
    assert "was removed" in refusal(team, "s-7")


def test_there_is_no_password_form_beside_the_provider(team: Team) -> None:
    with team.browser() as browser:
        fields = team.form(browser, "/hub/login") | {"username": "frida", "password": ""}
        assert browser.post("/hub/login", data=fields).status_code >= 400
        assert "login" in str(browser.get("/hub/home").url)
        assert browser.get("/hub/welcome").status_code == 404


class Elsewhere(BaseHTTPRequestHandler):
    """Says that it is another provider."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"issuer": "https://provider.example"}')

    def log_message(self, *_: object) -> None:
        return None


def test_a_provider_that_is_another_or_away_is_named() -> None:
    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.handle_request).start()
        with pytest.raises(Refused, match=r"says it is 'https://provider\.example'"):
            logins.discover(address)
    with pytest.raises(Unavailable, match="check oidc_issuer"):
        logins.discover(address)
