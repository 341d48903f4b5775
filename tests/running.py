"""A running platform as tests see it: start it, speak to it as a service, a user, a browser or a notebook, and look what is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import psutil
import tied

from cellwork.client import Client

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

T = TypeVar("T")
START_SECONDS = 180
CELLWORK = str(Path(sys.executable).parent / "cellwork")


@dataclass(frozen=True)
class Platform:
    """A running platform and how to speak to it."""

    home: Path
    url: str
    settings: Mapping[str, str] = field(default_factory=dict)
    """Variables of its start beyond those of every test."""

    @property
    def user(self) -> str:
        return "ada"

    @property
    def password(self) -> str:
        return (self.home / "secrets" / "password").read_text().strip()

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a command that shall see this platform."""
        return environment(self.home, **self.settings)

    @property
    def ports(self) -> dict[str, int]:
        ports: dict[str, int] = json.loads((self.home / "run" / "ports.json").read_text())
        return ports

    def token(self, name: str = "cli") -> str:
        return (self.home / "secrets" / f"{name}-token").read_text().strip()

    def client(self, name: str = "cli") -> Client:
        """Return a client that speaks as the service `name`."""
        return Client(self.url, self.token(name))

    def http(self, token: str = "", **more: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, **more)

    def hub(self) -> httpx.Client:
        """The hub's API, as the CLI."""
        return httpx.Client(
            base_url=f"{self.url}/hub/api",
            headers={"authorization": f"token {self.token()}"},
            timeout=60,
            trust_env=False,
        )

    def user_token(self, *scopes: str) -> str:
        """Return a fresh token of the user with these hub scopes."""
        with self.hub() as hub:
            hub.post(f"/users/{self.user}")
            answer = hub.post(f"/users/{self.user}/tokens", json={"expires_in": 3600, "scopes": list(scopes)})
            answer.raise_for_status()
            return str(answer.json()["token"])

    def browser(self) -> httpx.Client:
        """Return a client that keeps cookies and asks for pages, not logged in."""
        return self.http(follow_redirects=True)

    def login(self, browser: httpx.Client, *, password: str = "", page: str = "/services/mlflow/") -> httpx.Response:
        """Log in as a person does: open `page`, fill in the form; return where that ends."""
        browser.headers["accept"] = "text/html"
        form = browser.get(page)
        xsrf = next(cookie.value for cookie in browser.cookies.jar if cookie.name == "_xsrf" and cookie.path == "/hub/")
        fields = {"username": self.user, "password": password or self.password, "_xsrf": xsrf}
        return browser.post(form.url, data=fields)

    def start_server(self) -> Server:
        """Start the user's server, if it does not run, and wait until it answers."""
        with self.hub() as hub:
            hub.post(f"/users/{self.user}/server")
            wait_for(lambda: hub.get(f"/users/{self.user}").json()["servers"].get("", {}).get("ready"), START_SECONDS)
        return Server(self.url, self.user, self.user_token(f"access:servers!user={self.user}"))

    def command(self, *words: str, timeout: float = START_SECONDS) -> subprocess.CompletedProcess[str]:
        return command(self.home, *words, timeout=timeout, **self.settings)

    def status(self, name: str) -> dict[str, Any]:
        """Return what the supervisor says of a service: what `cellwork status` shows, without a command for each look."""
        return next(service for service in board(self.home)["services"] if service["name"] == name)


