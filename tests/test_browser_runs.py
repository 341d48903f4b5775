"""Runs and jobs in Lab, in Chromium: open a failed run at its kernel, be told of it, make a job by a form, compare runs.

What a click did is asserted through the HTTP API, never by what the page claims.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import SLOW, logged_in, saved
from lab import a_notebook, open_notebook, run_all, workspace
from running import Platform, wait_for

from cellwork.client import Client
from cellwork.wire.jobs import RunRequest

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


def test_a_failed_run_is_opened_in_lab_at_its_kernel_and_goes_on_after_the_cell_is_mended(page, platform, client):
    """`run open` makes the page, Lab attaches to the run's own kernel, and `run resume` takes the page as it was mended."""
    sources = ["numbers = [3, 4]", "total = sum(number / 0 for number in numbers)", "print('the total is', total)"]
    content = json.dumps(a_notebook(*sources))
    started = client.jobs.start(RunRequest(project="shop", notebook="sums.ipynb", content=content))
    run = client.jobs.wait(started.id, timeout=120)
    assert run.kept is not None
    opened = json.loads(platform.command("run", "open", run.id, "--json").stdout)
    assert (opened["cell"], opened["url"].endswith("#cell-id=c1")) == (2, True)
    path = Path(opened["notebook"]).relative_to(workspace(platform)).as_posix()

    page.goto(f"{platform.url}/user/{platform.user}/lab/workspaces/test-{time.time_ns()}/tree/{path}?reset")
    cells = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell")
    cells.nth(2).wait_for()

    def looked() -> bool:
        cells.nth(2).locator(".cm-content").click()
        page.keyboard.press("Control+a")
        page.keyboard.insert_text("print('seen', numbers)")
        page.keyboard.press("Control+Enter")
        page.wait_for_timeout(1000)
        return "seen [3, 4]" in cells.nth(2).inner_text()

    wait_for(looked, 90, "the run's own kernel")
    for cell, text in ((1, "total = sum(numbers)"), (2, sources[2])):
        cells.nth(cell).locator(".cm-content").click()
        page.keyboard.press("Control+a")
        page.keyboard.insert_text(text)
    page.keyboard.press("Control+s")
    wait_for(lambda: "sum(numbers)" in str(saved(Path(opened["notebook"]))), 60, "the saved page")
    resumed = platform.command("run", "resume", run.id, "--follow")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "the total is 7" in client.jobs.notebook(run.id)


def test_lab_tells_how_a_run_ended_also_of_one_that_failed_while_no_page_was_open(page, platform, client):
    """The notice names job, cell and error; its button opens the page of the run, at the kernel that is kept for it."""

    def fail(name: str) -> str:
        content = json.dumps(a_notebook("a = 1", "a / 0"))
        run = client.jobs.start(RunRequest(project="shop", notebook=f"{name}.ipynb", content=content))
        assert client.jobs.wait(run.id, timeout=120).state == "failed"
        return run.id

    lab = f"{platform.url}/user/{platform.user}/lab/workspaces/news-{time.time_ns()}?reset"
    with page.expect_response("**/cellwork/news*", timeout=SLOW):
        page.goto(lab)
    page.wait_for_selector("#jp-main-dock-panel")
    wait_for(lambda: page.evaluate("Object.keys(localStorage).some(key => key.startsWith('cellwork:news'))"), 60)
    runs = [fail("seen")]
    notice = page.locator(".Toastify__toast:has-text('seen.ipynb failed in cell 2 of 2: ')").first
    notice.wait_for()
    assert "ZeroDivisionError" in notice.inner_text()
    passing = page.locator(".Toastify__toast:has-text('succeeded')").first
    passing.wait_for(state="detached")  # the others move when it goes
    notice.locator("button:has-text('Open')").click()
    page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell").nth(1).wait_for()
    opened = workspace(platform) / "runs" / f"seen-{runs[0][-6:]}.ipynb"
    there = wait_for(lambda: saved(opened), 60, "the page of the run")
    assert there["metadata"]["kernelspec"]["name"] == f"cellwork-{runs[0]}"
    page.goto("about:blank")
    runs.append(fail("unseen"))
    page.goto(lab)
    page.locator(".Toastify__toast:has-text('unseen.ipynb failed in cell 2 of 2')").first.wait_for()
    assert page.locator(".Toastify__toast:has-text('seen.ipynb')").count() == 1, "what was told is not told again"
    for run in runs:
        client.jobs.release(run)


def test_a_form_in_a_notebook_makes_a_job_and_the_list_compares_its_runs(page, platform, client):
    """`%job` and `%runs` in Lab; jobs and runs are asked of the service, never of the page."""
    folder = workspace(platform) / "nightly"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "cellwork.toml").write_text('[project]\nname = "pressed"\n')
    report = a_notebook("days: int = 3")
    report["cells"][0]["metadata"] = {"tags": ["parameters"]}
    (folder / "report.ipynb").write_text(json.dumps(report))
    (folder / "form.ipynb").write_text(json.dumps(a_notebook("%job report.ipynb")))
    open_notebook(page, platform, "nightly/form.ipynb")
    run_all(page, page.locator("button:has-text('Create job')").count)
    page.get_by_label("Cron").fill("30 6 * * 1-5")
    page.wait_for_selector("text=next due:")
    page.get_by_label("days").fill("7")
    page.click("button:has-text('Create job')")

    def made() -> object:
        return next((job for job in client.jobs.list("pressed")), None)

    job = wait_for(made, 60, "the job")
    assert (job.name, job.schedule.cron, job.parameters) == ("report", "30 6 * * 1-5", {"days": 7})
    runs = [client.jobs.start(RunRequest(job="pressed/report", parameters={"days": days})).id for days in (1, 2)]
    assert {client.jobs.wait(run, timeout=180).state for run in runs} == {"succeeded"}
    (folder / "list.ipynb").write_text(json.dumps(a_notebook("%runs pressed/report")))
    open_notebook(page, platform, "nightly/list.ipynb")
    run_all(page, page.locator(".cellwork-runs tbody tr").count)
    page.click("button:has-text('Compare')")
    page.frame_locator("iframe[title='difference']").locator("td:text-is('days')").wait_for()
    page.click("button:has-text('Run again')")
    wait_for(lambda: len(list(client.jobs.runs(job="pressed/report"))) == 3, 60, "the third run")
    client.jobs.remove("pressed/report")


def test_labs_own_create_notebook_job_makes_a_run_and_a_job_of_the_platform(page, platform, client):
    folder = workspace(platform) / "byform"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "cellwork.toml").write_text('[project]\nname = "byform"\n')
    (folder / "sums.ipynb").write_text(json.dumps(a_notebook("print(1 + 1)")))
    open_notebook(page, platform, "byform/sums.ipynb")
    page.click("[data-command='scheduling:create-from-notebook']")
    name = page.locator(".jp-create-job-form input[name='jobName']")
    name.wait_for()
    page.locator(".jp-create-job-form em:has-text('Loading')").wait_for(state="detached")  # then the form begins anew
    name.fill("Sums")
    page.locator("button:text-is('Create')").last.click()
    wait_for(lambda: any(client.jobs.runs(project="byform")), 90, "the run")
    run = next(iter(client.jobs.runs(project="byform")))
    assert client.jobs.wait(run.id, timeout=180).state == "succeeded"
    assert (run.notebook, run.labels["jupyter.name"]) == ("sums.ipynb", '"Sums"')
