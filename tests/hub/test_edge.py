"""The edge as callers meet it: a real server, raw HTTP where a client library would tidy up."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
from ports import free_port
from starlette.types import Scope

from cellwork import errors
from cellwork.client.base import Connection
from cellwork.wire import Struct
from cellwork.wire.records import Principal
from cellwork_hub.auth import NOBODY, bearer
from cellwork_hub.edge import Call, Route, Service


class Body(Struct):
    number: int


async def authorise(scope: Scope) -> Principal:
    tokens = {"reader": {"data:read"}, "writer": {"data:read", "data:write"}}
    token = bearer(scope)
    return Principal(kind="user", name=token, scopes=frozenset(tokens[token])) if token in tokens else NOBODY


def double(call: Call) -> dict[str, object]:
    return {
        "double": call.body.number * 2,
        "user": call.principal.name,
        "origin": call.origin.user,
        "item": call.path.get("item", ""),
    }


def fail(call: Call) -> None:
    raise {"busy": errors.TooBusy("queue", "", "is full", "wait"), "bug": RuntimeError("secret detail")}[
        call.path["how"]
    ]


def listing(call: Call) -> list[int]:
    after = call.number("cursor", 0)
    rows = list(range(after + 1, min(after + 3, 8)))
    if rows and rows[-1] < 7:
        call.next_page(rows[-1])
    return rows


ROUTES = [
    Route("POST", "/double/{item}", double, scope="data:write", body=Body, doc="Doubles."),
    Route("GET", "/fail/{how}", fail, scope="data:read", doc="Fails."),
    Route("GET", "/list", listing, scope="data:read", doc="Pages."),
]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    number = free_port()
    server = uvicorn.Server(
        uvicorn.Config(
            Service("cellwork", ROUTES, authorise=authorise, most_bytes=1000),
            port=number,
            log_level="error",
            lifespan="on",
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    end = time.monotonic() + 60
    while not server.started and time.monotonic() < end:
        time.sleep(0.02)
    yield number
    server.should_exit = True
    thread.join(60)


@pytest.fixture
def http(port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
        yield client


def raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
            if b"\r\n\r\n" in answer:
                return answer
    return answer


AS_WRITER = {"authorization": "Bearer writer"}


@pytest.mark.parametrize("prefix", ["", "/services/cellwork"])
def test_a_call_is_decoded_and_the_origins_user_is_ours_to_say(http: httpx.Client, prefix: str) -> None:
    answer = http.post(
        f"{prefix}/double/x1",
        json={"number": 21},
        headers={**AS_WRITER, "x-cellwork-origin": json.dumps({"user": "somebody else"})},
    )
    assert answer.json() == {"double": 42, "user": "writer", "origin": "writer", "item": "x1"}
    assert answer.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status", "words"),
    [
        ("POST", "/double/x", {}, b"{}", 401, "no valid credential"),
        ("POST", "/double/x", {"authorization": "Bearer wrong"}, b"{}", 401, "no valid credential"),
        ("POST", "/double/x", {"authorization": "Bearer reader"}, b"{}", 403, "data:write"),
        ("POST", "/double/x?token=writer", {}, b"{}", 401, "no valid credential"),
        ("POST", "/double/x", AS_WRITER, b"{", 400, "not JSON"),
        ("POST", "/double/x", AS_WRITER, b'{"number": "many"}', 422, "number"),
        ("POST", "/double/x", AS_WRITER, b"{}", 422, "number"),
        ("POST", "/double/x", AS_WRITER, b"[" * 1001, 413, "limit"),
        ("GET", "/double/x", AS_WRITER, b"", 404, "use POST"),
        ("GET", "/nothing", AS_WRITER, b"", 404, "openapi.json"),
        ("GET", "/list?cursor=abc", AS_WRITER, b"", 422, "whole number"),
        ("GET", "/fail/busy", AS_WRITER, b"", 429, "is full"),
    ],
)
def test_each_mistake_has_its_own_answer(
    http: httpx.Client, method: str, path: str, headers: dict[str, str], content: bytes, status: int, words: str
) -> None:
    answer = http.request(method, path, headers=headers, content=content)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.text
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_bug_is_a_500_without_its_details(http: httpx.Client) -> None:
    answer = http.get("/fail/bug", headers=AS_WRITER)
    assert answer.status_code == 500
    assert "secret detail" not in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "path", ["//list", "/services/cellwork//list", "/x/../list", "/%2e%2e/list", "/a%2flist", "/a%5clist", "/list%00"]
)
def test_a_path_that_can_be_read_in_two_ways_is_refused(port: int, path: str) -> None:
    answer = raw(port, f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer writer\r\n\r\n".encode())
    assert b" 400 " in answer.partition(b"\r\n")[0]


def test_an_endless_chunked_body_is_cut_at_the_limit(port: int) -> None:
    head = b"POST /double/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer writer\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = raw(port, head + b"400\r\n" + b"1" * 0x400 + b"\r\n")
    assert b" 413 " in answer.partition(b"\r\n")[0]


def test_health_is_open_and_everything_else_is_not(http: httpx.Client) -> None:
    assert http.get("/health/live").status_code == http.get("/health/ready").status_code == 200
    assert http.get("/openapi.json").status_code == http.get("/metrics").status_code == 401


def test_the_description_names_every_route_with_its_scope(http: httpx.Client) -> None:
    document = http.get("/openapi.json", headers=AS_WRITER).json()
    assert document["paths"]["/double/{item}"]["post"]["security"] == [{"hub": ["data:write"]}]
    assert document["components"]["schemas"]["Body"]["required"] == ["number"]


def test_the_client_turns_problems_back_into_errors_and_follows_pages(port: int) -> None:
    connection = Connection(f"http://127.0.0.1:{port}", "writer")
    assert list(connection.listing("cellwork", "/list", int)) == [1, 2, 3, 4, 5, 6, 7]
    with pytest.raises(errors.TooBusy, match="is full; wait"):
        connection.raw("cellwork", "GET", "/fail/busy")
    with pytest.raises(errors.BadInput):
        connection.call("cellwork", "POST", "/double/x", dict, {"number": None})
    connection.close()


def test_a_platform_that_does_not_run_is_unavailable_with_a_way_out() -> None:
    connection = Connection("http://127.0.0.1:9", "x", attempts=1)
    with pytest.raises(errors.Unavailable, match="cellwork status"):
        connection.raw("cellwork", "GET", "/list")
    connection.close()
