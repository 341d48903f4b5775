"""A user's server and real kernels: what a cell says is kept from its first word on, whoever listens, and the page that asked is named."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from running import wait_for
from websockets.sync.client import ClientConnection, connect

pytestmark = pytest.mark.timeout(300)
KERNELS = int(os.environ.get("KERNELS", "3"))


@dataclass(frozen=True)
class Page:
    """A page's connection to a kernel."""

    socket: ClientConnection
    name: str
    widgets: list[str] = field(default_factory=list)
    """What was announced to it."""

    def ask(self, cell: str, code: str) -> str:
        """Send an execute request as Lab does; return its id."""
        message = uuid.uuid4().hex
        header = {
            "msg_id": message,
            "msg_type": "execute_request",
            "username": "",
            "session": self.name,
            "version": "5.3",
        }
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        self.socket.send(json.dumps({
            "header": header, "parent_header": {}, "metadata": {"cellId": cell}, "channel": "shell", "buffers": [], "content": content,
        }))  # fmt: skip
        return message

    def said(self, message: str) -> str:
        """Return what this page sees of the request `message` until it has ended."""
        texts, end = [], time.monotonic() + 60
        while True:
            answer = json.loads(self.socket.recv(timeout=max(0.0, end - time.monotonic())))
            if answer["msg_type"] == "comm_open":
                self.widgets.append(answer["content"]["target_name"])
            if answer["parent_header"].get("msg_id") != message:
                continue
            if answer["msg_type"] == "stream":
                texts.append(answer["content"]["text"])
            elif answer["msg_type"] == "status" and answer["content"]["execution_state"] == "idle":
                return "".join(texts)


@dataclass(frozen=True)
class UserServer:
    url: str
    token: str
    folder: Path

    @property
    def http(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"token {self.token}"}, timeout=60, trust_env=False
        )

    def start_kernel(self) -> str:
        with self.http as http:
            return str(http.post("/api/kernels", json={"name": "python3"}).raise_for_status().json()["id"])

    def stop_kernel(self, kernel: str) -> None:
        with self.http as http:
            http.delete(f"/api/kernels/{kernel}").raise_for_status()

    @contextmanager
    def page(self, kernel: str) -> Iterator[Page]:
        name = uuid.uuid4().hex
        channels = f"{self.url.replace('http', 'ws', 1)}/api/kernels/{kernel}/channels?session_id={name}"
        headers = {"Authorization": f"token {self.token}"}
        with connect(channels, additional_headers=headers, proxy=None, open_timeout=60) as socket:
            yield Page(socket, name)

    def ended(self, kernel: str) -> list[dict[str, Any]]:
        """Return what is kept when all has ended: the server hears of it by another way than a page."""
        wait_for(
            lambda: (kept := self.kept(kernel)) and all(one["ended"] for one in kept), 60, "the end of what is kept"
        )
        return self.kept(kernel)

    def kept(self, kernel: str) -> list[dict[str, Any]]:
        with self.http as http:
            found: list[dict[str, Any]] = http.get(f"/cellwork/outputs/{kernel}").raise_for_status().json()
            return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserServer]:
    folder, token = tmp_path_factory.mktemp("server"), uuid.uuid4().hex
    runtime = folder / "runtime"
    words = [
        sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--ServerApp.port=0",
        f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={token}",
    ]  # fmt: skip
    environ = {**os.environ, "JUPYTER_RUNTIME_DIR": str(runtime), "JUPYTER_CONFIG_DIR": str(folder / "config")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(words, env=environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        url = wait_for(lambda: _address(runtime), 60, "the server's start")
        found = UserServer(url, token, folder)
        wait_for(lambda: _answers(found), 60, "the server's first answer")
        yield found
    finally:
        process.terminate()
        process.wait(60)


def _address(runtime: Path) -> str:
    """Return where the server says that it is; nothing until it has said it to the end."""
    for told in runtime.glob("jpserver-*.json"):
        with contextlib.suppress(json.JSONDecodeError):
            return str(json.loads(told.read_text())["url"]).rstrip("/")
    return ""


def _answers(server: UserServer) -> bool:
    try:
        with server.http as http:
            return http.get("/api/status").status_code == 200
    except httpx.TransportError:
        return False


def test_the_first_word_of_a_new_kernel_is_kept_and_seen(server: UserServer) -> None:
    """Asked in the moment the connection is open, when the kernel hardly knows who listens."""
    for _ in range(KERNELS):
        kernel = server.start_kernel()
        with server.page(kernel) as page:
            request = page.ask("a", "print('first', flush=True)\nprint('last')")
            assert page.said(request) == "first\nlast\n"
            [one] = server.ended(kernel)
        assert [output["text"] for output in one["outputs"]] == ["first\nlast\n"]
        assert (one["page"], one["cell"], one["begun"], one["count"]) == (page.name, "a", True, 1)
        server.stop_kernel(kernel)


def test_what_is_said_after_a_restart_is_kept_from_its_first_word(server: UserServer) -> None:
    kernel = server.start_kernel()
    with server.page(kernel) as page, server.http as http:
        page.said(page.ask("a", "print(1)"))
        http.post(f"/api/kernels/{kernel}/restart").raise_for_status()
    with server.page(kernel) as page:  # as Lab does after a restart
        assert page.said(page.ask("a", "print('first')")) == "first\n"
    [one] = server.ended(kernel)
    assert [output["text"] for output in one["outputs"]] == ["first\n"]
    server.stop_kernel(kernel)


MADE = """
import os, time
from comm import create_comm
create_comm(target_name="layout")
print("begun", flush=True)
while not os.path.exists({go!r}): time.sleep(0.05)
create_comm(target_name="button")
print("ended")
"""


def test_a_page_that_comes_while_a_cell_runs_hears_of_all_its_widgets_once_and_in_order(server: UserServer) -> None:
    """What it is told of the rest has a part that was made before it came; and it may ask at once."""
    kernel, go = server.start_kernel(), server.folder / "go"
    with server.page(kernel) as first:
        running = first.ask("a", MADE.format(go=str(go)))
        wait_for(lambda: server.kept(kernel) and server.kept(kernel)[0]["outputs"], 60, "the first word")
        with server.page(kernel) as second:
            request = second.ask("b", "print('after it')")
            go.touch()
            assert second.said(request) == "after it\n"
        assert first.said(running) == "begun\nended\n"
    assert (second.widgets, first.widgets) == (["layout", "button"], ["layout", "button"])
    kept = {
        one["cell"]: (one["id"], one["page"], "".join(o["text"] for o in one["outputs"]))
        for one in server.ended(kernel)
    }
    assert kept == {"a": (running, first.name, "begun\nended\n"), "b": (request, second.name, "after it\n")}
    server.stop_kernel(kernel)
