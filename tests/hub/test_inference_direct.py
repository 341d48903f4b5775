"""What a connection does by itself, without ASGI: byte by byte, beside what uvicorn makes of the same requests."""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
import serving_world as world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import wait_for

from cellwork.client import Client
from cellwork.serving.lane import MOST_BYTES
from cellwork.wire.endpoints import Answer, Deploy
from cellwork_hub.inference import door
from cellwork_hub.inference.app import build
from cellwork_hub.inference.direct import GENERAL, MOST_HEADS, Connection, Head
from cellwork_hub.inference.door import FrontDoor

PATH = f"/predict/{world.MODEL}"
ROW = {"features": {"visits": 3.0, "plan": "free", "customer__age": 4.0}}
BODY = msgspec.json.encode({"rows": [ROW]})
ODD = msgspec.json.encode({"rows": [{**ROW, "observation": ""}]})
"""Handed back by the lane."""


class Seen(FrontDoor):
    """The front door, and which requests came to it by ASGI."""

    def __init__(self, of: FrontDoor) -> None:
        self.__dict__.update(of.__dict__)
        self.came: list[bool] = []

    async def __call__(self, scope, receive, send):  # type: ignore[no-untyped-def]
        if scope.get("method") == "POST":
            self.came.append(bool(scope.get(GENERAL)))
        return await super().__call__(scope, receive, send)


