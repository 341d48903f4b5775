"""Who gets in: tokens, browsers through the hub's OAuth, and nobody else on any route."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from running import Platform, wait_for
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from cellwork import scopes

OPEN = {"/health/live", "/health/ready"}
"""What everybody may ask of every service."""
JSON_SERVICES = ("cellwork", "jobs", "inference")


@pytest.fixture
def browser(platform: Platform) -> Iterator[httpx.Client]:
    with platform.browser() as browser:
        assert platform.login(browser).status_code == 200
        yield browser


def routes(platform: Platform, service: str) -> list[tuple[str, str]]:
    """Every method and path of a service, as the live app describes itself."""
    with platform.http(platform.token()) as http:
        paths = http.get(f"/services/{service}/openapi.json").json()["paths"]
    return [
        (method.upper(), path.replace("{", "").replace("}", ""))
        for path, operations in paths.items()
        for method in operations
    ]


@pytest.mark.parametrize("service", JSON_SERVICES)
def test_every_route_refuses_who_has_no_credential_or_one_without_scopes(platform: Platform, service: str) -> None:
    nobody = {}
    powerless = {}
    token = platform.user_token(f"access:services!service={service}")
    listed = routes(platform, service)
    assert len(listed) > 5
    with platform.http() as anonymous, platform.http(token) as weak:
        for method, path in listed:
            nobody[method, path] = anonymous.request(method, f"/services/{service}{path}").status_code
            powerless[method, path] = weak.request(method, f"/services/{service}{path}").status_code
    assert {status for (_, path), status in nobody.items() if path not in OPEN} == {401}
    assert {status for (_, path), status in powerless.items() if path not in OPEN} == {403}
    assert {path for (_, path), status in nobody.items() if status == 200} == OPEN


@pytest.mark.parametrize("service", ["mlflow", "dashboards"])
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/version",
        "/static-files/x.js",
        "/api/2.0/mlflow/experiments/search",
        "/graphql",
        "/api/kernels",
        "/voila/static/extension.js",
        "/metrics",
        "/nothing",
    ],
)
def test_a_wrapped_app_answers_nobody(platform: Platform, service: str, path: str) -> None:
    with platform.http() as http:
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
            assert http.request(method, f"/services/{service}{path}").status_code == 401
        direct = f"http://127.0.0.1:{platform.ports[service]}{path}"
        assert httpx.get(direct, trust_env=False, timeout=60).status_code == 401


@pytest.mark.parametrize("service", ["cellwork", "jobs", "mlflow", "dashboards"])
def test_a_browser_is_sent_to_the_login_and_comes_back_to_the_page_it_wanted(platform: Platform, service: str) -> None:
    page = f"/services/{service}/health/nowhere?x=1" if service in JSON_SERVICES else f"/services/{service}/?x=1"
    page = page.replace("/health/nowhere", "/openapi.json")
    with platform.browser() as browser:
        first = browser.get(page, headers={"accept": "text/html"}, follow_redirects=False)
        assert first.status_code == 302
        assert first.headers["location"].startswith("/hub/api/oauth2/authorize?")
        answer = platform.login(browser, page=page)
        assert (answer.status_code, str(answer.url)) == (200, platform.url + page)


def test_a_cookie_is_closed_to_scripts_and_is_no_token(platform: Platform, browser: httpx.Client) -> None:
    answer = browser.get("/services/dashboards/")
    cookies = [
        header
        for response in answer.history
        for header in response.headers.get_list("set-cookie")
        if header.startswith("cellwork-dashboards=")
    ]
    assert len(cookies) == 1
    assert "; Path=/services/dashboards/; HttpOnly; SameSite=Lax" in cookies[0]
    value = cookies[0].partition("=")[2].partition(";")[0]
    with platform.http(value) as http:
        assert http.get("/services/dashboards/voila/tree").status_code == 401


def test_a_browser_only_reads_and_only_from_our_own_pages(platform: Platform, browser: httpx.Client) -> None:
    search, create = (
        "/services/mlflow/ajax-api/2.0/mlflow/runs/search",
        "/services/mlflow/ajax-api/2.0/mlflow/experiments/create",
    )
    ours = {"origin": platform.url, "referer": f"{platform.url}/services/mlflow/"}
    tried = [
        (search, ours, 200),
        (search, {}, 403),
        (search, {"origin": "http://evil.example"}, 403),
        (search, {**ours, "sec-fetch-site": "cross-site"}, 403),
        (search, {**ours, "referer": f"{platform.url}/user/ada/lab"}, 403),
        (create, ours, 403),
    ]
    for path, headers, status in tried:
        assert browser.post(path, json={"experiment_ids": ["0"], "name": "x"}, headers=headers).status_code == status, (
            headers
        )
    assert browser.get("/services/jobs/openapi.json").status_code == 200
    answer = browser.put("/services/jobs/api/v1/jobs/a/b", json={}, headers={"origin": platform.url})
    assert answer.status_code == 403


def test_a_websocket_from_elsewhere_or_from_nobody_is_refused(platform: Platform, browser: httpx.Client) -> None:
    browser.get("/services/dashboards/")
    jar = "; ".join(f"{c.name}={c.value}" for c in browser.cookies.jar if c.path in ("/", "/services/dashboards/"))
    channels = (
        platform.url.replace("http", "ws", 1)
        + "/services/dashboards/api/kernels/00000000-0000-0000-0000-000000000000/channels"
    )
    for headers in ({}, {"Cookie": jar}, {"Cookie": jar, "Origin": "http://evil.example"}):
        with pytest.raises(InvalidStatus) as caught:
            connect(channels, additional_headers=headers, proxy=None, open_timeout=60)
        assert caught.value.response.status_code == 403


def test_a_login_that_this_browser_did_not_start_is_refused(platform: Platform, browser: httpx.Client) -> None:
    for query in ("", "?code=x", "?state=x", "?code=x&state=x", "?error=access_denied"):
        assert browser.get(f"/services/cellwork/oauth_callback{query}").status_code == 400


@pytest.mark.parametrize("value", ["x", "", "gAAAAABm" + "A" * 60])
def test_a_forged_cookie_is_nobody(platform: Platform, browser: httpx.Client, value: str) -> None:
    session = next(c.value for c in browser.cookies.jar if c.name == "jupyterhub-session-id")
    headers = {"cookie": f"cellwork-mlflow={value}; jupyterhub-session-id={session}"}
    with platform.http() as http:
        assert http.get("/services/mlflow/version", headers=headers).status_code == 401


def test_a_services_cookie_without_its_hub_session_or_at_another_service_is_nobody(
    platform: Platform, browser: httpx.Client
) -> None:
    cookie = next(f"{c.name}={c.value}" for c in browser.cookies.jar if c.name == "cellwork-mlflow")
    session = next(f"{c.name}={c.value}" for c in browser.cookies.jar if c.name == "jupyterhub-session-id")
    with platform.http() as http:
        assert http.get("/services/mlflow/version", headers={"cookie": f"{cookie}; {session}"}).status_code == 200
        assert http.get("/services/mlflow/version", headers={"cookie": cookie}).status_code == 401
        assert (
            http.get(
                "/services/mlflow/version", headers={"cookie": f"{cookie}; jupyterhub-session-id=other"}
            ).status_code
            == 401
        )
        elsewhere = cookie.replace("mlflow=", "dashboards=", 1)
        assert (
            http.get("/services/dashboards/voila/tree", headers={"cookie": f"{elsewhere}; {session}"}).status_code
            == 401
        )


def test_a_logout_at_the_hub_closes_the_services(platform: Platform, browser: httpx.Client) -> None:
    jar = {c.name: c.value for c in browser.cookies.jar}
    browser.get("/hub/logout")
    assert browser.get("/services/mlflow/version", follow_redirects=False).status_code == 302
    kept = "; ".join(f"{name}={value}" for name, value in jar.items())  # somebody had copied the cookies
    with platform.http() as http:
        wait_for(
            lambda: http.get("/services/mlflow/version", headers={"cookie": kept}).status_code == 401,
            60,
            "the end of it",
        )


def test_a_revoked_token_ends_within_the_cache_time(platform: Platform) -> None:
    token = platform.user_token("access:services!service=cellwork", scopes.to_hub("data:read"))
    with platform.http(token) as http, platform.hub() as hub:
        assert http.get("/services/cellwork/api/v1/events").status_code == 200
        for known in hub.get("/users/ada/tokens").json()["api_tokens"]:
            if (
                scopes.to_hub("data:read") in known["scopes"]
                and not known["session_id"]
                and known["kind"] == "api_token"
                and known["expires_at"]
            ):
                hub.delete(f"/users/ada/tokens/{known['id']}").raise_for_status()
        events = "/services/cellwork/api/v1/events"
        wait_for(lambda: http.get(events).status_code == 401, 60, "the end of the token")


@pytest.mark.parametrize(
    "path",
    [
        "//version",
        "/./version",
        "/../mlflow/version",
        "/%2e%2e/version",
        "/a%2fb",
        "/a%5cb",
        "/static-files/..%2f..%2fsecrets",
        "/version%00",
    ],
)
@pytest.mark.parametrize("service", ["mlflow", "cellwork"])
def test_a_path_that_reads_two_ways_is_refused_at_the_services_own_port(
    platform: Platform, service: str, path: str
) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", platform.ports[service]), timeout=60) as raw:
        raw.sendall(
            f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {platform.token()}\r\nConnection: close\r\n\r\n".encode()
        )
        assert raw.recv(100).startswith(b"HTTP/1.1 400")


def test_a_token_in_the_url_or_in_a_wrong_scheme_is_nobody(platform: Platform) -> None:
    token = platform.token()
    with platform.http() as http:
        assert http.get(f"/services/cellwork/api/v1/events?token={token}").status_code == 401
        for header in (f"Basic {token}", token, "Bearer", f"Bearer {token}x"):
            assert http.get("/services/cellwork/api/v1/events", headers={"authorization": header}).status_code == 401


def test_a_new_password_puts_every_browser_out_and_keeps_servers(platform: Platform, browser: httpx.Client) -> None:
    server = platform.start_server()
    kernel = server.start_kernel()
    old = platform.password
    answer = platform.command("user", "password", "--reset")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == platform.password != old
    assert server.execute(kernel, "1 + 1") == "2"
    wait_for(lambda: "/hub/login" in str(browser.get("/services/mlflow/").url), 60, "the end of the login")
    with platform.browser() as again:
        assert platform.login(again, password=old).status_code == 403
    with platform.browser() as again:
        assert platform.login(again).status_code == 200
