"""What a person does, in Chromium: log in, open Lab, run the first tutorial, press the deploy button, look at the dashboard.

What a click did is asserted through the HTTP API, never by what the page claims.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from need import need
from running import Platform, wait_for

from cellwork.client import Client
from cellwork.errors import NotFound
from cellwork.wire.jobs import RunRequest

if TYPE_CHECKING:
    from playwright.sync_api import Page

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]  # fmt: skip
pytestmark = pytest.mark.timeout(900)  # the first test waits for the platform, another for the tour
SLOW = 90_000
"""Milliseconds that a busy machine may take for what is quick otherwise."""


@pytest.fixture(scope="module")
def client(platform: Platform) -> Client:
    return Client(platform.url, platform.user_token("inherit"))


@pytest.fixture(scope="module")
def page(platform: Platform, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of a fresh profile, logged in as a person does it."""
    need(_has_playwright(), "playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        profile = tmp_path_factory.mktemp("profile")
        browser = playwright.chromium.launch_persistent_context(profile, executable_path=chromium, args=FLAGS)
        browser.set_default_timeout(SLOW)
        page = browser.pages[0]
        page.goto(f"{platform.url}/hub/login")
        page.fill("#username_input", platform.user)
        page.fill("#password_input", platform.password)
        page.click("#login_submit")
        page.wait_for_url("**/user/**", timeout=SLOW)
        yield page
        browser.close()


def _has_playwright() -> bool:
    import importlib.util

    return importlib.util.find_spec("playwright") is not None


def workspace(platform: Platform) -> Path:
    return platform.home / "work"


def open_notebook(page: Page, platform: Platform, path: str) -> None:
    """Open a notebook in Lab and wait until its kernel is there."""
    page.goto(f"{platform.url}/user/{platform.user}/lab/workspaces/test-{time.time_ns()}/tree/{path}?reset")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
    page.wait_for_selector(".jp-NotebookPanel-toolbar [data-status='idle']", timeout=SLOW)


def run_all(page: Page, done: Callable[[], object], seconds: float = 120) -> None:
    """Press the menu's Run All Cells until `done`; while the kernel's session is being attached Lab drops cells without a word."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, (
            f"nothing came of Run All Cells in {seconds} s: {page.inner_text('.jp-Notebook')}"
        )
        if page.locator(".jp-Dialog").count():  # a slow server, a changed file: Lab asks, a person presses the button
            page.locator(".jp-Dialog button.jp-mod-accept").last.click()
        elif not any("*" in prompt for prompt in prompts(page)):
            page.click("#jp-MainMenu .lm-MenuBar-itemLabel:text-is('Run')")
            page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
        page.wait_for_timeout(1000)


def prompts(page: Page) -> list[str]:
    """Return what stands beside the code cells: their numbers, or a star while they wait and run."""
    return page.locator(".jp-CodeCell .jp-InputArea-prompt").all_inner_texts()


def failure(page: Page) -> str:
    """Return the errors that cells show, if any."""
    return "\n".join(page.locator(".jp-OutputArea-output[data-mime-type*='error']").all_inner_texts())


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
    (folder / "dask.ipynb").write_text(json.dumps(_notebook(source)))
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
    page.goto(f"{platform.url}/services/dashboards/")
    shown = "getComputedStyle(document.querySelector('i.fa'), '::before').content"
    page.wait_for_function(f"![undefined, 'none', 'normal'].includes({shown})")
    fonts = [status for url, status in asked.items() if url.endswith(".woff2")]
    assert fonts == [200]
    assert all(url.startswith(platform.url) for url in asked)


def test_a_press_on_the_deploy_button_deploys_and_another_page_shows_it_too(page, platform, client, toured):
    model = toured.tour.endpoint
    version = client.endpoints.get(model).routes.live.version
    folder = workspace(platform) / "press"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source = (
        f"from cellwork.ui.deploy import DeployButton\n\nDeployButton({model!r}, {version}, endpoint='shop/pressed')"
    )
    (folder / "press.ipynb").write_text(json.dumps(_notebook(source)))
    with pytest.raises(NotFound):
        client.endpoints.get("shop/pressed")

    open_notebook(page, platform, "press/press.ipynb")
    run_all(page, page.locator("text=passes the gate").count)
    page.click(f"button:has-text('Deploy version {version}')")

    def deployed() -> int:
        try:
            return client.endpoints.get("shop/pressed").routes.live.version
        except NotFound:
            return 0

    assert wait_for(deployed, 60, "the deployment") == version
    page.wait_for_selector(f"text=shop/pressed: version {version} answers, revision 1")

    open_notebook(page, platform, "press/press.ipynb")  # made again, the panel shows what is true now
    run_all(page, page.locator(f"button:has-text('Deploy version {version}')[disabled]").count)


def _notebook(source: str) -> dict[str, object]:
    cell = {
        "cell_type": "code",
        "id": "press-me",
        "metadata": {},
        "outputs": [],
        "execution_count": None,
        "source": source,
    }
    kernel = {"name": "python3", "display_name": "Python 3"}
    return {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def test_the_training_panel_searches_in_the_kernel_shows_the_leaderboard_and_keeps_what_is_done(page, platform):
    """What a press did is read from a file that the kernel writes, not from the page."""
    folder = workspace(platform) / "train"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source = """import pathlib, numpy, pandas
from cellwork.ui.train import TrainingPanel

X = pandas.DataFrame(numpy.random.default_rng(0).normal(size=(400, 3)), columns=list("abc"))
panel = TrainingPanel(X, (X.a > 0).astype(int), budget=600, name="pressed")
found = panel.live and panel.live.wait(60)
pathlib.Path("state.txt").write_text(f"{panel.live.state} {found.leaderboard.height}" if found else "none")
panel"""
    (folder / "train.ipynb").write_text(json.dumps(_notebook(source)))
    open_notebook(page, platform, "train/train.ipynb")
    run_all(page, page.locator("button:has-text('Start'):not([disabled])").count)
    assert (folder / "state.txt").read_text() == "none"
    page.click("button:has-text('Start')")
    page.wait_for_selector(".cellwork-leaderboard tbody tr >> nth=1", timeout=3 * SLOW)
    page.wait_for_selector("svg[aria-label*='best so far']")
    assert page.locator(".cellwork-leaderboard th:text-is('roc_auc')").count()
    page.click("button:has-text('Cancel')")
    page.wait_for_selector("text=candidates of", timeout=SLOW)

    (folder / "state.txt").unlink()
    run_all(page, (folder / "state.txt").exists)  # made again, the panel shows the search that ended
    state, rows = (folder / "state.txt").read_text().split()
    assert state == "cancelled"
    assert int(rows) >= 2
    page.wait_for_selector("button:has-text('Start'):not([disabled])")
    page.wait_for_selector("text=cancelled;")


def test_the_register_form_makes_a_version_asks_the_holdout_promotes_and_shows_the_card(page, platform, client, toured):
    """Three presses, and what each did is read from the platform."""
    folder = workspace(platform) / "register"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    trained = next(d for d in client.datasets.list("shop") if d.name == "training")
    source = f"""from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder
from cellwork.client import connect
from cellwork.models.columns import to_pandas
from cellwork.ui.register import RegisterForm

train = connect().datasets.get({trained.id!r})
rows = connect().datasets.frame(train.id).drop_nulls(train.label)
X = to_pandas(rows.select(*train.inputs, *train.features))
encode = make_column_transformer(
    (OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), make_column_selector(dtype_include=object)), remainder="passthrough"
)
model = make_pipeline(encode, HistGradientBoostingClassifier(max_iter=50)).fit(X, rows[train.label].cast(int).to_list())
RegisterForm(model, "pressed", dataset=train, X_example=X, baseline="day_of_week", holdout="spring")"""
    (folder / "register.ipynb").write_text(json.dumps(_notebook(source)))
    open_notebook(page, platform, "register/register.ipynb")
    run_all(page, page.locator("button:has-text('Register'):not([disabled])").count)
    assert page.locator("button:has-text('Evaluate')[disabled]").count() == 1
    page.fill("textarea[placeholder='what it is for']", "pressed in a browser")
    page.keyboard.press("Tab")
    page.click("button:has-text('Register')")
    page.click("button:has-text('Evaluate'):not([disabled])", timeout=2 * SLOW)
    page.wait_for_selector("figure svg[aria-label^='roc_auc: model']", timeout=2 * SLOW)
    card = client.evaluations.card("shop/pressed", 1)
    assert (card.description, card.origin["notebook"], len(card.evaluations)) == (
        "pressed in a browser",
        "register.ipynb",
        1,
    )
    assert card.questions[0].by_this_version == 1

    gate = client.gate.check("shop/pressed", 1)
    page.wait_for_selector(f"text=shop/pressed version 1 {'passes' if gate.passed else 'does not pass'} the gate")
    if not gate.passed:
        for check in gate.checks:
            if not check.passed:
                client.gate.override("shop/pressed", 1, check.name, "the holdout is small")
        open_notebook(page, platform, "register/register.ipynb")
        (folder / "register.ipynb").write_text(
            json.dumps(_notebook(source.replace('"pressed", dataset', '"shop/pressed", version=1, dataset')))
        )
        open_notebook(page, platform, "register/register.ipynb")
        run_all(page, page.locator("button:has-text('Promote'):not([disabled])").count)
    page.click("button:has-text('Promote'):not([disabled])")
    page.wait_for_selector("text=is the champion", timeout=SLOW)
    assert [move.version.version for move in client.gate.moves("shop/pressed")] == [1]
    page.click("text=Card")
    page.wait_for_selector("article h2:text-is('Environment')", state="attached")


def test_the_dashboard_shows_the_endpoint_and_nothing_leaves_for_elsewhere(page, platform, client, toured):
    """Voila's template names style sheets of a public host; the page's own policy stops them before they are asked for."""
    model, left = toured.tour.endpoint, []
    page.on("requestfinished", lambda request: left.append(request.url))
    page.on("requestfailed", lambda request: left.append(request.url) if request.failure != "csp" else None)
    page.goto(f"{platform.url}/services/dashboards/voila/render/overview.ipynb?endpoint={model}")
    page.wait_for_selector(f"h2:text-is('{model}')")
    page.wait_for_selector("text=Latest predictions")
    predictions = client.outcomes.quality(model).predictions
    page.wait_for_selector(f"td:has-text('predictions') b:text-is('{predictions:,}')")
    assert any(url.startswith(platform.url) for url in left)
    assert [url for url in left if not url.startswith((platform.url, "data:", "blob:"))] == []


def test_a_dashboard_of_an_endpoint_that_is_not_there_says_which_are(page, platform, toured):
    page.goto(f"{platform.url}/services/dashboards/voila/render/overview.ipynb?endpoint=shop/<b>nobody")
    page.wait_for_selector("h2:has-text('No endpoint shop/<b>nobody')")
    page.wait_for_selector(f"text={toured.tour.endpoint}")


def test_a_failed_run_is_opened_in_lab_at_its_kernel_and_goes_on_after_the_cell_is_mended(page, platform, client):
    """`run open` makes the page, Lab attaches to the run's own kernel, and `run resume` takes the page as it was mended."""
    sources = ["numbers = [3, 4]", "total = sum(number / 0 for number in numbers)", "print('the total is', total)"]
    notebook = {**_notebook(""), "cells": [{**_notebook(source)["cells"][0], "id": f"c{k}"} for k, source in enumerate(sources)]}  # fmt: skip
    started = client.jobs.start(RunRequest(project="shop", notebook="sums.ipynb", content=json.dumps(notebook)))
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
    wait_for(lambda: "sum(numbers)" in Path(opened["notebook"]).read_text(), 30, "the saved page")
    resumed = platform.command("run", "resume", run.id, "--follow")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "the total is 7" in client.jobs.notebook(run.id)


