"""Two people in two browsers, each with a container of their own: the whole of what `team` trust on one machine promises, walked by hand.

Each logs in and runs the first tutorial in Lab; neither reaches the other or the platform's home; the hub is killed
and what they computed is still there; and what one schedules executes at its time in a container of the digest it
was scheduled from.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from browsing import FLAGS, SLOW
from crew_world import PEOPLE, Crew
from lab import failure, run_all
from running import wait_for
from team_world import pass_phrase

from cellwork import assets
from cellwork.home import Home
from cellwork_hub.containers import engine, images, way

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.timeout(3600)  # the first build of the image on a machine installs everything
MONTHS = {"anna": "2013-01", "bert": "2013-02"}
TUTORIAL = "tutorials/flights/first.ipynb"
ASK = "path => fetch(path, {redirect: 'manual'}).then(answer => answer.status)"
"""What a script in a page is answered; 0 is being sent elsewhere, to log in."""


@pytest.fixture(scope="module")
def project(crew: Crew) -> str:
    """The tutorials' project, which both are members of."""
    client = crew.people["anna"].client()
    client.projects.create("flights")
    client.projects.add("flights", "bert")
    return "flights"


def contents(crew: Crew, name: str) -> httpx.Client:
    """Return a client of the files of `name`, as they are seen by their server."""
    headers = {"authorization": f"token {crew.serve(user=name).token}"}
    return httpx.Client(base_url=f"{crew.url}/user/{name}/api/contents", headers=headers, timeout=60, trust_env=False)


def put_notebook(crew: Crew, name: str, path: str, notebook: dict[str, Any]) -> None:
    with contents(crew, name) as http:
        http.put(f"/{path}", json={"type": "notebook", "content": notebook}).raise_for_status()