class House:
    def __init__(self, seen: Seen, port: int, client: Client) -> None:
        self.door, self.port, self.client = seen, port, client

    @contextmanager
    def connection(self) -> Iterator[socket.socket]:
        """A connection over which one request was answered, so that target and caller are known."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connected:
            connected.sendall(request())
            assert read(connected)[0] == 200
            self.door.came.clear()
            yield connected


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder, folders = tmp_path_factory.mktemp("models"), world.Folders()
    folders.add(world.saved(1, folder / "1"), 1)
    context = world.context(tmp_path_factory.mktemp("home"))
    made: list[Seen] = []

    def app() -> Seen:
        made.append(
            Seen(build(context, authorise=world.authorise, registry=folders, lookup=lambda project, needed: {}))
        )
        return made[0]

    made_connection = Connection.__init__

    def patient(connection: Connection, *given: object, **named: object) -> None:
        made_connection(connection, *given, **named)  # type: ignore[arg-type]
        connection.timeout_keep_alive = 600

    port = context.ports["inference"]
    with pytest.MonkeyPatch.context() as patch:  # what tests see shall not hang on how fast they are
        patch.setattr(door, "CACHE_SECONDS", 600.0)
        patch.setattr(Connection, "__init__", patient)
        with world.running(app, port) as address, world.caller(address) as client:
            client.endpoints.deploy(world.MODEL, Deploy(version=1))
            yield House(made[0], port, client)


def request(body: bytes = BODY, *more: str, version: str = "1.1", path: str = PATH) -> bytes:
    lines = [f"POST {path} HTTP/{version}", "Host: here", "Authorization: Bearer deployer", *more]
    if not any(line.startswith("Transfer") for line in more):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def read(connected: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of the next answer, and not a byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connected.recv(1)
        assert byte, f"the connection ended in {head!r}"
        head += byte
    line, *lines = head.decode().strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
    body = b""
    while len(body) < int(headers["content-length"]):
        body += connected.recv(int(headers["content-length"]) - len(body))
    return int(line.split()[1]), headers, body


def ids(body: bytes) -> list[str]:
    return [output.id for output in msgspec.json.decode(body, type=Answer).outputs]


def test_a_usual_request_does_not_come_by_asgi_and_its_answer_is_the_same(house: House) -> None:
    with house.connection() as connected:
        connected.sendall(request())
        status, direct, body = read(connected)
        assert house.door.came == []
        connected.sendall(request(ODD))
        other, general, odd = read(connected)
        assert house.door.came == [True]
    assert (status, other) == (200, 200)
    assert set(direct) == set(general)
    changing = ("date", "x-request-id", "content-length")
    assert {k: v for k, v in direct.items() if k not in changing} == {
        k: v for k, v in general.items() if k not in changing
    }
    one, two = (msgspec.json.decode(each, type=Answer).outputs[0] for each in (body, odd))
    assert one.score == two.score
    assert house.client.endpoints.prediction(one.id).score == one.score


def test_requests_sent_before_the_last_was_answered_are_answered_in_their_order(house: House) -> None:
    many = [
        msgspec.json.encode({"rows": [ROW] * (k + 1)} if k % 3 else {"rows": [{**ROW, "observation": ""}] * (k + 1)})
        for k in range(12)
    ]
    with house.connection() as connected:
        connected.sendall(b"".join(map(request, many)))
        answers = [read(connected) for _ in many]
    assert [len(ids(body)) for _, _, body in answers] == [k + 1 for k in range(12)]
    named = [name for _, _, body in answers for name in ids(body)]
    assert len(set(named)) == len(named)
    assert all(house.client.endpoints.prediction(name).id == name for name in named)


@pytest.mark.parametrize("piece", [1, 7, 50])
def test_a_request_that_comes_in_pieces_is_answered(house: House, piece: int) -> None:
    whole = request()
    with house.connection() as connected:
        for start in range(0, len(whole), piece):
            connected.sendall(whole[start : start + piece])
        assert read(connected)[0] == 200
        assert house.door.came == []


def test_a_body_in_chunks_is_one_body(house: House) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:9], BODY[9:])) + b"0\r\n\r\n"
    with house.connection() as connected:
        connected.sendall(request(chunks, "Transfer-Encoding: chunked"))
        status, _, body = read(connected)
        assert (status, len(ids(body)), house.door.came) == (200, 1, [])


def test_a_body_larger_than_the_lane_takes_goes_the_other_way_whole(house: House) -> None:
    rows = [{**ROW, "observation": f"o{k}-{'x' * 500}"} for k in range(3000)]
    body = msgspec.json.encode({"rows": rows})
    assert len(body) > MOST_BYTES
    with house.connection() as connected:
        connected.sendall(request(body))
        status, _, answer = read(connected)
        assert (status, len(ids(answer)), house.door.came) == (200, 3000, [False])
        connected.sendall(request())
        assert read(connected)[0] == 200


@pytest.mark.parametrize(("more", "version"), [(("Connection: close",), "1.1"), ((), "1.0")])
def test_a_connection_that_is_to_be_closed_is_closed_after_its_answer(
    house: House, more: tuple[str, ...], version: str
) -> None:
    with house.connection() as connected:
        connected.sendall(request(BODY, *more, version=version))
        assert read(connected)[0] == 200
        assert connected.recv(1) == b""


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(b"{"), 400),
        (request(b'{"rows": []}'), 422),
        (request(path=PATH + "?x=1"), 200),
        (request(path="/predict/" + world.MODEL.replace("/", "%2F")), 400),
        (request(path=PATH + "/"), 404),
        (request().replace(b"Bearer deployer", b"Bearer nobody"), 401),
        (request(BODY, "Expect: 100-continue"), 100),
    ],
)
def test_what_is_unusual_is_answered_as_before(house: House, sent: bytes, status: int) -> None:
    with house.connection() as connected:
        connected.sendall(sent)
        if status == 100:
            assert connected.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
            status = 200
        assert read(connected)[0] == status
        connected.sendall(request())
        assert read(connected)[0] == 200, "the connection goes on"


def test_a_caller_who_leaves_before_the_answer_harms_nobody(house: House) -> None:
    for _ in range(20):
        with house.connection() as leaving:
            leaving.sendall(request())
        with socket.create_connection(("127.0.0.1", house.port), timeout=60) as half:
            half.sendall(request()[:-5])
    with house.connection() as connected:
        connected.sendall(request())
        assert read(connected)[0] == 200


@pytest.mark.parametrize("credential", [b"", b"Authorization: Bearer nobody\r\n", b"Authorization: Bearer viewer\r\n"])
def test_nothing_is_kept_of_a_body_before_its_caller_is_known(house: House, credential: bytes) -> None:
    """Who may not predict is told so while the body is still coming; it was collected whole first, for anybody."""
    head = request(b"x" * 900_000).partition(b"x")[0].replace(b"Authorization: Bearer deployer\r\n", credential)
    with house.connection() as connected:
        connected.sendall(head + b"x" * 10)
        assert read(connected)[0] == (403 if b"viewer" in credential else 401)


def test_what_has_begun_when_the_service_ends_is_answered_and_its_connection_closed(house: House) -> None:
    """As the server does it for every connection when it ends; the others are closed at once."""
    sent = request()
    with house.connection() as connected, house.connection() as resting:
        connected.sendall(sent[:-5])
        reading = of(connected)
        wait_for(lambda: reading._head is not None, 60, "the head of the request")
        for each in (reading, of(resting)):
            each.loop.call_soon_threadsafe(each.shutdown)
        assert resting.recv(1) == b""
        connected.sendall(sent[-5:])
        status, headers, body = read(connected)
        assert (status, headers["connection"], len(ids(body))) == (200, "close", 1)
        assert connected.recv(1) == b""


def of(connected: socket.socket) -> Connection:
    """Return the service's end of a connection."""
    there = [each for each in gc.get_objects() if isinstance(each, Connection)]
    return next(each for each in there if each.client == connected.getsockname() and not each.transport.is_closing())


def test_a_log_that_cannot_be_written_is_said_and_the_connection_goes_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cellwork.errors import Unavailable

    def full(turn: object) -> None:
        raise Unavailable("log", "", "cannot be written: disk full", "make room")

    with house.connection() as connected:
        with monkeypatch.context() as broken:
            broken.setattr(house.door.endpoints.segments, "append", full)
            connected.sendall(request())
            status, headers, body = read(connected)
        assert (status, headers["content-type"], headers["retry-after"]) == (503, "application/problem+json", "1")
        assert b"disk full" in body
        connected.sendall(request())
        assert read(connected)[0] == 200


