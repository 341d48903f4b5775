"""Voila behind the login: a page, its widget's callback over the websocket, warm kernels, and nothing else of Voila."""

from __future__ import annotations

import html
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nbformat
import psutil
import pytest
from browsing import SLOW
from ports import free_port
from running import Platform, wait_for
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from cellwork import settings

TINY = (
    "import os, time, httpx, ipywidgets\nfrom voila.utils import wait_for_request\nbegan = time.monotonic()\nwait_for_request()",
    "print('waited', time.monotonic() - began)",
    "print('told', os.environ['CELLWORK_URL'], os.environ.get('CELLWORK_HOME'), 'asked', os.environ.get('QUERY_STRING'))",
    "token = {'authorization': 'token ' + os.environ['HTTP_X_CELLWORK_TOKEN']}\n"
    "me = httpx.get(os.environ['CELLWORK_URL'] + '/hub/api/user', headers=token, trust_env=False).json()\n"
    "print('acts as', me['kind'], me['name'], os.environ.get('CELLWORK_TOKEN'))",
    "button, label = ipywidgets.Button(description='press'), ipywidgets.Label('waiting')\n"
    "button.on_click(lambda _: setattr(label, 'value', 'pressed'))\nipywidgets.VBox([button, label])",
)

CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def is_kernel(process: psutil.Process, zygote: int) -> bool:
    """Whether it was forked from the zygote, or started fresh; one that ends while it is looked at is none."""
    try:
        return process.ppid() == zygote or "ipykernel_launcher" in words(process)
    except psutil.NoSuchProcess:
        return False


def words(process: psutil.Process) -> list[str]:
    """Its command line; nothing once it has ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def parent_of(process: psutil.Process) -> int | None:
    """The process that it was forked from; none once it has ended."""
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


@dataclass(frozen=True)
class Dashboards:
    """The gate and Voila on a folder with one small notebook, at a port of their own; the hub is the platform's."""

    url: str
    token: str

    voila: int = 0
    kept_warm: int = 0
    """Kernels that wait for the next page."""

    def zygote(self) -> psutil.Process:
        """What the kernels are forked from."""
        [found] = [child for child in psutil.Process(self.voila).children() if "cellwork.runs.zygote" in words(child)]
        return found

    def kernels(self) -> list[psutil.Process]:
        zygote = self.zygote().pid
        return [
            process for process in psutil.Process(self.voila).children(recursive=True) if is_kernel(process, zygote)
        ]

    def get(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(
            self.url + path, headers={"authorization": f"Bearer {self.token}"}, timeout=60, trust_env=False, **more
        )

    def channels(self, kernel: str) -> ClientConnection:
        address = self.url.replace("http", "ws", 1) + f"/api/kernels/{kernel}/channels"
        host = self.url.split("/services")[0]
        return connect(
            address,
            additional_headers={"authorization": f"Bearer {self.token}", "origin": host},
            proxy=None,
            open_timeout=60,
        )

    def end(self, kernel: str) -> httpx.Response:
        """Say what a page says when it is left."""
        return httpx.post(
            f"{self.url}/voila/api/shutdown/{kernel}",
            headers={"authorization": f"Bearer {self.token}"},
            timeout=60,
            trust_env=False,
        )


@pytest.fixture(scope="module")
def dashboards(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboards]:
    home, notebooks = tmp_path_factory.mktemp("dashboards"), tmp_path_factory.mktemp("notebooks")
    (home / "run").mkdir(mode=0o700)
    shutil.copytree(platform.home / "secrets", home / "secrets")
    ports = {**platform.ports, "dashboards": free_port()}
    (home / "run" / "ports.json").write_text(json.dumps(ports))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in TINY])
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(notebook, notebooks / "tiny.ipynb")
    (notebooks / "secret.py").write_text("x = 1")
    environ = {**platform.environ, "CELLWORK_HOME": str(home)}
    with (home / "log").open("wb") as log:
        started = [
            subprocess.Popen([sys.executable, "-m", *words], env=environ, cwd=home, stdout=log, stderr=log)
            for words in (("cellwork_hub.voila", str(notebooks)), ("cellwork_hub.dashboards",))
        ]
    url = f"http://127.0.0.1:{ports['dashboards']}/services/dashboards"
    try:
        wait_for(lambda: _ready(url), 180, "Voila's start")
        warm = settings.load(environ)[0].dashboard_kernels
        yield Dashboards(url, platform.token("dashboards"), started[0].pid, warm)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(60)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def page(dashboards: Dashboards) -> Iterator[str]:
    """A page that stays open: its kernel has a connection."""
    answer = dashboards.get("/voila/render/tiny.ipynb?template=reveal&theme=dark")
    assert answer.status_code == 200
    with dashboards.channels(kernel_of(answer.text)):
        yield answer.text


