"""A dashboard that somebody published from their container, in `team` trust: who of the others sees it, who is refused, and when that ends."""

from __future__ import annotations

import html
import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from crew_world import Crew, project_of
from running import close_code, wait_for
from team_world import Person
from websockets.sync.client import connect

pytestmark = pytest.mark.timeout(3600)  # the first build of the image on a machine installs everything
GROUP = "readers"
SOURCE = "import getpass, os\nprint('made for', os.environ['CELLWORK_USER'], 'by', getpass.getuser())"
CELL = {"cell_type": "code", "id": "c0", "metadata": {}, "outputs": [], "execution_count": None, "source": SOURCE}
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
NOTEBOOK = json.dumps({"cells": [CELL], "metadata": {"kernelspec": KERNEL}, "nbformat": 4, "nbformat_minor": 5})
PUBLISH = """
import pathlib, subprocess
folder = pathlib.Path.home() / "work" / "report"
folder.mkdir(exist_ok=True)
(folder / "cellwork.toml").write_text('[project]\\nname = "{project}"\\n')
(folder / "report.ipynb").write_text({notebook!r})
(folder.parent / "tokenize.py").write_text("raise SystemExit('a file of the user stands before the library')")
words = ["cellwork", "dashboard", "publish", str(folder / "report.ipynb"), "--group", "group:{group}", "--profile", "tiny", "--json"]
done = subprocess.run(words, capture_output=True, text=True, timeout=240, cwd=folder)
(folder.parent / "tokenize.py").unlink()
print(done.stdout + done.stderr)
"""


@dataclass(frozen=True)
class Shared:
    """A page of anna's and who is there to look at it: two of its group, and bert, who is not."""

    crew: Crew
    address: str
    readers: tuple[Person, Person]

    def status(self, browser: httpx.Client) -> int:
        return self.open(browser).status_code

    def open(self, browser: httpx.Client) -> httpx.Response:
        """Open the page as a person does; where the hub asks whether the page may know who looks, say yes."""
        answer = browser.get(self.address)
        if answer.url.path == "/hub/api/oauth2/authorize" and answer.status_code == 200:
            fields = re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', answer.text)
            data = {name: [html.unescape(v) for n, v in fields if n == name] for name in ("_xsrf", "scopes")}
            answer = browser.post(str(answer.url), data=data)
        return answer


@pytest.fixture(scope="module")
def shared(crew: Crew) -> Iterator[Shared]:
    users, readers = crew.client().users, (crew.invite("carla"), crew.invite("eva"))
    users.ensure_group(GROUP, "viewer")
    for name in ("anna", "carla", "eva"):
        users.join(GROUP, name)
    code = PUBLISH.format(project=project_of("anna"), notebook=NOTEBOOK, group=GROUP)
    said = crew.run("anna", code, timeout=300)
    assert '"address"' in said, said
    address = json.loads(said)["address"]
    assert address.startswith(f"{crew.url}/user/"), "what a container calls the platform is no address for browsers"
    yield Shared(crew, address, readers)
    crew.run("anna", f"!cellwork dashboard unpublish {project_of('anna')}/report", timeout=120)
    for reader in readers:
        crew.command("user", "remove", reader.name)


def test_a_member_of_the_group_sees_the_page_which_runs_as_its_owner_and_no_lab_of_hers(shared: Shared) -> None:
    with shared.readers[0].browser() as browser:
        assert "made for anna by jovyan" in html.unescape(shared.open(browser).text)
        assert browser.get("/user/anna/lab").status_code in (403, 404)
        assert browser.get(f"{shared.address}api/contents").status_code in (400, 403)


def test_its_server_is_as_large_as_the_profile_it_was_published_with(shared: Shared) -> None:
    container = next(found for found in shared.crew.containers() if "--page-" in found.name)
    assert container.attrs["HostConfig"]["Memory"] == 600 * 2**20
    [listed] = json.loads(shared.crew.run("anna", "!cellwork dashboard list --json", timeout=120))
    assert (listed["name"], listed["profile"]) == ("report", "tiny")


