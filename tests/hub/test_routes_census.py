"""Every route of hub, services, MLflow and Voila stands in routes_census.tsv, and answers nobody, a viewer and a stranger as it says there."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable
from typing import Any

import census
import httpx
import pytest
from census import METHODS, Row
from running import wait_for
from team_world import TRUST, Team
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from cellwork import scopes
from cellwork.client import Client
from cellwork.wire import PREFIX
from cellwork.wire.batches import RawDataset
from cellwork.wire.jobs import RunRequest
from cellwork_hub import tracking

pytestmark = pytest.mark.timeout(600)
REFUSED = {401, 403}
KERNEL = "01234567-89ab-cdef-0123-456789abcdef"
NOTEBOOK = '{"cells": [], "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}}, "nbformat": 4, "nbformat_minor": 5}'
IDS = {
    "batch": "bat", "dataset": "ds", "evaluation": "eval", "run": "run", "deployment": "dep", "prediction": "pred",
}  # fmt: skip


def rows(program: str) -> dict[tuple[str, str], str]:
    return {(method, path): who for (name, method, path), who in census.table().items() if name == program}


def missing(found: set[Row], *programs: str) -> str:
    """Return the lines by which the table and `found` differ, to be pasted or deleted."""
    table = {row for row in census.table() if row[0] in programs}
    new = [f"+ {'	'.join(row)}	<who may?>" for row in sorted(found - table)]
    gone = [f"- {'	'.join(row)}" for row in sorted(table - found)]
    return "\n".join(new + gone)


def test_every_route_of_our_services_is_in_the_table_with_its_scope_and_boundary() -> None:
    found = census.services()
    assert missing(set(found), "cellwork", "jobs", "inference") == ""
    assert {row: who for row, who in census.table().items() if row in found} == found


@pytest.fixture(scope="module")
def asked(team: Team) -> dict[str, list[Row]]:
    return census.asked({**team.environ, **TRUST})


@pytest.mark.parametrize("program", ["hub", "mlflow", "dashboards"])
def test_every_route_of_a_program_behind_the_gate_is_in_the_table(asked: dict[str, list[Row]], program: str) -> None:
    found = asked[program]
    prefix = PREFIX.get(program, "")
    assert missing({(name, method, path.removeprefix(prefix)) for name, method, path in found}, program) == ""


def test_the_running_services_describe_the_routes_that_the_table_has(team: Team) -> None:
    """The table is made from the code; these are the processes that answer."""
    for program in ("cellwork", "jobs", "inference"):
        with team.http(team.token()) as http:
            paths = http.get(f"/services/{program}/openapi.json").json()["paths"]
        live = {(method.upper(), path) for path, methods in paths.items() for method in methods}
        assert live == {row for row in rows(program) if row[0] != "WEBSOCKET"}


def test_the_proxy_leads_to_the_hub_and_the_services_and_nowhere_else(team: Team) -> None:
    password = (team.home / "secrets" / "proxy-token").read_text().strip()
    api = f"http://127.0.0.1:{team.ports['proxy-api']}/api/http/routers"
    assert httpx.get(api, trust_env=False, timeout=60).status_code == 401
    routers = httpx.get(api, auth=("jupyterhub", password), trust_env=False, timeout=60).json()
    prefixes = {path for router in routers for path in re.findall(r"PathPrefix\(`([^`]+)`\)", router["rule"])}
    ours = {path.rstrip("/") for path in prefixes if not path.startswith(("/api", "/ping", "/metrics"))}
    assert ours <= {"", *PREFIX.values()} | {path for path in ours if path.startswith("/user/")}
    assert set(PREFIX.values()) <= ours


def test_the_hub_answers_each_as_the_table_says(team: Team) -> None:
    vera = team.people["vera"]
    wrong = []
    with team.http() as nobody, team.http(vera.token()) as token, vera.browser() as browser:
        nobody.headers["accept"] = "text/html"
        form = team.form(browser, "/hub/home")
        for (method, pattern), who in rows("hub").items():
            path = hub_path(pattern)
            if "logout" in path:
                continue
            refused = closed(nobody.request(method, path))
            if "/api/" in path:
                theirs = token.request(method, path, json={})
            else:
                form_field = form if method != "GET" and who != "form" else None
                theirs = browser.request(method, path, params=form_field, follow_redirects=False)
            outside = theirs.status_code in REFUSED | {404, 424}
            expected = {"open": (False, None), "everyone": (True, False)}.get(who, (True, True))
            if refused != expected[0] or (expected[1] is not None and outside != expected[1]):
                wrong.append((method, path, who, refused, theirs.status_code))
    assert wrong == []


def hub_path(pattern: str) -> str:
    """Return a path that a pattern of the hub matches, about anna, who is not the one who asks."""
    for part, value in (
        ("(?!/hub/).*", "/nowhere"),
        ("/(user|services)/([^/]+)", "/user/anna"),
        ("(?P<user_name>[^/]+)(?P<user_path>/.*)?", "anna/lab"),
        ("(?P<user_name>[^/]+)/(?P<server_name>page-[^/]+)", "anna/page-report"),
        ("(?P<rest>/.*)?", "/"),
        ("(.*)?", "lab"),
        (r"(\d+)", "404"),
        ("groups/([^/]+)", "groups/role:admin"),
        ("services/([^/]+)", "services/cellwork"),
        ("(?:/([^/]+))?", ""),
        ("([^/]+)", "anna"),
        ("([^/]*)", ""),
    ):
        pattern = pattern.replace(part, value)
    return pattern.rstrip("$?")


def closed(answer: httpx.Response) -> bool:
    return answer.status_code in REFUSED or "/hub/login" in answer.headers.get("location", "")


@pytest.fixture(scope="module")
def secret(team: Team) -> dict[str, str]:
    """Things of a project of anna's, by the parameters of paths."""
    import polars as pl

    anna = team.people["anna"].client()
    anna.projects.create("census")
    anna.batches.declare("census", RawDataset(name="raw"))
    batch = anna.batches.ingest("census", "raw", pl.DataFrame({"x": [1, 2]}), "2013-01").batch
    run = anna.jobs.start(RunRequest(project="census", notebook="a.ipynb", content=NOTEBOOK))
    made = {kind: f"{prefix}_{'0' * 26}" for kind, prefix in IDS.items()} | {"batch": batch.id, "run": run.id}
    return made | {"project": "census", "dataset_name": "raw", "member": "bert", "user": "anna", "group": "g"}