def tutorial(name: str) -> dict[str, Any]:
    """Return the first tutorial with a month as parameter; it has one for each of them."""
    notebook: dict[str, Any] = json.loads((assets.folder("nbs") / "tutorials/flights/01_ingest.ipynb").read_text())
    cell = next(cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", []))
    source = "".join(cell["source"]).replace('first: str = "2013-01"', f'first: str = "{MONTHS[name]}"')
    cell["source"] = source.replace('last: str = "2013-11"', f'last: str = "{MONTHS[name]}"')
    return notebook


@pytest.fixture(scope="module")
def pages(crew: Crew, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Page]]:
    """A browser of each person, logged in by their own password, at their own Lab."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = {}
        for name in PEOPLE:
            crew.serve(user=name)
            folder = tmp_path_factory.mktemp(name)
            browser = playwright.chromium.launch_persistent_context(folder, executable_path=chromium, args=FLAGS)
            browser.set_default_timeout(SLOW)
            found[name] = page = browser.pages[0]
            page.on("dialog", lambda dialog: dialog.accept())  # changes are not saved: leave all the same
            page.goto(f"{crew.url}/hub/login")
            page.fill("#username_input", name)
            page.fill("#password_input", pass_phrase(name))
            page.click("#login_submit")
            page.wait_for_url(f"**/user/{name}/**")
        yield found
        for page in found.values():
            page.context.close()


def outputs(page: Page) -> str:
    return "\n".join(page.locator(".jp-CodeCell .jp-OutputArea-output").all_inner_texts())


def open_notebook(page: Page, crew: Crew, name: str, path: str) -> None:
    page.goto(f"{crew.url}/user/{name}/lab/workspaces/walk/tree/{path}?reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
    page.wait_for_selector(".jp-NotebookPanel-toolbar [data-status='idle']", timeout=SLOW)


def test_each_runs_the_first_tutorial_in_a_container_of_their_own(
    crew: Crew, pages: dict[str, Page], project: str, cpu_image: images.Image
) -> None:
    for name, page in pages.items():
        client = crew.people[name].client()
        put_notebook(crew, name, TUTORIAL, tutorial(name))
        open_notebook(page, crew, name, TUTORIAL)

        def mine(client: Any = client, month: str = MONTHS[name]) -> list[Any]:
            return [batch for batch in client.batches.list(project, "flights") if batch.partition == month]

        run_all(page, lambda page=page, mine=mine: _there(mine) or failure(page), 240)  # type: ignore[misc]
        assert failure(page) == ""
        [batch] = mine()
        assert (batch.origin.user, batch.origin.image_digest) == (name, cpu_image.digest)
    assert len({crew.container(name).id for name in PEOPLE}) == 2


def _there(ask: Any) -> Any:
    from cellwork.errors import NotFound

    with contextlib.suppress(NotFound):
        return ask()
    return []


def test_neither_reaches_the_other_or_the_platforms_home(crew: Crew, pages: dict[str, Page]) -> None:
    """With all the cookies a browser has, typed into its address bar and asked for by script; and from a cell."""
    for name, other in zip(PEOPLE, reversed(PEOPLE), strict=True):
        page = pages[name]
        for path in ("lab", "api/contents", "api/kernels", f"files/{TUTORIAL}", "oauth_callback"):
            status = page.evaluate(ASK, f"/user/{other}/{path}")
            assert status in (0, 400, 403, 404, 405), path
        own = page.goto(f"{crew.url}/user/{name}/lab")
        assert own is not None
        assert own.status == 200
        answer = page.goto(f"{crew.url}/user/{other}/lab")
        assert answer is not None
        assert answer.status == 403
        told = crew.run(
            name, f"import os; print(os.path.exists({str(crew.home)!r}), os.path.exists('/home/jovyan/work/tutorials'))"
        )
        assert told.split() == ["False", "True"]


def test_a_killed_hub_keeps_servers_kernels_and_who_is_logged_in(crew: Crew, pages: dict[str, Page]) -> None:
    for name in PEOPLE:
        # by a token that its server asks the hub about now, and not while there is none
        crew.servers[name] = crew.reach(user=name)
        crew.run(name, f"kept = 'computed by {name}'")
    before = crew.status("hub")
    containers = {found.id for found in crew.containers()}
    left_behind(crew, f"{crew.prefix}-ghost")
    os.kill(before["pid"], signal.SIGKILL)
    assert crew.run("anna", "kept") == "'computed by anna'", "a kernel answers while there is no hub"

    def back() -> bool:
        now = crew.status("hub")
        return bool(now["restarts"] > before["restarts"] and now["state"] == "ready")

    wait_for(back, 60, "the hub's return")
    for name in PEOPLE:
        assert crew.run(name, "kept") == f"'computed by {name}'"
        pages[name].goto(f"{crew.url}/user/{name}/lab")
        pages[name].wait_for_selector(".jp-LabShell")
    wait_for(lambda: {found.id for found in crew.containers()} == containers, 60, "the end of what a killed hub left")


def left_behind(crew: Crew, name: str) -> None:
    """Make what a hub leaves that is killed between making a container and writing down whose it is."""
    assert crew.engine
    mine = {engine.OWNER: way.label(Home(crew.home))}
    crew.engine.client.containers.run(crew.engine.base(), ["sleep", "600"], name=name, labels=mine, network_mode="none", detach=True)  # fmt: skip
    assert name in {found.name for found in crew.containers()}


SCHEDULE = """
import json, nbformat, cellwork.client
from cellwork.wire.jobs import JobRequest, Schedule
source = "import json, os, socket\\nprint(json.dumps([os.environ['CELLWORK_IMAGE_DIGEST'], socket.gethostname(), os.getuid(), 'CELLWORK_HOME' in os.environ]))"
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
job = cellwork.client.connect().jobs.ensure(JobRequest(project="flights", name="nightly", notebook="nightly.ipynb", content=nbformat.writes(notebook), schedule=Schedule(every_seconds=5)))
print(job.image_digest)
"""


def test_what_is_scheduled_executes_in_a_container_of_its_recorded_digest(
    crew: Crew, project: str, cpu_image: images.Image
) -> None:
    assert crew.run("anna", SCHEDULE).strip() == cpu_image.digest
    client = crew.people["anna"].client()
    run = wait_for(lambda: next(iter(client.jobs.runs(job="flights/nightly")), None), 60, "the scheduled run")
    client.jobs.pause("flights/nightly")
    run = client.jobs.wait(run.id, timeout=120)
    assert (run.state, run.image_digest) == ("succeeded", cpu_image.digest), run.attempts[-1].error
    assert run.cause == "schedule", "the clock started it, and nobody else"
    [cell] = json.loads(client.jobs.notebook(run.id))["cells"]
    digest, host, uid, home = json.loads("".join(cell["outputs"][0]["text"]))
    assert (digest, uid, home) == (cpu_image.digest, 1000, False)
    assert host not in {crew.run(name, "import socket; print(socket.gethostname())").strip() for name in PEOPLE}


def test_a_kernel_that_needed_too_much_memory_says_so_in_its_cell(crew: Crew, pages: dict[str, Page]) -> None:
    """And the page says what to do, and the server lives on."""
    cell = {"cell_type": "code", "id": "much", "metadata": {}, "source": "hoard = bytearray(3 * 2**30)\nhoard[::4096] = b'x' * len(hoard[::4096])", "outputs": [], "execution_count": None}  # fmt: skip
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    put_notebook(crew, "bert", "much.ipynb", {"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": [cell]})
    page = pages["bert"]
    open_notebook(page, crew, "bert", "much.ipynb")
    run_all(page, lambda: "KernelDied" in outputs(page), ended=False)
    assert "the kernel needed more memory than the 1024 MB that this server may have" in outputs(page)
    assert "choose a larger profile" in outputs(page)
    assert crew.run("bert", "6 * 7") == "42", "the other kernel of the server is untouched"