def kernel_of(page: str) -> str:
    found = re.search(r'"kernelId":\s*"([0-9a-f-]{36})"', page)
    assert found, page[-3000:]
    return found[1]


def test_a_page_tells_its_notebook_what_was_asked_and_nothing_of_the_home(page: str, platform: Platform) -> None:
    told = html.unescape(page.partition("told ")[2].partition("\n")[0])
    assert told.split() == [platform.url, "None", "asked", "template=reveal&theme=dark"]


def test_a_page_acts_as_whoever_opened_it_and_has_no_token_of_the_platforms(dashboards: Dashboards, page: str) -> None:
    assert page.partition("acts as ")[2].partition("\n")[0] == "service dashboards None"  # whose token the test sends


def test_a_caller_cannot_slip_another_token_in(dashboards: Dashboards, platform: Platform) -> None:
    headers = {"authorization": f"Bearer {platform.user_token('inherit')}", "x-cellwork-token": platform.token("cli")}
    page = httpx.get(dashboards.url + "/voila/render/tiny.ipynb", headers=headers, timeout=60, trust_env=False)
    assert page.text.partition("acts as ")[2].partition("\n")[0] == "user ada None"


def test_a_click_reaches_the_kernel_and_its_answer_comes_back(dashboards: Dashboards, page: str) -> None:
    """What the browser's widget manager does: press the button by its comm, wait for the label's new value."""
    model = next(iter(re.findall(r'"model_id":\s*"([0-9a-f]{32})"', page)))
    with dashboards.channels(kernel_of(page)) as socket:
        send(socket, "comm_info_request", {"target_name": "jupyter.widget"})
        comms = receive(socket, lambda m: m["msg_type"] == "comm_info_reply")["content"]["comms"]
        assert model in comms
        for comm in comms:
            send(socket, "comm_msg", {"comm_id": comm, "data": {"method": "custom", "content": {"event": "click"}}})
        changed = receive(
            socket,
            lambda m: m["msg_type"] == "comm_msg" and m["content"]["data"].get("state", {}).get("value") == "pressed",
        )
    assert changed


def test_in_a_browser_a_click_changes_what_is_seen_and_nothing_is_loaded_from_elsewhere(
    dashboards: Dashboards, platform: Platform, chromium: str
) -> None:
    from playwright.sync_api import sync_playwright

    host = dashboards.url.split("/services")[0]
    with platform.browser() as browser:
        platform.login(browser, page="/services/dashboards/")
        cookies = [
            {"name": c.name, "value": c.value, "url": host}
            for c in browser.cookies.jar
            if c.path in ("/", "/services/dashboards/")
        ]
    answered: list[str] = []
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM)
        context = opened.new_context()
        context.add_cookies(cookies)
        page = context.new_page()
        page.on("response", lambda response: answered.append(response.url))
        page.set_default_timeout(SLOW)
        page.goto(f"{dashboards.url}/voila/render/tiny.ipynb")
        page.get_by_role("button", name="press").click()
        page.get_by_text("pressed", exact=True).wait_for()
        opened.close()
    assert answered
    assert [url for url in answered if not url.startswith((host, "data:", "blob:"))] == []


def send(socket: ClientConnection, kind: str, content: dict[str, Any]) -> None:
    header = {"msg_id": os.urandom(8).hex(), "msg_type": kind, "username": "", "session": "s", "version": "5.3"}
    socket.send(
        json.dumps(
            {
                "header": header,
                "parent_header": {},
                "metadata": {},
                "channel": "shell",
                "buffers": [],
                "content": content,
            }
        )
    )


def receive(socket: ClientConnection, wanted: Any, seconds: float = 60) -> dict[str, Any]:
    end = time.monotonic() + seconds
    while True:
        message: dict[str, Any] = json.loads(socket.recv(timeout=max(0.0, end - time.monotonic())))
        if wanted(message):
            return message


def test_code_cannot_be_sent_to_a_dashboards_kernel(dashboards: Dashboards, page: str, tmp_path: Path) -> None:
    with dashboards.channels(kernel_of(page)) as socket:
        send(socket, "execute_request", {"code": f"open({str(tmp_path / 'made')!r}, 'w')", "silent": False})
        send(socket, "comm_info_request", {})
        receive(socket, lambda m: m["msg_type"] == "comm_info_reply")
    assert not (tmp_path / "made").exists()


def test_a_page_from_a_kernel_that_waited_starts_at_once(dashboards: Dashboards) -> None:
    """How long the kernel had waited at `wait_for_request` stands in the page: a cold one did not wait."""
    seconds: list[float] = []

    def warm() -> bool:
        time.sleep(3 * 2 ** len(seconds))
        started = time.perf_counter()
        text = dashboards.get("/voila/render/tiny.ipynb?project=flights").text
        seconds.append(time.perf_counter() - started)
        assert "project=flights" in text
        return float(text.partition("waited ")[2].split()[0]) > 0.2

    wait_for(warm, 90, "a page from a warm kernel")
    print(f"a page from a warm kernel took {seconds[-1]:.2f} s")


