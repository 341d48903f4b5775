"""The panels of a notebook, pressed in Chromium: search, evaluate, register, promote, deploy.

What a click did is asserted through the HTTP API, never by what the page claims.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from browsing import SLOW, logged_in
from lab import a_notebook, open_notebook, run_all, workspace
from running import Platform, wait_for

from cellwork.client import Client
from cellwork.errors import NotFound
from cellwork.models import versions

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.timeout(900)  # the first test waits for the tour


@pytest.fixture(scope="module")
def client(platform: Platform) -> Iterator[Client]:
    with Client(platform.url, platform.user_token("inherit")) as client:
        yield client


@pytest.fixture(scope="module")
def page(platform: Platform, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with logged_in(platform, chromium, tmp_path_factory.mktemp("profile")) as page:
        yield page


def test_a_press_on_the_deploy_button_deploys_and_another_page_shows_it_too(page, platform, client, toured):
    model = toured.tour.endpoint
    version = client.endpoints.get(model).routes.live.version
    folder = workspace(platform) / "press"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    source = (
        f"from cellwork.ui.deploy import DeployButton\n\nDeployButton({model!r}, {version}, endpoint='shop/pressed')"
    )
    (folder / "press.ipynb").write_text(json.dumps(a_notebook(source)))
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
    (folder / "train.ipynb").write_text(json.dumps(a_notebook(source)))
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
    (folder / "register.ipynb").write_text(json.dumps(a_notebook(source)))
    open_notebook(page, platform, "register/register.ipynb")
    run_all(page, page.locator("button:has-text('Register'):not([disabled])").count)
    page.wait_for_selector("button:has-text('Evaluate')[disabled]")
    page.fill("textarea[placeholder='what it is for']", "pressed in a browser")
    page.keyboard.press("Tab")
    page.dblclick("button:has-text('Register')")  # pressed twice, it acts once
    page.click("button:has-text('Evaluate'):not([disabled])", timeout=2 * SLOW)
    page.wait_for_selector("figure svg[aria-label^='roc_auc: model']", timeout=2 * SLOW)
    card = client.evaluations.card("shop/pressed", 1)
    assert (card.description, card.origin["notebook"], len(card.evaluations)) == (
        "pressed in a browser",
        "register.ipynb",
        1,
    )
    assert card.questions[0].by_this_version == 1
    assert [v.version for v in versions.of_project(client, "shop") if v.name == "shop/pressed"] == [1]

    gate = client.gate.check("shop/pressed", 1)
    verdict = page.locator(
        f"b:text-is('shop/pressed version 1 {'passes' if gate.passed else 'does not pass'} the gate')"
    )
    verdict.wait_for()
    if not gate.passed:
        print(verdict.locator("xpath=..").inner_text())
        for check in gate.checks:
            if not check.passed:
                client.gate.override("shop/pressed", 1, check.name, "the holdout is small")
        again = a_notebook(source.replace('"pressed", dataset', '"shop/pressed", version=1, dataset'))
        (folder / "promote.ipynb").write_text(json.dumps(again))
        open_notebook(page, platform, "register/promote.ipynb")
        run_all(page, page.locator("button:has-text('Promote'):not([disabled])").count)
    page.click("button:has-text('Promote'):not([disabled])")
    page.wait_for_selector("text=is the champion", timeout=SLOW)
    assert [move.version.version for move in client.gate.moves("shop/pressed")] == [1]
    assert not page.locator("article h2:text-is('Environment')").is_visible()
    page.click(".jupyter-widget-Collapse-header:has-text('Card')")
    page.wait_for_selector("article h2:text-is('Environment')", state="visible")


def test_the_evaluation_report_shows_figures_curves_segments_and_what_the_holdout_said(page, platform, client, toured):
    """Each tab is pressed; the drawings say in words what they show, and another column makes other segments."""
    folder = workspace(platform) / "evaluation"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    asked = next(iter(client.evaluations.list("shop/tardy")))
    source = f"""import numpy, polars
from cellwork.client import connect
from cellwork.ui.evaluation import EvaluationReport

random = numpy.random.default_rng(0)
y = (random.random(900) < 0.3).astype(int)
scores = numpy.clip(0.3 + 0.3 * (y - 0.3) + random.normal(0, 0.15, 900), 0.01, 0.99)
X = polars.DataFrame({{"depot": ["north", "south", "harbour"] * 300, "weight": random.normal(size=900)}})
asked = connect().evaluations.get({asked.id!r})
EvaluationReport(y, scores, X=X, others={{"rate": numpy.full(900, 0.3)}}, evaluation=asked)"""
    (folder / "evaluation.ipynb").write_text(json.dumps(a_notebook(source)))
    open_notebook(page, platform, "evaluation/evaluation.ipynb")
    run_all(page, page.locator("td:text-is('roc_auc')").count)
    page.wait_for_selector("text=roc_auc better than rate by +")
    assert not page.locator("svg[aria-label^='ROC: model']").is_visible()
    _tab(page, "Curves")
    for title in ("ROC: model roc_auc 0.", "Precision and recall: model pr_auc", "Calibration: model ece"):
        page.wait_for_selector(f"svg[aria-label^='{title}']", state="visible")
    _tab(page, "Segments")
    page.wait_for_selector(".cellwork-segments td:text-is('harbour')", state="visible")
    page.locator(".widget-dropdown select:visible").select_option("weight")
    page.wait_for_selector(".cellwork-segments td:text-is('harbour')", state="detached")
    assert page.locator(".cellwork-segments tbody tr").count() == 4
    _tab(page, "Sealed holdout")
    page.wait_for_selector(f"text=question {asked.question_no}", state="visible")


def _tab(page, title: str) -> None:
    page.click(f".jupyter-widgets .lm-TabBar-tab:has-text('{title}')")
