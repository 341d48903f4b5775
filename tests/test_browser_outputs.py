"""A page of Lab that is reloaded, or comes back later, finds what its cells said meanwhile: text, pictures of widgets that still work, errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from browsing import SLOW, logged_in
from lab import open_notebook, run_all, workspace
from running import Platform, wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Page

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
    saved = json.loads((workspace(platform) / path).read_text())["cells"]
    assert not any("and ended" in json.dumps(cell["outputs"]) for cell in saved), "nobody was there to write it"

    come_back(page, platform, path)
    page.wait_for_selector(".jp-OutputArea-output:has-text('and ended')")
    assert outputs(page).count("begun") == 1
    assert "42" in outputs(page)
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
    (workspace(platform) / "running" / "go").touch()
    page.wait_for_selector(".jp-OutputArea-output:has-text('and ended')")
    page.wait_for_selector("button.jupyter-button:text-is('press')")


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
    wait_for(lambda: "an output" not in file.read_text().replace("'an' + ' output'", ""), 60, "the empty notebook")
    come_back(page, platform, path)
    page.wait_for_selector(".jp-NotebookPanel-toolbar [data-status='idle']", timeout=SLOW)
    page.wait_for_timeout(1500)
    assert outputs(page) == ""