def filled(path: str, values: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], "raw"), path)


@pytest.mark.parametrize("program", ["cellwork", "jobs", "inference"])
def test_a_service_answers_each_as_the_table_says(team: Team, secret: dict[str, str], program: str) -> None:
    """Nobody is refused everywhere, a viewer where the scope is not a viewer's, a stranger where the path names a project."""
    wrong = []
    vera, bert = team.people["vera"], team.people["bert"]
    with team.http() as nobody, team.http(vera.token()) as viewer, team.http(bert.token()) as stranger:
        for (method, path), who in rows(program).items():
            url = f"/services/{program}{filled(path, secret)}"
            if who == "open":
                if nobody.get(url).status_code != 200:
                    wrong.append((url, who))
                continue
            scope, within = who.split()
            if method == "WEBSOCKET":
                wrong += [(url, who)] if not socket_refused(team, url, "") else []
                wrong += [(url, who)] if not socket_refused(team, url, bert.token()) else []
                continue
            if answered(nobody, method, url).status_code != 401:
                wrong.append((method, url, "nobody"))
            seen = answered(viewer, method, url, content=b"{}").status_code
            if (seen == 403) != (scope not in scopes.ROLES["viewer"]) and not path.endswith("/audit"):
                wrong.append((method, url, "viewer", seen))
            theirs = answered(stranger, method, url, content=body(method, path), params={"project": "census"})
            if within == "project" and scope in scopes.ROLES["author"] and not hidden(theirs):
                wrong.append((method, url, "stranger", theirs.status_code, theirs.text[:200]))
    assert wrong == []


def answered(http: httpx.Client, method: str, url: str, **more: Any) -> httpx.Response:
    """Return the answer of a request; of a stream of events, which goes on, the first piece."""
    with http.stream(method, url, **more) as answer:
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            return httpx.Response(answer.status_code, content=next(answer.iter_bytes()))
        answer.read()
        return answer


def body(method: str, path: str) -> bytes:
    return b"{}" if method in ("POST", "PUT") else b""


def hidden(answer: httpx.Response) -> bool:
    """Whether a stranger learns nothing: the project, or the thing, is not there for them, or the list is without it."""
    if answer.status_code == 200:
        return "census" not in answer.text
    return answer.status_code in (404, 422, 400)


def socket_refused(team: Team, url: str, token: str) -> bool:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        where = team.url.replace("http", "ws", 1) + url
        with connect(where, additional_headers=headers, proxy=None, open_timeout=60) as socket:
            socket.recv(timeout=60)
    except InvalidStatus as error:
        return error.response.status_code in REFUSED
    except Exception as error:
        return "4403" in str(error)
    return False


def test_what_is_annas_is_there_for_anna_and_a_path_that_names_no_project_asks_for_it(
    team: Team, secret: dict[str, str]
) -> None:
    """The other side of the census: what a stranger is told is missing is there."""
    anna = team.people["anna"].client()
    assert anna.batches.get(secret["batch"]).rows == 2
    assert anna.jobs.run(secret["run"]).project == "census"
    assert [batch.id for batch in anna.batches.list("census")] == [secret["batch"]]
    assert any(event.project == "census" for event in anna.records.events())
    stranger = team.people["bert"].client()
    assert not any(event.project == "census" for event in stranger.records.events())


