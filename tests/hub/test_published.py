"""A user's notebook as a page: it runs as its owner in a server of its own, for whom the hub lets in, and is no Lab."""

from __future__ import annotations

import html
import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import serving_world as world
from browsing import asked_for, logged_in
from log_world import DAY, World
from running import Platform, gone, wait_for

from cellwork import errors, scopes
from cellwork.wire.dashboards import Published, PublishedContent, PublishRequest
from cellwork.wire.records import Principal
from cellwork_hub import published
from cellwork_hub.platform import dashboards

SOURCE = """import os, httpx
from beside import said
token = {'authorization': 'token ' + os.environ['CELLWORK_TOKEN']}
me = httpx.get(os.environ['CELLWORK_URL'] + '/hub/api/user', headers=token, trust_env=False).json()
print(said, me['kind'], me['name'], 'with', os.environ.get('HTTP_X_CELLWORK_TOKEN'))"""


def notebook(*sources: str) -> str:
    cells = [{"cell_type": "code", "id": f"c{k}", "metadata": {}, "outputs": [], "execution_count": None, "source": s} for k, s in enumerate(sources)]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return json.dumps({"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5})


@dataclass(frozen=True)
class Page:
    """A published page and how one asks for it."""

    platform: Platform
    folder: Path
    address: str

    def get(self, path: str = "", token: str = "", **more: Any) -> httpx.Response:
        headers = {"authorization": f"token {token}"} if token else {}
        return httpx.get(self.address + path, headers=headers, timeout=90, trust_env=False, **more)

    def owner(self) -> str:
        return self.platform.user_token(f"access:servers!user={self.platform.user}")


@pytest.fixture(scope="module")
def page(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("report")
    (folder / "cellwork.toml").write_text('[project]\nname = "papers"\n')
    (folder / "beside.py").write_text("said = 'acts as'\n")
    (folder / "report.ipynb").write_text(notebook(SOURCE))
    done = platform.command("dashboard", "publish", str(folder / "report.ipynb"), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    yield Page(platform, folder, json.loads(done.stdout)["address"])
    platform.command("dashboard", "unpublish", "papers/report")


def test_the_page_runs_as_its_owner_with_nothing_of_who_looks(page: Page) -> None:
    text = page.get(token=page.owner(), follow_redirects=True).text
    assert html.unescape(text).partition("acts as ")[2].partition("\n")[0] == "user ada with None"
    assert re.search(r"/user/ada/page-papers-report-[0-9a-f]{8}/$", page.address)


def test_nobody_gets_nothing_of_it(page: Page) -> None:
    for path in ("", "voila/render/report.ipynb", "voila/static/extension.js"):
        assert page.get(path).status_code == 401
    browser = httpx.get(page.address, headers={"accept": "text/html"}, timeout=60, trust_env=False)
    assert browser.status_code == 302
    assert "/hub/api/oauth2/authorize" in browser.headers["location"]


def test_a_token_that_may_not_open_this_server_is_refused_with_the_name_of_who_can_help(page: Page) -> None:
    answer = page.get(token=page.platform.user_token("users:activity!user=ada"))
    assert answer.status_code == 403
    assert "ask ada to publish it for a group" in answer.json()["way_out"]


@pytest.mark.parametrize(
    "path", ["lab", "api/contents", "api/kernels", "api/terminals", "voila/files/beside.py", "voila/render/beside.py"]
)
def test_it_is_no_lab(page: Page, path: str) -> None:
    assert page.get(path, token=page.owner()).status_code in (400, 403)


def test_what_is_published_again_is_shown_then_and_not_before(page: Page) -> None:
    (page.folder / "report.ipynb").write_text(notebook("print('the second edition')"))
    assert "second edition" not in page.get(token=page.owner(), follow_redirects=True).text
    done = page.platform.command("dashboard", "publish", str(page.folder / "report.ipynb"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "it runs as ada" in done.stdout
    assert "second edition" in page.get(token=page.owner(), follow_redirects=True).text
    listed = page.platform.command("dashboard", "list", "papers").stdout
    assert re.search(r"papers/report +ada +only its owner +ready", listed), listed


def test_a_cell_that_fails_leaves_the_server_up_and_is_told_to_its_owner(page: Page) -> None:
    (page.folder / "report.ipynb").write_text(notebook("secret = 'the inner workings'\nraise KeyError(secret)"))
    done = page.platform.command("dashboard", "publish", str(page.folder / "report.ipynb"))
    assert done.returncode == 0, done.stdout + done.stderr
    answer = page.get(token=page.owner(), follow_redirects=True)
    assert answer.status_code == 503, (answer.text[-800:], answer.history)
    assert "cell 1 failed (KeyError). There is no earlier view" in answer.text
    assert "the inner workings" in answer.text.partition("which only you see")[2], "it is the owner who looks"
    assert page.get("health/ready", token=page.owner()).status_code == 200


def test_a_profile_that_is_not_on_the_menu_is_refused_with_the_near_one(page: Page) -> None:
    path = str(page.folder / "report.ipynb")
    unknown = page.platform.command("dashboard", "publish", path, "--profile", "cpu-smal")
    assert unknown.returncode != 0
    assert "profile 'cpu-smal': is not on the menu; did you mean 'cpu-small'?" in unknown.stderr
    known = page.platform.command("dashboard", "publish", path, "--profile", "cpu-small")
    assert known.returncode != 0
    assert "there is no container engine here" in known.stderr
    [about] = page.platform.client().dashboards.list("papers")
    assert about.profile == ""


@dataclass(frozen=True)
class Report:
    """A page that shows figures and, while `broken` is there, fails below them; while `held` is there, it is not made to its end."""

    page: Page
    broken: Path
    held: Path

    def look(self) -> httpx.Response:
        return self.page.get(token=self.page.owner(), follow_redirects=True)


@pytest.fixture(scope="module")
def published_report(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("report")
    broken, held = folder / "broken", folder / "held"
    source = f"""import pathlib, time
while pathlib.Path({str(held)!r}).exists():
    time.sleep(0.1)
print('figures of', 6 * 7)
assert not pathlib.Path({str(broken)!r}).exists(), 'the inner workings'"""
    (page.folder / "report.ipynb").write_text(notebook("'first'", source))
    done = page.platform.command("dashboard", "publish", str(page.folder / "report.ipynb"))
    assert done.returncode == 0, done.stdout + done.stderr
    return Report(page, broken, held)


@pytest.fixture
def report(published_report: Report) -> Iterator[Report]:
    """It is whole when a test begins."""
    yield published_report
    for file in (published_report.broken, published_report.held):
        file.unlink(missing_ok=True)


def test_a_page_that_fails_later_is_shown_as_it_last_was_and_anew_when_it_is_mended(report: Report) -> None:
    assert "figures of 42" in report.look().text
    report.broken.touch()
    stale = report.look()
    assert stale.status_code == 200
    assert "could not be made now: cell 2 failed (AssertionError). Shown is how it was at 20" in stale.text
    assert "figures of 42" in stale.text
    assert "the inner workings" in stale.text.partition("which only you see")[2], "it is the owner who looks"
    report.broken.unlink()
    mended = report.look().text
    assert "figures of 42" in mended
    assert "cellwork-last-good" not in mended


def test_in_a_browser_the_line_stands_above_what_was_shown(
    report: Report, chromium: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with logged_in(report.page.platform, chromium, tmp_path_factory.mktemp("profile")) as browser:
        loaded = asked_for(browser)
        report.held.touch()
        browser.goto(report.page.address, wait_until="commit")
        browser.get_by_text("Running cell 2 of 2").wait_for()
        report.held.unlink()
        browser.get_by_text("figures of 42").wait_for()
        assert browser.locator("#cellwork-making").count() == 0
        assert browser.url.endswith("/voila/render/report.ipynb")
        assert [url for url in loaded if not url.startswith((report.page.platform.url, "data:", "blob:"))] == []
        report.broken.touch()
        browser.reload()
        line, shown = browser.locator("#cellwork-last-good"), browser.get_by_text("figures of 42")
        shown.wait_for()
        line.wait_for()
        assert "cell 2 failed (AssertionError)" in line.inner_text()
        assert "the inner workings" in line.inner_text()
        assert 0 <= line.bounding_box()["y"] < shown.bounding_box()["y"] < 900
        report.broken.unlink()
        line.get_by_role("link", name="Try again").click()
        line.wait_for(state="detached")
        shown.wait_for()


def running(platform: Platform, part: str) -> psutil.Process | None:
    """Return the program of the page whose server's name holds `part`."""
    for process in psutil.process_iter():
        try:
            environ, words = process.environ(), process.cmdline()
        except psutil.Error:
            continue
        ours = environ.get("CELLWORK_URL") == platform.url and part in environ.get("JUPYTERHUB_SERVER_NAME", "")
        if ours and words[-1:] == ["cellwork_hub.published"]:
            return process
    return None


def test_when_hub_and_server_are_killed_the_page_is_shown_as_it_was_until_it_is_made_again(
    report: Report, chromium: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    platform, views = report.page.platform, report.page.platform.home / "dashboards"
    assert "figures of 42" in report.look().text
    wait_for(lambda: list(views.glob("*/*.view")), 60, "the view's file")
    report.broken.touch()
    server = running(platform, "papers-report")
    assert server is not None
    behind = server.children()
    with logged_in(platform, chromium, tmp_path_factory.mktemp("profile")) as browser:
        before = platform.status("hub")
        server.kill()
        os.kill(before["pid"], signal.SIGKILL)
        wait_for(lambda: platform.status("hub")["restarts"] > before["restarts"], 60, "the hub's death")
        wait_for(lambda: state(platform) == "stopped", 120, "the hub's look at the page")
        wait_for(lambda: all(gone(process.pid) for process in behind), 60, "the end of what the page had started")

        browser.route("**/state", lambda route: route.abort())  # it waits until it was looked at

        def waits() -> bool:
            """The proxy's route to the dead server goes with the hub's first look."""
            browser.goto(report.page.address)
            return browser.get_by_text("Data as of 20").is_visible()

        wait_for(waits, 60, "the page that waits")
        browser.frame_locator("#last").get_by_text("figures of 42").wait_for()
        browser.unroute("**/state")
        line = browser.locator("#cellwork-last-good")
        line.wait_for()
        assert "cell 2 failed (AssertionError). Shown is how it was at 20" in line.inner_text()
        browser.get_by_text("figures of 42").wait_for()


def state(platform: Platform) -> str:
    try:
        [about] = platform.client().dashboards.list("papers")
        return platform.client().dashboards.state(about)
    except (errors.Unavailable, httpx.TransportError):
        return ""


def test_what_is_taken_down_is_gone(page: Page) -> None:
    done = page.platform.command("dashboard", "unpublish", "papers/report")
    assert done.returncode == 0, done.stdout + done.stderr
    assert page.get(token=page.owner(), follow_redirects=True).status_code == 404
    assert "papers" not in page.platform.command("dashboard", "list", "papers").stdout
    with page.platform.hub() as hub:
        servers = hub.get("/users/ada?include_stopped_servers").json()["servers"]
        assert not [name for name in servers if name.startswith("page-papers")]
    assert not list((page.platform.home / "dashboards").glob("*/*")), "and so is what it showed"


@pytest.fixture
def shop(tmp_path: Path) -> World:
    return World(tmp_path)


def ask(shop: World, who: str, body: Any = None, *groups: str) -> Any:
    """Return the answer to `who`, a member of project shop in `team` trust, on the dashboard shop/report."""
    routes = {route.method: route for route in dashboards.routes(shop.state) if "{name}" in route.path}
    principal = Principal(
        kind="user", name=who, scopes=scopes.ROLES["author"], groups=frozenset({"project:shop", *groups})
    )
    call = replace(
        world.call(), principal=principal, path={"project": "shop", "name": "report"}, body=body, bounded=True
    )
    return routes["PUT" if body else "GET"].handler(call)


def test_nobody_elses_notebook_ever_runs_under_a_name_that_is_taken(shop: World) -> None:
    mine = PublishRequest(notebook="report.ipynb", content=notebook("1"), group="project:shop")
    assert ask(shop, "anna", mine).owner == "anna"
    with pytest.raises(errors.Conflict, match="is anna's"):
        ask(shop, "mallory", PublishRequest(notebook="report.ipynb", content=notebook("'stolen'")))
    with pytest.raises(errors.Refused, match="is anna's"):
        ask(shop, "mallory")
    assert ask(shop, "anna").content == mine.content


def test_it_is_shared_only_with_a_group_that_its_owner_is_in(shop: World) -> None:
    asked = PublishRequest(notebook="report.ipynb", content=notebook("1"), group="project:vault")
    with pytest.raises(errors.Refused, match="project:vault"):
        ask(shop, "anna", asked)
    assert ask(shop, "anna", asked, "project:vault").group == "project:vault"


def test_a_profile_of_a_group_is_for_its_members(shop: World) -> None:
    (shop.state.home.root / "profiles.toml").write_text('[big]\nmemory = "64G"\ncores = 32\ngroups = ["astro"]')
    asked = PublishRequest(notebook="report.ipynb", content=notebook("1"), profile="big")
    with pytest.raises(errors.Refused, match="for astro only"):
        ask(shop, "anna", asked)
    with pytest.raises(errors.Unavailable, match="no container engine"):
        ask(shop, "anna", asked, "group:astro")


@pytest.mark.parametrize("path", ["/etc/passwd", "../beside.py", "a/../../b.py"])
def test_files_lie_beside_the_notebook_and_nowhere_else(shop: World, tmp_path: Path, path: str) -> None:
    asked = PublishRequest(notebook="report.ipynb", content=notebook("1"), files={path: "x"})
    with pytest.raises(errors.BadInput, match="beside"):
        ask(shop, "anna", asked)
    about = Published(project="shop", name="report", owner="anna", group="", notebook="r.ipynb", sha256="", at=DAY)
    folder = tmp_path / "page"
    folder.mkdir()
    with pytest.raises(errors.Refused, match="beside"):
        published.lay(PublishedContent(about=about, content=notebook("1"), files={path: "x"}), folder)


def test_what_is_no_notebook_is_refused(shop: World) -> None:
    with pytest.raises(errors.BadInput, match="no notebook"):
        ask(shop, "anna", PublishRequest(notebook="report.ipynb", content="print(1)"))