@dataclass(frozen=True)
class Server:
    """A user's Jupyter server, and kernels in it."""

    url: str
    user: str
    token: str

    def start_kernel(self) -> str:
        answer = httpx.post(
            f"{self.url}/user/{self.user}/api/kernels",
            json={"name": "python3"},
            headers=self._headers,
            timeout=60,
            trust_env=False,
        )
        answer.raise_for_status()
        return str(answer.json()["id"])

    def execute(self, kernel: str, code: str, *, timeout: float = 60) -> str:
        """Return what `code` printed and its last value; an error is raised with its traceback."""
        from websockets.sync.client import connect

        channels = f"{self.url.replace('http', 'ws', 1)}/user/{self.user}/api/kernels/{kernel}/channels"
        message = os.urandom(8).hex()
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        header = {
            "msg_id": message,
            "msg_type": "execute_request",
            "username": "",
            "session": message,
            "version": "5.3",
        }
        request = {
            "header": header,
            "parent_header": {},
            "metadata": {},
            "channel": "shell",
            "buffers": [],
            "content": content,
        }
        texts: list[str] = []
        with connect(channels, additional_headers=self._headers, proxy=None, max_size=None, open_timeout=60) as socket:
            socket.send(json.dumps(request))
            end = time.monotonic() + timeout
            while True:
                answer = json.loads(socket.recv(timeout=max(0.0, end - time.monotonic())))
                kind, content = answer["msg_type"], answer["content"]
                if answer["parent_header"].get("msg_id") != message:
                    continue
                if kind == "stream":
                    texts.append(content["text"])
                elif kind == "execute_result":
                    texts.append(content["data"]["text/plain"])
                elif kind == "error":
                    raise AssertionError("\n".join(content["traceback"]))
                elif kind == "status" and content["execution_state"] == "idle":
                    return "".join(texts)

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"token {self.token}"}


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CELLWORK_", "MLFLOW_", "JUPYTERHUB_"))}
    return {
        **kept,
        "CELLWORK_HOME": str(home),
        "CELLWORK_PORT": "0",
        "CELLWORK_USER": "ada",
        "CELLWORK_CONTAINER_ENGINE": "none",
        "CELLWORK_TOKEN_CACHE_SECONDS": "2",
        "CELLWORK_READY_SECONDS": str(START_SECONDS),
        "CELLWORK_SERVER_READY_SECONDS": str(START_SECONDS),
        **more,
    }


def command(
    home: Path, *words: str, timeout: float = START_SECONDS, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run `cellwork` on `home` as a person would, from a folder without a project."""
    return subprocess.run(
        [CELLWORK, *words],
        env=environment(home, **environ),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


@contextmanager
def started(home: Path, **environ: str) -> Iterator[str]:
    """Start a platform on `home`; yield what `cellwork up` said. At the end it is stopped, and nothing of it is left.

    It is stopped too when this process is killed within the block.
    """
    with ended_afterwards(home, **environ):
        up = command(home, "up", **environ)
        try:
            assert up.returncode == 0, up.stdout + up.stderr + logs(home)
            yield up.stdout
            instance = board(home)["instance"]
        finally:
            down = command(home, "down", **environ)
    assert down.returncode == 0, down.stdout + down.stderr
    assert left_of(home, instance) == []


def ended_afterwards(home: Path, **environ: str) -> AbstractContextManager[None]:
    """Let the platform of `home` be stopped if this process is killed within the block.

    Its variables are words of the command: who waits to say them is no process of that home (`left_of`).
    """
    variables = [f"{name}={value}" for name, value in environment(home, **environ).items()]
    return tied.afterwards(["env", "-i", *variables, CELLWORK, "down"], cwd="/")


def address(said: str) -> str:
    """Return the platform's address from what `cellwork up` said."""
    return next(line for line in said.splitlines() if line.startswith("Cellwork runs at")).split()[-1]


def wait_for(condition: Callable[[], T], seconds: float, what: str = "it") -> T:
    """Return the first true answer of `condition`; fail if it has none after `seconds`."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < end, f"{what} did not happen in {seconds} s"
        time.sleep(0.1)
    return answer


def gone(pid: int) -> bool:
    """Say whether the process has ended, also if nobody has asked for its exit code."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def close_code(socket: ClientConnection) -> int:
    """Return the code with which the other side closes the connection; what it says until then is left unread."""
    from websockets.exceptions import ConnectionClosed

    try:
        while True:
            socket.recv(timeout=60)
    except ConnectionClosed as error:
        return error.rcvd.code if error.rcvd else 0


def left_of(home: Path, instance: str) -> list[str]:
    """Return every process that was started with `home` or by the start `instance` of the platform."""
    left = []
    for process in psutil.process_iter():
        try:
            environ = process.environ()
        except (psutil.Error, OSError):
            continue
        if environ.get("CELLWORK_INSTANCE") == instance or environ.get("CELLWORK_HOME") == str(home):
            left.append(f"{process.pid} {process.name()}")
    return left


def board(home: Path) -> dict[str, Any]:
    """Return what the supervisor of `home` says of itself."""
    told: dict[str, Any] = json.loads((home / "run" / "pids.json").read_text())
    return told


def logs(home: Path, last: int = 2000) -> str:
    """Return the end of every log, for a failure's report."""
    return "".join(f"\n== {path.name}\n{path.read_text()[-last:]}" for path in sorted((home / "logs").glob("*.log")))