def test_a_credential_that_was_looked_up_too_long_ago_is_looked_up_again(house: House) -> None:
    with house.connection() as connected:
        for caller in house.door._callers.values():
            caller.until = 0.0
        connected.sendall(request())
        assert read(connected)[0] == 200
        assert house.door.came == [False]


class Parsed:
    """Which messages the connections' parsers were given."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count, begins = 0, Connection.on_message_begin

        def begun(connection: Connection) -> None:
            self.count += 1
            begins(connection)

        patch.setattr(Connection, "on_message_begin", begun)


def test_a_head_that_was_read_before_is_not_parsed_again_and_its_answer_is_the_same(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed, answers = Parsed(monkeypatch), []
    with house.connection() as connected:
        house.door.heads.clear()
        parsed.count = 0
        for body in (BODY, BODY, BODY.replace(b"3.0", b"4.0"), BODY + b" "):
            connected.sendall(request(body))
            answers.append(read(connected))
        assert parsed.count == 2, "the first of all, and the one of another length"
        for _ in range(2):
            connected.sendall(request(BODY.replace(b"free", b"3333")[:-1] + b","))
            assert read(connected)[0] == 400
        assert parsed.count == 2, "what the lane hands back need not be parsed either"
    assert [status for status, _, _ in answers] == [200] * 4
    assert len({tuple(headers) for _, headers, _ in answers}) == 1
    found = [msgspec.json.decode(body, type=Answer).outputs[0] for _, _, body in answers]
    assert found[0].score == found[1].score == found[3].score
    assert len({output.id for output in found}) == 4
    assert house.door.came == [True, True]


def test_a_known_head_is_no_credential(house: House) -> None:
    with house.connection() as connected:
        connected.sendall(request())
        assert read(connected)[0] == 200
        caller = house.door._callers.pop(b"Bearer deployer")
        connected.sendall(request())
        assert read(connected)[0] == 200
        assert house.door.came == [False], "it was looked up again"
        assert house.door._callers.pop(b"Bearer deployer") is not caller


ODDITIES = ["usual", "usual", "usual", "odd", "spaced", "chunked", "other header", "get"]


def message(oddity: str, rows: int) -> bytes:
    """Return a request of so many rows; the same words give the same bytes."""
    body = msgspec.json.encode({"rows": [ROW] * rows})
    if oddity == "odd":
        body = msgspec.json.encode({"rows": [{**ROW, "observation": ""}] * rows})
    if oddity == "spaced":
        body = body.replace(b":", b": ").replace(b",", b"\r\n\r\n,")
    if oddity == "chunked":
        return request(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body), "Transfer-Encoding: chunked")
    if oddity == "get":
        return b"GET /health/ready HTTP/1.1\r\nHost: here\r\n\r\n"
    return request(body, *(["X-Other: 1"] if oddity == "other header" else []))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from(ODDITIES), st.integers(1, 3), st.integers(0, 40)), min_size=1, max_size=8),
    st.booleans(),
)
def test_whatever_is_known_and_however_it_comes_each_request_has_its_own_answer(
    house: House, asked: list[tuple[str, int, int]], waits: bool
) -> None:
    """Each is cut in two somewhere, or glued to the next; with `waits` the next comes when the last is answered."""
    with house.connection() as connected:
        answers = []
        for oddity, rows, cut in asked:
            whole = message(oddity, rows)
            connected.sendall(whole[: len(whole) - cut])
            if cut:
                connected.sendall(whole[len(whole) - cut :])
            if waits:
                answers.append(read(connected))
        answers += [read(connected) for _ in asked[len(answers) :]]
    assert [status for status, _, _ in answers] == [200] * len(asked)
    predicted = [
        (body, rows) for (_, _, body), (oddity, rows, _) in zip(answers, asked, strict=True) if oddity != "get"
    ]
    assert [len(ids(body)) for body, _ in predicted] == [rows for _, rows in predicted]
    named = [name for body, _ in predicted for name in ids(body)]
    assert len(set(named)) == len(named)


def test_no_more_heads_are_kept_than_it_says(house: House) -> None:
    filler = {b"%d" % k: Head(world.MODEL, "predict", PATH.encode(), []) for k in range(MOST_HEADS)}
    with house.connection() as connected:
        house.door.heads.update(filler)
        connected.sendall(request(BODY, "X-New: 1"))
        assert read(connected)[0] == 200
        assert len(house.door.heads) == 1
        connected.sendall(request(BODY, "X-Long: " + "x" * 4000))
        assert read(connected)[0] == 200
        assert len(house.door.heads) == 1


def test_a_connection_at_rest_is_closed_and_one_that_is_used_is_not(house: House) -> None:
    """The timer that began with the first answer comes while it is in use, and again when it has rested for long enough."""
    with house.connection() as connected:
        mine = of(connected)
        assert mine.timeout_keep_alive_task is not None
        for _ in range(3):
            mine.loop.call_soon_threadsafe(mine.timeout_keep_alive_handler)
            connected.sendall(request())
            assert read(connected)[0] == 200
        mine.timeout_keep_alive = 1
        mine.loop.call_soon_threadsafe(mine.timeout_keep_alive_handler)
        assert connected.recv(1) == b""