def test_a_form_in_a_notebook_makes_a_job_and_the_list_compares_its_runs(page, platform, client):
    """`%job` and `%runs` in Lab; jobs and runs are asked of the service, never of the page."""
    folder = workspace(platform) / "nightly"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "cellwork.toml").write_text('[project]\nname = "pressed"\n')
    report = _notebook("days: int = 3")
    report["cells"][0]["metadata"] = {"tags": ["parameters"]}  # type: ignore[index]
    (folder / "report.ipynb").write_text(json.dumps(report))
    (folder / "form.ipynb").write_text(json.dumps(_notebook("%job report.ipynb")))
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
    (folder / "list.ipynb").write_text(json.dumps(_notebook("%runs pressed/report")))
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
    (folder / "sums.ipynb").write_text(json.dumps(_notebook("print(1 + 1)")))
    open_notebook(page, platform, "byform/sums.ipynb")
    page.click("[data-command='scheduling:create-from-notebook']")
    page.locator(".jp-create-job-form input[name='jobName']").fill("Sums")
    page.locator("button:text-is('Create')").last.click()
    wait_for(lambda: any(client.jobs.runs(project="byform")), 90, "the run")
    run = next(iter(client.jobs.runs(project="byform")))
    assert client.jobs.wait(run.id, timeout=180).state == "succeeded"
    assert (run.notebook, run.labels["jupyter.name"]) == ("sums.ipynb", '"Sums"')
