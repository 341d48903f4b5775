"""A page of Lab that is reloaded, or comes back later, finds what its cells said meanwhile: text, pictures of widgets that still work, errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from browsing import SLOW, logged_in, saved
from lab import open_notebook, run_all, workspace
from running import Platform, wait_for

if TYPE_CHECKING:
    from playwright.sync_api import APIResponse, Page, Route

pytestmark = pytest.mark.timeout(600)
WAITS = """
import os, time
import ipywidgets
display(ipywidgets.IntSlider(value=3, description="level"))
print("begun", flush=True)
while not os.path.exists("go"): time.sleep(0.1)
print("and ended")
button = ipywidgets.Button(description="press")
said = ipywidgets.Label("not yet")
button.on_click(lambda _: setattr(said, "value", "it was pressed"))
display(button, said)
6 * 7
"""


@pytest.fixture(scope="module")
def page(platform: Platform, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with logged_in(platform, chromium, tmp_path_factory.mktemp("outputs")) as page:
        page.on("dialog", lambda dialog: dialog.accept())  # changes are not saved: leave all the same
        yield page


def write(platform: Platform, name: str, *cells: str) -> str:
    """Write a notebook into a folder of its own; return its path as Lab sees it."""
    folder = workspace(platform) / name
    folder.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    (folder / "n.ipynb").write_text(nbformat.writes(notebook))
    return f"{name}/n.ipynb"


def outputs(page: Page) -> str:
    return "\n".join(page.locator(".jp-CodeCell .jp-OutputArea-output").all_inner_texts())


def come_back(page: Page, platform: Platform, path: str) -> None:
    """Leave Lab without saving, and open the notebook anew; its kernel has gone on."""
    page.goto("about:blank")
    page.goto(f"{platform.url}/user/{platform.user}/lab/workspaces/back/tree/{path}?reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell")


def test_a_page_that_comes_back_finds_what_a_cell_said_meanwhile_and_its_widget_works(
    page: Page, platform: Platform
) -> None:
    path = write(platform, "meanwhile", WAITS)
    open_notebook(page, platform, path)
    run_all(page, lambda: "begun" in outputs(page), ended=False)
    page.goto("about:blank")
    (workspace(platform) / "meanwhile" / "go").touch()
    wait_for(lambda: idle(platform, path), 60, "the end of the cell")
    there = wait_for(lambda: saved(workspace(platform) / path), 60, "the notebook")
    assert not any("and ended" in str(cell["outputs"]) for cell in there["cells"]), "nobody was there to write it"

    come_back(page, platform, path)
    page.wait_for_selector(".jp-OutputArea-output:has-text('and ended')")
    page.wait_for_selector(".jp-OutputArea-output:has-text('42')")
    assert outputs(page).count("begun") == 1
    page.wait_for_selector(".widget-slider >> text=level")
    page.click("button.jupyter-button:text-is('press')")
    page.wait_for_selector(".jp-OutputArea-output:has-text('it was pressed')")
    assert re.fullmatch(r"\[\d+\]:", page.locator(".jp-CodeCell .jp-InputArea-prompt").all_inner_texts()[-1].strip())


def idle(platform: Platform, path: str) -> bool:
    """Whether the kernel of a notebook waits, as the server tells."""
    token = platform.user_token(f"access:servers!user={platform.user}")
    with platform.http(token) as http:
        sessions: list[dict[str, Any]] = http.get(f"/user/{platform.user}/api/sessions").json()
    return any(s["path"] == path and s["kernel"]["execution_state"] == "idle" for s in sessions)


def test_a_page_that_comes_back_while_a_cell_runs_follows_it_to_its_end(page: Page, platform: Platform) -> None:
    path = write(platform, "running", WAITS)
    open_notebook(page, platform, path)
    run_all(page, lambda: "begun" in outputs(page), ended=False)
    come_back(page, platform, path)
    page.wait_for_selector(".jp-OutputArea-output:has-text('begun')")
    page.wait_for_selector(".jp-CodeCell .jp-InputArea-prompt:has-text('*')")
    slider = page.wait_for_selector(".widget-slider")
    (workspace(platform) / "running" / "go").touch()
    page.wait_for_selector(".jp-OutputArea-output:has-text('and ended')")
    page.wait_for_selector("button.jupyter-button:text-is('press')")
    page.wait_for_selector(".jp-CodeCell .jp-InputArea-prompt:text-matches('[0-9]')")
    assert slider.evaluate("node => node.isConnected"), "what was there stays as the rest comes"


def test_what_a_page_runs_itself_is_not_replaced_by_what_was_said_before(page: Page, platform: Platform) -> None:
    """The server's answer about what was said before comes late: the page has run the cell anew meanwhile."""
    path = write(platform, "anew", "import time\nprint('said at', time.time_ns())")
    open_notebook(page, platform, path)
    run_all(page, lambda: "said at" in outputs(page))
    before = outputs(page)
    held: list[tuple[Route, APIResponse]] = []
    page.route("**/cellwork/outputs/*", lambda route: held.append((route, route.fetch())))
    come_back(page, platform, path)
    wait_for(lambda: page.wait_for_timeout(100) or held, 60, "the question")
    run_all(page, lambda: "said at" in outputs(page))
    now, (route, answer) = outputs(page), held[0]
    with page.expect_request("**/cellwork/outputs/*"):  # it looks once more after it has shown what it was told
        route.fulfill(response=answer)
    assert outputs(page) == now != before
    page.unroute("**/cellwork/outputs/*")


def test_what_was_cleared_and_saved_does_not_come_back_and_neither_do_outputs_of_other_code(
    page: Page, platform: Platform
) -> None:
    path = write(platform, "cleared", "print('an' + ' output')")
    open_notebook(page, platform, path)
    run_all(page, lambda: "an output" in outputs(page))
    page.click("#jp-MainMenu .lm-MenuBar-itemLabel:text-is('Edit')")
    page.click(".lm-Menu-itemLabel:text-is('Clear Outputs of All Cells')")
    file = workspace(platform) / path
    before = file.stat().st_mtime_ns
    page.click("#jp-MainMenu .lm-MenuBar-itemLabel:text-is('File')")
    page.click(".lm-Menu-itemLabel:text-is('Save Notebook')")
    wait_for(lambda: file.stat().st_mtime_ns > before, 60, "the saved notebook")
    wait_for(lambda: [cell["outputs"] for cell in saved(file).get("cells", ())] == [[]], 60, "the empty notebook")
    come_back(page, platform, path)
    page.wait_for_selector(".jp-NotebookPanel-toolbar [data-status='idle']", timeout=SLOW)
    page.wait_for_timeout(1500)
    assert outputs(page) == ""