def test_somebody_else_is_refused_and_told_who_can_let_them_in(shared: Shared) -> None:
    bert = shared.crew.people["bert"]
    with bert.browser() as browser:
        answer = shared.open(browser)
    assert answer.status_code == 403
    assert "made for anna" not in answer.text
    assert re.search(r"Ask anna to publish it for a project or group.*--group project:NAME", answer.text, re.DOTALL)
    with shared.crew.http(bert.token()) as http:
        refused = http.get(shared.address)
    assert refused.status_code == 403
    assert "ask anna to publish it for a group that you are in" in refused.json()["way_out"]
    assert httpx.get(shared.address, trust_env=False, timeout=60).status_code == 401


def test_a_killed_hub_comes_back_with_the_page_open_to_its_group_and_to_nobody_else(shared: Shared) -> None:
    crew, carla, bert = shared.crew, shared.readers[0], shared.crew.people["bert"]
    token, strange = carla.token(), bert.token()
    kill_hub(crew)
    with crew.http(token, follow_redirects=True) as http, crew.http(strange, follow_redirects=True) as others:
        wait_for(lambda: http.get(shared.address).status_code == 200, 60, "the page for carla's token")
        assert others.get(shared.address).status_code == 403
    with carla.browser() as browser, bert.browser() as stranger:
        assert "made for anna" in html.unescape(shared.open(browser).text)
        assert shared.status(stranger) == 403
    assert httpx.get(shared.address, trust_env=False, timeout=60).status_code == 401


def test_a_page_whose_server_was_killed_too_is_shown_as_it_was_and_started_by_who_may_look(shared: Shared) -> None:
    crew, carla, bert = shared.crew, shared.readers[0], shared.crew.people["bert"]
    view = shared.address.replace("/user/", "/hub/dashboards/") + "view"
    container = next(found for found in crew.containers() if "--page-" in found.name)
    with carla.browser() as browser, bert.browser() as stranger:
        wait_for(lambda: browser.get(view).status_code == 200, 60, "what the page showed")
        container.kill()
        kill_hub(crew)
        wait_for(lambda: browser.get(shared.address).status_code == 503, 90, "the page that waits")
        seen = browser.get(view)
        assert "made for anna" in html.unescape(seen.text)
        assert "<script" not in seen.text
        assert seen.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
        assert stranger.get(shared.address).status_code in (403, 404)
        for path in ("view", "state"):
            assert stranger.get(view.removesuffix("view") + path).status_code == 404
        wait_for(lambda: "made for anna" in html.unescape(shared.open(browser).text), 120, "the page")
        assert shared.status(stranger) == 403


def kill_hub(crew: Crew) -> None:
    before = crew.status("hub")
    os.kill(before["pid"], signal.SIGKILL)

    def back() -> bool:
        now = crew.status("hub")
        return now["restarts"] > before["restarts"] and now["state"] == "ready"

    wait_for(back, 120, "the hub's return")


def test_who_leaves_the_group_is_out_within_a_minute_and_so_is_the_open_connection(shared: Shared) -> None:
    carla, users = shared.readers[0], shared.crew.client().users
    token = carla.token()
    with shared.crew.http(token, follow_redirects=True) as http:
        text = http.get(shared.address).text
        kernel = re.search(r'"kernelId":\s*"([0-9a-f-]{36})"', text)[1]
        where = shared.address.replace("http", "ws", 1) + f"api/kernels/{kernel}/channels"
        headers = {"authorization": f"token {token}", "origin": shared.crew.url}
        with connect(where, additional_headers=headers, proxy=None, open_timeout=60) as socket:
            users.leave(GROUP, "carla")
            wait_for(lambda: http.get(shared.address).status_code == 403, 60, "the end of carla's access")
            assert close_code(socket) == 4403


def test_a_group_that_is_removed_shows_its_pages_to_nobody_within_a_minute_but_to_their_owner(shared: Shared) -> None:
    with shared.readers[1].browser() as eva, shared.crew.people["anna"].browser() as anna:
        view = shared.address.replace("/user/", "/hub/dashboards/") + "view"
        assert shared.status(eva) == 200
        wait_for(lambda: eva.get(view).status_code == 200, 60, "what the page showed")
        shared.crew.client().users.remove_group(GROUP)
        wait_for(lambda: shared.status(eva) in (403, 404), 60, "the end of the page for the group")
        refused = shared.open(eva)  # by the page, or by the hub in the place of a page that does not run
        assert refused.status_code == 404 or "Ask anna" in refused.text
        assert eva.get(view).status_code == 404, "what it showed is not for them any more either"
        wait_for(lambda: shared.status(anna) == 200, 120, "the page for its owner")
        assert anna.get(view).status_code == 200