def test_mlflow_answers_each_as_the_table_says(team: Team) -> None:
    wrong = []
    with team.http() as nobody, team.http(team.people["vera"].token()) as viewer:
        for (method, path), who in rows("mlflow").items():
            url = "/services/mlflow" + re.sub(r"<[^>]+>|\{[^}]*\}", "x1", path)
            if method not in METHODS:
                continue
            if nobody.request(method, url).status_code != 401:
                wrong.append((method, url, "nobody"))
            status = viewer.request(method, url, json={}).status_code
            if (status == 403) != (who not in scopes.ROLES["viewer"]):
                wrong.append((method, url, who, status))
    assert wrong == []


def test_the_table_says_of_mlflow_what_the_gates_rules_say() -> None:
    for (method, path), who in rows("mlflow").items():
        plain = re.sub(r"<[^>]+>|\{[^}]*\}", "x1", path)
        found = (r for r in tracking.RULES if method in r.methods.split() and r.pattern.fullmatch(plain))
        rule = next(found, None)
        assert who == ((rule.scope or "platform") if rule else "closed"), (method, path)


def test_voila_answers_each_as_the_table_says(team: Team) -> None:
    wrong = []
    with team.http() as nobody, team.http(team.people["vera"].token()) as viewer:
        for (method, path), who in rows("dashboards").items():
            plain = re.sub(r"\(\?P<kernel_id>.*?\)", KERNEL, path).replace("(?P<path>(?:(?:/[^/]+)+|/?))", "")
            url = "/services/dashboards" + plain.replace("shutdown/(.*)", f"shutdown/{KERNEL}").replace("(.*)", "x.png")
            if method == "WEBSOCKET":
                wrong += [] if socket_refused(team, url, "") else [(url, "nobody")]
                continue
            if nobody.request(method, url).status_code != 401:
                wrong.append((method, url, "nobody"))
            status = viewer.request(method, url).status_code
            if who == "closed" and status != 403:
                wrong.append((method, url, who, status))
    assert wrong == []


def test_a_path_that_reads_two_ways_opens_nothing(team: Team, secret: dict[str, str]) -> None:
    """A stranger's tricks against the boundary: every one is refused, none finds anna's batch."""
    tricks: list[Callable[[str], str]] = [
        lambda p: p.replace("/api/", "//api/"),
        lambda p: p.replace("/api/", "/./api/"),
        lambda p: p.replace("/raw/", "/x/../raw/"),
        lambda p: p.replace("census", "%63ensus"),
        lambda p: p.replace("census", "CENSUS"),
        lambda p: p.replace("census", "census%00"),
        lambda p: p + "?project=of-author",
        lambda p: p.replace("census", "census;x"),
        lambda p: p.replace("/raw/census", "/raw%2fcensus"),
    ]
    token = team.people["bert"].token()
    direct = f"http://127.0.0.1:{team.ports['cellwork']}"
    for trick in tricks:
        path = trick("/services/cellwork/api/v1/raw/census")
        for base in (team.url, direct):
            headers = {"authorization": f"Bearer {token}"}
            answer = httpx.get(base + path, headers=headers, trust_env=False, timeout=60)
            assert answer.status_code in (400, 404, 422), (base, path, answer.status_code, answer.text)


def test_a_membership_that_ends_closes_what_is_open(team: Team, secret: dict[str, str]) -> None:
    """The events of a run stream for as long as the run goes on; a member who is put out does not hear the rest."""
    anna, bert = team.people["anna"].client(), team.people["bert"]
    anna.projects.add("census", "bert")
    url = f"/services/jobs/api/v1/runs/{secret['run']}/events"
    with team.http(bert.token()) as http, http.stream("GET", url) as stream:
        assert stream.status_code == 200
        lines = stream.iter_lines()
        assert "run.queued" in next(line for line in lines if line.startswith("event"))
        anna.projects.remove("census", "bert")
        end = time.monotonic() + 60
        with contextlib.suppress(httpx.RemoteProtocolError):  # cut off in the middle, as it should be
            for _ in lines:  # a beat comes every few seconds
                assert time.monotonic() < end, "the stream goes on"
    assert json.loads(http_get(team, bert.token(), url.removesuffix("/events")))["type"] == "NotFound"


def http_get(team: Team, token: str, url: str) -> str:
    with team.http(token) as http:
        return wait_for(lambda: (a := http.get(url)).status_code == 404 and a.text, 60, "the end of the membership")


def test_a_client_of_nobody_is_told_how_to_send_a_credential(team: Team) -> None:
    with pytest.raises(Exception, match="Bearer"):
        Client(team.url, "").projects.list()
