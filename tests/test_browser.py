"""What a person does first, in Chromium: log in, open Lab, run the first tutorial, look at a cluster and at the dashboards.

What a click did is asserted through the HTTP API, never by what the page claims.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from browsing import logged_in
from lab import a_notebook, failure, open_notebook, run_all, scattered, workspace
from running import Platform, wait_for

from cellwork.client import Client
from cellwork.errors import NotFound

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.timeout(900)  # the first test waits for the platform


@pytest.fixture(scope="module")
def client(platform: Platform) -> Iterator[Client]:
    with Client(platform.url, platform.user_token("inherit")) as client:
        yield client


@pytest.fixture(scope="module")
def page(platform: Platform, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with logged_in(platform, chromium, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.mark.parametrize(
    ("source", "said", "fails"),
    [
        ("1 / 0", "ZeroDivisionError", True),
        ("def broken(:", "SyntaxError", True),
        (
            "from cellwork.errors import BadInput\nraise BadInput('month', 13, 'is none', 'write 1 to 12')",
            "month '13': is none; write 1 to 12",
            True,
        ),
        ("raise SystemExit('left')", "left", True),
        ("import sys; print('a warning: nothing is wrong', file=sys.stderr)", "a warning: nothing is wrong", False),
    ],
)
def test_what_these_tests_take_for_a_failure_is_one(page, platform, source, said, fails):
    """Without this `failure(page) == ""` could hold for a page full of errors."""
    folder = workspace(platform) / "fails"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fails.ipynb").write_text(json.dumps(a_notebook(source)))
    open_notebook(page, platform, "fails/fails.ipynb")
    run_all(page, page.locator(".jp-OutputArea-output").count)
    page.locator(".jp-OutputArea-output").filter(has_text=said).first.wait_for()  # Lab draws it after it is there
    assert (said in failure(page)) == bool(failure(page)) == fails


@pytest.mark.parametrize(
    ("prompts", "lost"),
    [
        ([], False),
        (["", ""], False),
        (["1", "2", ""], False),  # the second raised: the third was not run
        (["4", "5", "6"], False),
        (["4", "*", "*"], False),
        (["", "", "1", "1"], True),
        (["1", "1"], True),
        (["2", "", "4"], True),
    ],
)
def test_a_run_is_none_whose_cells_lab_scattered_over_kernels(prompts, lost):
    assert scattered(prompts) == lost


def test_the_first_tutorial_runs_in_lab_and_its_batches_are_there(page, platform, client):
    source = workspace(platform) / "tutorials" / "flights"
    wait_for(source.is_dir, 60, "the copy of the tutorials")
    notebook = json.loads((source / "01_ingest.ipynb").read_text())
    cell = next(cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", []))
    cell["source"] = "".join(cell["source"]).replace(
        'last: str = "2013-11"', 'last: str = "2013-01"'
    )  # a month is enough here
    (source / "first.ipynb").write_text(json.dumps(notebook))

    def partitions() -> set[str]:
        try:
            return {batch.partition for batch in client.batches.list("flights", "flights")}
        except NotFound:
            return set()

    open_notebook(page, platform, "tutorials/flights/first.ipynb")
    run_all(page, lambda: partitions() or failure(page))
    assert failure(page) == ""
    batch = next(batch for batch in client.batches.list("flights", "flights") if batch.partition == "2013-01")
    assert batch.rows == 27_004
    assert batch.origin.notebook == "first.ipynb"
    assert batch.origin.cell_id in {cell["id"] for cell in notebook["cells"]}


def test_lab_asks_nobody_for_news_and_the_cluster_of_a_notebook_shows_its_dashboard(page, platform):
    """Lab would ask whether it may fetch news from a public host; the settings that come with the platform answer for everybody."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    folder = workspace(platform) / "dask"
    folder.mkdir(parents=True, exist_ok=True)
    source = "from contextlib import ExitStack\nfrom cellwork import training\n\nopened = ExitStack()\nopened.enter_context(training.cluster(workers=1))"
    (folder / "dask.ipynb").write_text(json.dumps(a_notebook(source)))
    open_notebook(page, platform, "dask/dask.ipynb")
    link = page.locator("a:text-is('dashboard')")
    run_all(page, link.count)
    with page.expect_popup() as opened:
        link.click()
    opened.value.locator(
        "text='Data Transfer' >> visible=true"
    ).first.wait_for()  # a tab that only the websocket brings
    assert opened.value.url.startswith(f"{platform.url}/user/{platform.user}/proxy/")
    opened.value.close()
    assert page.locator("text=official Jupyter news").count() == 0
    assert [url for url in asked if not url.startswith((platform.url, "data:", "blob:"))] == []
    assert not any("/lab/api/news" in url or "/lab/api/update" in url for url in asked)


def test_the_list_of_dashboards_has_its_icons_from_the_platform_itself(page, platform):
    asked: dict[str, int] = {}
    page.on("response", lambda response: asked.update({response.url: response.status}))
    with page.expect_response(re.compile(r"\.woff2$")):  # asked for when the first icon is drawn
        page.goto(f"{platform.url}/services/dashboards/")
    shown = "getComputedStyle(document.querySelector('i.fa'), '::before').content"
    page.wait_for_function(f"![undefined, 'none', 'normal'].includes({shown})")
    fonts = [status for url, status in asked.items() if url.endswith(".woff2")]
    assert fonts == [200]
    assert all(url.startswith(platform.url) for url in asked)
