"""A webhook is told within a bounded time, however its receiver answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cellwork import notify
from cellwork.errors import Unavailable
from cellwork.home import Home

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Drip:
    """Answers `first`, and then `drop` every tenth of a second, for ever."""

    def __init__(self, first: bytes, drop: bytes) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}/x"
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._answer, args=(first, drop), daemon=True)
        self.thread.start()

    def _answer(self, first: bytes, drop: bytes) -> None:
        try:
            opened, _ = self.listening.accept()
            with opened:
                opened.recv(65_536)
                opened.sendall(first)
                while not self.stop.wait(0.1):
                    opened.sendall(drop)
        except OSError:
            pass

    def end(self) -> None:
        self.stop.set()
        self.listening.close()
        self.thread.join(10)


@pytest.fixture
def dripping(request: pytest.FixtureRequest) -> Iterator[Drip]:
    drip = Drip(*request.param)
    yield drip
    drip.end()


def post(folder: Path, url: str) -> list[BaseException | None]:
    """Return what became of posting to `url`, in a thread; nothing if that does not end."""
    ended: list[BaseException | None] = []

    def send() -> None:
        try:
            notify.post(Home(folder).ensure(), url, {"a": 1})
            ended.append(None)
        except Unavailable as error:
            ended.append(error)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    thread.join(60)
    return ended


@pytest.mark.parametrize("dripping", [(HEAD, b"1\r\nx\r\n")], indirect=True)
def test_an_answer_counts_by_its_status_however_long_its_body_takes(tmp_path: Path, dripping: Drip) -> None:
    assert post(tmp_path, dripping.url) == [None]


@pytest.mark.parametrize("dripping", [(b"HTTP/1.1 200 OK\r\n", b"x-more: 1\r\n")], indirect=True)
def test_a_head_that_drips_did_not_answer(tmp_path: Path, dripping: Drip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "SECONDS", 1)
    [error] = post(tmp_path, dripping.url)
    assert "within 1 seconds" in str(error)


def test_a_scheme_is_one_in_capitals_too() -> None:
    notify.check_address("HTTPS://example.org/x")


def test_the_key_is_one_for_all_who_need_it_first(tmp_path: Path) -> None:
    for turn in range(20):
        home, together = Home(tmp_path / str(turn)).ensure(), threading.Barrier(8)

        def key(home: Home = home, together: threading.Barrier = together) -> str:
            together.wait(60)
            return notify.signing_key(home)

        with ThreadPoolExecutor(8) as pool:
            keys = {each.result(60) for each in [pool.submit(key) for _ in range(8)]}
        assert keys == {notify.signing_key(home)}