def test_a_closed_page_ends_its_kernel(dashboards: Dashboards) -> None:
    kernel = kernel_of(dashboards.get("/voila/render/tiny.ipynb").text)
    assert dashboards.get(f"/api/kernels/{kernel}").status_code == 200
    assert dashboards.end(kernel).status_code == 204
    assert dashboards.get(f"/api/kernels/{kernel}").status_code == 404


def open_and_close(dashboards: Dashboards, *, abruptly: bool) -> None:
    """Do what a tab does: load the page, join its kernel; on leaving say so, or, abruptly, vanish."""
    kernel = kernel_of(dashboards.get("/voila/render/tiny.ipynb").text)
    with dashboards.channels(kernel):
        pass
    if not abruptly:
        assert dashboards.end(kernel).status_code == 204


def tabs_leave_no_kernel_behind(dashboards: Dashboards, tabs: int) -> None:
    dice = random.Random(8)
    chosen = [True] * (tabs // 2) + [False] * (tabs - tabs // 2)
    dice.shuffle(chosen)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda abruptly: open_and_close(dashboards, abruptly=abruptly), chosen))
    closed = time.monotonic()
    left = dashboards.kept_warm + 1  # the module's page is still open
    wait_for(lambda: len(dashboards.kernels()) <= left, 120, "the end of the kernels")
    print(f"{tabs} tabs: the last kernel ended {time.monotonic() - closed:.0f} s after the last tab")


def test_tabs_that_are_closed_or_vanish_leave_no_kernel_behind(dashboards: Dashboards) -> None:
    tabs_leave_no_kernel_behind(dashboards, 8)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_five_hundred_tabs_leave_no_kernel_behind(dashboards: Dashboards) -> None:
    tabs_leave_no_kernel_behind(dashboards, 500)


def test_kernels_are_forks_that_share_what_they_have_imported(dashboards: Dashboards, page: str) -> None:
    parents = {parent_of(kernel) for kernel in dashboards.kernels()} - {None}
    assert parents == {dashboards.zygote().pid}, "the page's own kernel stays; those of earlier pages may end meanwhile"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/kernels"),
        ("GET", "/api/kernels"),
        ("GET", "/api/contents"),
        ("POST", "/api/terminals"),
        ("GET", "/api/sessions"),
        ("GET", "/voila/files/tiny.ipynb"),
        ("GET", "/voila/files/secret.py"),
        ("GET", "/voila/render/../secret.py"),
        ("GET", "/voila/query/00000000-0000-0000-0000-000000000000"),
        ("GET", "/voila/api/contents"),
        ("POST", "/voila/render/tiny.ipynb"),
        ("DELETE", "/api/kernels/00000000-0000-0000-0000-000000000000"),
        ("GET", "/login"),
    ],
)
def test_nothing_else_of_voila_is_open(dashboards: Dashboards, method: str, path: str) -> None:
    answer = httpx.request(
        method,
        dashboards.url + path,
        headers={"authorization": f"Bearer {dashboards.token}"},
        timeout=60,
        trust_env=False,
    )
    assert answer.status_code in (400, 403), answer.text


def test_a_template_of_the_visitors_choice_is_not_used(page: str) -> None:
    assert "theme=dark" in page.partition("told ")[2].partition("\n")[0]
    assert "reveal" not in page.partition("<body")[0]
    assert 'data-jp-theme-light="true"' in page


def test_a_page_may_load_nothing_from_elsewhere(dashboards: Dashboards) -> None:
    policy = dashboards.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    assert "http:" not in policy
    assert "https:" not in policy


def test_nobody_gets_a_page_a_file_or_a_kernels_channel(dashboards: Dashboards, page: str) -> None:
    for path in ("/", "/voila/render/tiny.ipynb", "/voila/static/extension.js", f"/api/kernels/{kernel_of(page)}"):
        assert httpx.get(dashboards.url + path, timeout=60, trust_env=False).status_code == 401
    with (
        pytest.raises(InvalidStatus),
        connect(
            dashboards.url.replace("http", "ws", 1) + f"/api/kernels/{kernel_of(page)}/channels",
            proxy=None,
            open_timeout=60,
        ),
    ):
        pass


def test_our_own_dashboards_are_listed_and_render(platform: Platform) -> None:
    with platform.browser() as browser:
        listed = platform.login(browser, page="/services/dashboards/")
        assert listed.status_code == 200
        for name in set(re.findall(r"voila/render/([\w.-]+\.ipynb)", listed.text)):
            page = browser.get(f"/services/dashboards/voila/render/{name}", timeout=120)
            assert page.status_code == 200
            assert "Traceback" not in page.text
