"""The panels of watching in Lab: what a press did is read from the platform, never from the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from browsing import logged_in
from lab import a_notebook, failure, open_notebook, run_all, workspace
from running import Platform, wait_for

from cellwork.client import Client
from cellwork.wire.monitors import Monitor

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.timeout(900)  # the first test waits for the tour
ENDPOINT = "shop/tardy"


@pytest.fixture(scope="module")
def client(platform: Platform) -> Client:
    return Client(platform.url, platform.user_token("inherit"))


@pytest.fixture(scope="module")
def page(platform: Platform, toured: object, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with logged_in(platform, chromium, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def monitors(client: Client) -> Iterator[list[Monitor]]:
    """The shop's own monitors, which are there again afterwards."""
    before = [each.monitor for each in client.monitors.list("shop")]
    yield before
    client.monitors.apply("shop", before)


def show(page: Page, platform: Platform, name: str, source: str, selector: str) -> None:
    folder = workspace(platform) / "watching"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.ipynb").write_text(json.dumps(a_notebook(source)))
    open_notebook(page, platform, f"watching/{name}.ipynb")
    run_all(page, lambda: page.locator(selector).count() or failure(page))
    assert failure(page) == ""


def test_quality_and_drift_are_what_the_platform_says(page, platform, client):
    shutil.rmtree(workspace(platform) / "watching", ignore_errors=True)
    quality, drift = client.outcomes.quality(ENDPOINT), client.monitors.drift(ENDPOINT)
    source = f"from cellwork.ui.watch import DriftPanel, QualityPanel\\nimport ipywidgets\\nipywidgets.VBox([QualityPanel({ENDPOINT!r}), DriftPanel({ENDPOINT!r})])".replace("\\n", "\n")  # fmt: skip
    show(page, platform, "panels", source, ".cw-note:has-text('columns drifted')")
    assert page.locator(f".cw-tile b:text-is('{quality.auc.value:.3f}')").count()
    assert page.locator(f"svg[aria-label='ROC AUC of {ENDPOINT} by day']").count()
    assert f"beside {drift.reference}" in page.locator(".cw-note:has-text('columns drifted')").inner_text()
    page.get_by_label("Known at").fill("2000-01-01T00:00:00Z")
    page.keyboard.press("Tab")
    page.locator("button:has-text('Refresh')").first.click()
    page.wait_for_selector(".cw-tile:has(small:text-is('outcomes')) b:text-is('0')")


def test_a_monitor_is_made_looks_and_is_silenced_by_presses(page, platform, client, monitors):
    show(
        page,
        platform,
        "monitors",
        "from cellwork.ui.watch import MonitorPanel\nMonitorPanel('shop')",
        "button:has-text('Look now')",
    )
    page.get_by_label("Name").fill("pressed")
    page.get_by_label("Endpoint").fill("tardy")
    page.get_by_label("Window").fill("30d")
    page.keyboard.press("Tab")
    page.click("button:has-text('Watch')")

    def made() -> object:
        return next((each for each in client.monitors.list("shop") if each.monitor.name == "pressed"), None)

    found = wait_for(made, 60, "the monitor")
    assert (found.monitor.kind, found.monitor.endpoint, found.monitor.window) == ("drift", "tardy", "30d")
    assert {each.monitor.name for each in client.monitors.list("shop")} == {"pressed", *(m.name for m in monitors)}
    page.get_by_label("Monitor", exact=True).select_option("pressed")
    page.click("button:has-text('Look now')")
    wait_for(lambda: made().checked, 60, "its look")
    page.click("button:has-text('Silence a day')")
    page.wait_for_selector("text=pressed is silent until")
    assert made().silenced_until


def test_a_press_says_that_a_prediction_was_wrong_and_the_truth_is_an_outcome(page, platform, client):
    prediction = client.endpoints.predictions(ENDPOINT, limit=10)[3]
    source = f"from cellwork.ui.watch import FeedbackButton\nFeedbackButton({prediction.id!r})"
    show(page, platform, "feedback", source, "button:has-text('This was wrong')")
    page.get_by_label("True value").fill("1")
    page.get_by_label("Why").fill("seen with my own eyes")
    page.keyboard.press("Tab")
    page.click("button:has-text('This was wrong')")
    said = wait_for(
        lambda: [f for f in client.outcomes.feedback(ENDPOINT) if f.prediction == prediction.id], 60, "the word"
    )
    assert (said[0].wrong, said[0].value, said[0].comment) == (True, 1.0, "seen with my own eyes")
    found = client.outcomes
    wait_for(lambda: "feedback" in {o.source for o in found.list("", prediction=prediction.id)}, 60, "the outcome")
