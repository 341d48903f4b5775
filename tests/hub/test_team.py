"""`team` trust: each with a credential of their own, a role, projects; what is taken away ends within a minute everywhere."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator

import httpx
import pytest
from running import wait_for
from team_world import Person, Team

from cellwork import scopes
from cellwork.client import Client
from cellwork.errors import BadInput, Conflict, NotFound, Refused
from cellwork.wire.jobs import RunRequest

pytestmark = pytest.mark.timeout(600)
READABLE = {
    "cellwork": "/api/v1/projects",
    "jobs": "/api/v1/jobs",
    "inference": "/api/v1/endpoints",
    "mlflow": "/version",
    "dashboards": "/voila/tree",
}
NOTEBOOK = '{"cells": [], "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}}, "nbformat": 4, "nbformat_minor": 5}'
counter = itertools.count()


@pytest.fixture
def somebody(team: Team) -> Person:
    """A fresh author whom a test may treat as it likes."""
    return team.invite(f"guest{next(counter)}")


@pytest.fixture
def browser(team: Team) -> Iterator[httpx.Client]:
    with team.browser() as browser:
        yield browser


def statuses(team: Team, token: str) -> dict[str, int]:
    """Return what each service answers to a read with `token`."""
    with team.http(token) as http:
        return {name: http.get(f"/services/{name}{path}").status_code for name, path in READABLE.items()}


def cut_off(team: Team, token: str) -> bool:
    return set(statuses(team, token).values()) <= {401, 403}


def test_everybody_logs_in_with_their_own_password_and_with_nobody_elses(team: Team, browser: httpx.Client) -> None:
    anna, bert = team.people["anna"], team.people["bert"]
    assert team.sign_in(browser, "anna", bert.password).status_code == 403
    assert team.sign_in(browser, "anna", "").status_code == 403
    assert team.sign_in(browser, "root", anna.password).status_code == 403
    answer = team.sign_in(browser, "anna", anna.password)
    assert (answer.status_code, answer.url.path) == (200, "/hub/home")
    assert "anna" in answer.text


def test_no_password_is_there_by_default_and_none_is_kept_in_the_clear(team: Team) -> None:
    with team.browser() as browser:
        for name in ("admin", "jovyan", "root1"):
            for word in ("", name, "password", "cellwork", team.password):
                answer = team.sign_in(browser, name, word)
                assert answer.status_code in (403, 429), (name, word)
    stored = b"".join(path.read_bytes() for path in (team.home / "db").glob("platform.sqlite*"))
    assert b"$argon2id$" in stored
    for person in team.people.values():
        assert person.password.encode() not in stored
    for path in (team.home / "logs").glob("*.log"):
        assert "pass phrase of" not in path.read_text()


def test_a_code_works_once_and_only_for_its_name(team: Team, browser: httpx.Client) -> None:
    made = team.client().users.add("clara")
    assert team.redeem(browser, "anna", made.code, "another good phrase").status_code == 403
    assert team.redeem(browser, "clara", "aaaa-aaaa-aaaa-aaaa", "another good phrase").status_code == 403
    short = team.redeem(browser, "clara", made.code, "short")
    assert (short.status_code, "choose 10 to 512" in short.text) == (422, True)
    assert "are not the same" in team.redeem(browser, "clara", made.code, "another good phrase", "a typo").text
    assert team.redeem(browser, "clara", made.code, "another good phrase").status_code == 200
    with team.browser() as again:
        assert team.redeem(again, "clara", made.code, "yet another phrase").status_code == 403
        assert team.sign_in(again, "clara", "yet another phrase").status_code == 403
        assert team.sign_in(again, "clara", "another good phrase").status_code == 200


def test_a_code_is_in_no_log_and_in_no_audit(team: Team) -> None:
    code = team.client().users.add("carl").code
    told = json.dumps([str(row) for row in team.client().records.audit(limit=10_000)])
    told += "".join(path.read_text() for path in (team.home / "logs").glob("*.log"))
    assert code not in told
    assert "user.add" in told


def test_guessing_is_slowed_and_does_not_lock_the_owner_out_elsewhere(team: Team, somebody: Person) -> None:

    def guess_and_enter() -> str:
        """Return what the owner reads after five guesses; nothing if the wait, a second, was over before."""
        page = "/hub/login?next=%2Fhub%2Fhome"
        with team.browser() as stranger, team.browser() as owner:
            fields = team.form(owner, page) | {"username": somebody.name, "password": somebody.password}
            guesses = [team.sign_in(stranger, somebody.name, f"guess {n}").status_code for n in range(5)]
            answer = owner.post(page, data=fields)
        assert (guesses, answer.status_code in (200, 429)) == ([403] * 5, True)
        return answer.text if answer.status_code == 429 else ""

    assert "try again in" in wait_for(guess_and_enter, 60, "a wait")
    wait_for(lambda: _may_enter(team, somebody), 60, "the end of the wait")


def _may_enter(team: Team, person: Person) -> bool:
    with team.browser() as browser:
        return team.sign_in(browser, person.name, person.password).status_code == 200


@pytest.mark.parametrize("role", list(scopes.ROLES))
def test_a_role_is_what_the_table_says_at_every_service(team: Team, role: str) -> None:
    person = next(p for n, p in team.people.items() if team.client().users.get(n).role == role)
    with team.http(person.token()) as http:
        granted = {s for s in http.get("/hub/api/user").json()["scopes"] if s.startswith(scopes.HUB_PREFIX)}
        assert scopes.from_hub(granted) == scopes.ROLES[role]
        assert http.get("/services/cellwork/api/v1/users").status_code == (200 if role == "admin" else 403)
        made = http.put(f"/services/cellwork/api/v1/projects/of-{role}").status_code
        assert made == (403 if role == "viewer" else 200)
        assert http.get("/services/cellwork/api/v1/logins/anna").status_code == 403
        assert http.post("/services/jobs/api/v1/claims", json={"runner": "me"}).status_code == 403
    assert set(statuses(team, person.token()).values()) == {200} if role != "viewer" else True


def test_a_removed_user_is_out_everywhere_within_a_minute_and_comes_back_only_by_a_new_login(
    team: Team, somebody: Person
) -> None:
    token = somebody.token()
    with somebody.browser() as browser:
        assert browser.get("/services/mlflow/version").status_code == 200
        assert not cut_off(team, token)
        removed = team.command("user", "remove", somebody.name, "--reason", "left")
        assert f"undo: cellwork user restore {somebody.name}" in removed.stdout
        started = time.monotonic()
        wait_for(lambda: cut_off(team, token), 60, "the end of the token")
        wait_for(lambda: "login" in str(browser.get("/services/mlflow/version").url), 60, "the end of the login")
        assert "login" in str(browser.get("/hub/home").url)
        print(f"removed: out after {time.monotonic() - started:.1f} s with a cache of 2 s")
        assert team.sign_in(browser, somebody.name, somebody.password).status_code == 403
        team.command("user", "restore", somebody.name)
        assert cut_off(team, token)
        assert team.sign_in(browser, somebody.name, somebody.password).status_code == 200
    assert not cut_off(team, somebody.token())
    assert cut_off(team, token)


def test_a_role_that_is_taken_away_ends_within_a_minute_and_a_new_one_counts_at_once(
    team: Team, somebody: Person
) -> None:
    with team.http(somebody.token()) as http:
        path = f"/services/cellwork/api/v1/projects/{somebody.name}"
        assert http.put(path).status_code == 200
        team.change(somebody.name, role="viewer")
        wait_for(lambda: http.put(path).status_code == 403, 60, "the end of the role")
        team.change(somebody.name, role="author")
        wait_for(lambda: http.put(path).status_code == 200, 60, "the new role")


def test_a_revoked_token_ends_within_a_minute_and_the_others_go_on(team: Team, somebody: Person) -> None:
    kept, gone = somebody.token(), somebody.token()
    assert not cut_off(team, gone)
    with team.hub() as hub:
        rows = hub.get(f"/users/{somebody.name}/tokens").json()["api_tokens"]
        newest = max(rows, key=lambda row: row["created"])
        assert hub.delete(f"/users/{somebody.name}/tokens/{newest['id']}").status_code == 204
    wait_for(lambda: cut_off(team, gone), 60, "the end of the token")
    assert not cut_off(team, kept)


def test_a_new_code_voids_the_password_and_the_logins_but_not_what_runs(team: Team, somebody: Person) -> None:
    token = somebody.token()
    with somebody.browser() as browser, team.browser() as other:
        browser.get("/services/mlflow/version")
        shown = team.command("user", "password", somebody.name).stdout
        code = re.search(r"code +(\S+)", shown)[1]
        assert team.sign_in(other, somebody.name, somebody.password).status_code == 403
        wait_for(lambda: "login" in str(browser.get("/hub/home").url), 60, "the end of the login")
        wait_for(lambda: "login" in str(browser.get("/services/mlflow/version").url), 60, "the end of the login")
        assert team.redeem(other, somebody.name, code, "quite a new phrase").status_code == 200
        time.sleep(3)
        assert "login" not in str(other.get("/hub/home").url)
    assert not cut_off(team, token)


def test_a_groups_role_counts_for_its_members(team: Team, somebody: Person) -> None:
    users = team.client().users
    users.ensure_group("modellers", "deployer")
    users.join("modellers", somebody.name)
    assert users.get(somebody.name).role == "deployer"
    with team.http(somebody.token()) as http:
        wait_for(lambda: scopes.to_hub("models:promote") in http.get("/hub/api/user").json()["scopes"], 60)
        users.remove_group("modellers")
        wait_for(lambda: scopes.to_hub("models:promote") not in http.get("/hub/api/user").json()["scopes"], 60)
    assert users.get(somebody.name).role == "author"


def test_a_project_is_closed_to_who_is_no_member_of_it(team: Team) -> None:
    anna, bert = team.people["anna"].client(), team.people["bert"].client()
    anna.projects.create("secret-of-anna")
    run = anna.jobs.start(RunRequest(project="secret-of-anna", notebook="a.ipynb", content=NOTEBOOK))
    request = RunRequest(project="secret-of-anna", notebook="b.ipynb", content=NOTEBOOK)
    for forbidden in (
        lambda: bert.jobs.start(request),
        lambda: bert.jobs.run(run.id),
        lambda: bert.jobs.notebook(run.id),
        lambda: bert.jobs.stop(run.id),
        lambda: bert.batches.declared("secret-of-anna"),
        lambda: bert.projects.add("secret-of-anna", "bert"),
    ):
        with pytest.raises(NotFound, match=r"does not exist, or"):
            forbidden()
    assert [r.id for r in bert.jobs.runs()] == []
    assert [p.project for p in bert.projects.list() if "anna" in p.project] == []
    assert not [e for e in bert.records.events(service="jobs") if e.project == "secret-of-anna"]
    assert [r.id for r in anna.jobs.runs(project="secret-of-anna")] == [run.id]

    anna.projects.add("secret-of-anna", "bert")
    assert wait_for(lambda: _or_none(lambda: bert.jobs.run(run.id)), 60, "the membership").id == run.id
    anna.projects.remove("secret-of-anna", "bert")
    wait_for(lambda: _or_none(lambda: bert.jobs.run(run.id)) is None, 60, "the end of the membership")
    with pytest.raises(Refused, match="nobody left"):
        anna.projects.remove("secret-of-anna", "anna")
    anna.jobs.stop(run.id)


def _or_none(ask: object) -> object:
    try:
        return ask()  # type: ignore[operator]
    except NotFound:
        return None


def test_the_audit_is_an_admins_and_says_who_changed_whom(team: Team, somebody: Person) -> None:
    with pytest.raises(Refused, match="admin"):
        team.people["anna"].client().records.audit()
    boss = team.people["root1"].client()
    boss.users.get(somebody.name)
    team.command("user", "role", somebody.name, "viewer")
    rows = json.loads(team.command("user", "history", somebody.name, "--json").stdout)
    assert [row["action"] for row in rows] == ["user.add", "user.chose_password", "user.change"]
    assert rows[-1]["principal"] == "service:cli"
    assert json.loads(rows[-1]["before"])["role"] == "author"
    assert boss.records.audit(limit=1)


def test_errors_of_the_user_command_say_what_to_do(team: Team) -> None:
    users = team.client().users
    for call, kind, words in (
        (lambda: users.add("anna"), Conflict, "is there already"),
        (lambda: users.add("Anna"), BadInput, "is not a user name"),
        (lambda: users.add("jobs"), BadInput, "a word of the platform's own"),
        (lambda: users.add("ella", "boss"), BadInput, "there are: admin, author, deployer, viewer"),
        (lambda: users.get("ana"), NotFound, "did you mean 'anna'"),
        (lambda: users.join("nobodies", "anna"), NotFound, "does not exist"),
    ):
        with pytest.raises(kind, match=words):
            call()


def test_without_a_container_engine_a_server_is_refused_with_the_reason(team: Team, somebody: Person) -> None:
    with team.hub() as hub:
        hub.post(f"/users/{somebody.name}/server")
    with somebody.browser() as browser:
        page = browser.get("/hub/spawn").text
    assert "need a container engine in team trust" in page
    assert "cellwork doctor" in page


def test_a_client_from_anothers_token_is_that_other_and_nobody_acts_for_somebody_else(team: Team) -> None:
    anna = team.people["anna"]
    with httpx.Client(
        base_url=f"{team.url}/hub/api", headers={"authorization": f"token {anna.token()}"}, timeout=60
    ) as hub:
        for method, path in (
            ("GET", "/users"),
            ("GET", "/users/bert"),
            ("POST", "/users/bert/tokens"),
            ("GET", "/users/bert/tokens"),
            ("POST", "/users/bert/server"),
            ("DELETE", "/users/bert/server"),
            ("POST", "/groups/role:admin/users"),
            ("POST", "/groups/project:secret/users"),
            ("PATCH", "/users/anna"),
            ("GET", "/proxy"),
            ("POST", "/shutdown"),
        ):
            assert hub.request(method, path, json={"users": ["anna"], "admin": True}).status_code in (403, 404), path
    assert Client(team.url, anna.token()).jobs
