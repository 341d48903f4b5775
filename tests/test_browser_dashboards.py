"""The dashboards in Chromium, on the shop's tour: what a page shows is what the API says, and nothing is asked of anybody else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from browsing import asked_for, logged_in
from running import Platform, wait_for

from cellwork.client import Client

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


def show(page: Page, platform: Platform, name: str, query: str = "") -> None:
    """Open a dashboard; what is computed for the first time may take longer than a page waits for it, which says to reload."""

    def whole() -> bool:
        page.goto(f"{platform.url}/services/dashboards/voila/render/{name}.ipynb{query}")
        page.wait_for_selector(f"#cellwork-{name}")
        return not page.locator(".cw-stale:has-text('reload in a moment')").count()

    wait_for(whole, 180, f"the whole of {name}")


def section(page: Page, title: str) -> str:
    return page.locator(f".cw section:has(h2:text-is('{title}'))").inner_text()


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("overview", ""), ("model", f"?endpoint={ENDPOINT}"), ("features", "?project=shop&view=lately"), ("jobs", "?project=shop"), ("why", ""),
    ],
)  # fmt: skip
def test_a_dashboard_stands_whole_and_asks_for_nothing_from_elsewhere(page, platform, name, query):
    """Every request that a page makes is listed, whether it is answered, refused or blocked before it leaves."""
    asked = asked_for(page)
    show(page, platform, name, query)
    page.wait_for_load_state("networkidle")
    assert page.locator(".cw section").count() >= 2
    assert page.locator(".cw .cw-stale").all_inner_texts() == []
    assert len(asked) > 3
    assert [url for url in asked if not url.startswith((platform.url, "data:", "blob:"))] == []
    assert page.locator(".cw header nav a[aria-current]").inner_text().lower() == name.rstrip("s") or name in ("features", "jobs")  # fmt: skip
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, "the page is wider than the window"


def test_the_model_page_shows_quality_drift_service_versions_and_the_card(page, platform, client):
    def figure(name: str) -> str:
        return page.locator(f".cw-tile:has(small:text-is('{name}')) b").inner_text()

    def as_told() -> bool:
        """What a page shows may be some seconds old."""
        show(page, platform, "model", f"?endpoint={ENDPOINT}")
        quality, drift = client.outcomes.quality(ENDPOINT), client.monitors.drift_by_day(ENDPOINT)
        heat = page.locator("svg[aria-label='PSI of features by day'] rect").count()
        told = (f"{quality.predictions:,}", f"{quality.auc.value:.3f}", len(drift) * len({c.column for d in drift for c in d.columns}))  # fmt: skip
        return (figure("predictions"), figure("ROC AUC"), heat) == told

    wait_for(as_told, 180, "a page that shows what the platform says")
    live = client.endpoints.get(ENDPOINT).routes.live
    assert page.locator("svg[aria-label^='ROC AUC of shop/tardy by day'] polyline").count() >= 1
    card = page.locator(
        "section:has(h2:text-is('Card of what answers')) summary"
    ).first  # it has folded parts of its own
    assert f"version {live.version}" in card.inner_text()
    card.click()
    page.wait_for_selector("article h2:text-is('Environment')")
    assert "tardy-drift" in section(page, "Monitors")
    assert str(live.version) in section(page, "Versions")
    assert "data as of" in section(page, "Quality by day")


def test_a_link_of_the_latest_predictions_leads_to_its_raw_batches_and_back_to_bits(page, platform, client):
    shown = next(p for p in reversed(client.endpoints.predictions(ENDPOINT, limit=10_000)) if p.feature_batches)
    show(page, platform, "why", f"?subject={shown.id}")
    assert page.locator(f".cw-tile:has(small:text-is('score')) b:text-is('{shown.score:.4f}')").count()
    trail = section(page, "Where it comes from")
    for batch in shown.feature_batches.values():
        assert batch in trail
    assert shown.deployment in trail
    page.click("text=Recompute the features")
    page.wait_for_selector("section:has(h2:text-is('Made anew from the raw batches')) th:text-is('bit for bit')")
    again = section(page, "Made anew from the raw batches")
    assert again.count("the same") == len(shown.feature_batches)
    page.click("text=what was made of it")
    page.wait_for_selector("h2:text-is('What was made of it')")


def test_the_latest_predictions_of_a_model_are_links_to_their_trails(page, platform):
    show(page, platform, "model", f"?endpoint={ENDPOINT}")
    page.locator("section:has(h2:text-is('Latest predictions')) a").first.click()
    page.wait_for_selector("h2:text-is('Where it comes from')")
    assert re.search(r"subject=pred_\w{26}", page.url)


def test_a_feature_view_shows_its_columns_as_the_platform_describes_them(page, platform, client):
    described = client.features.describe("shop", "lately")
    show(page, platform, "features", "?project=shop&view=lately")
    assert page.locator(f".cw-tile:has(small:text-is('rows')) b:text-is('{described.rows:,}')").count()
    shown = section(page, "Columns")
    assert all(column.name in shown for column in described.columns)
    page.click(".cw-pick a:text-is('crew')")
    page.wait_for_selector("h1:text-is('shop: crew')")


def test_jobs_and_runs_are_those_of_the_jobs_service(page, platform, client):
    show(page, platform, "jobs", "?project=shop")
    shown = section(page, "Jobs")
    assert all(job.name in shown for job in client.jobs.list("shop"))
    page.click("section:has(h2:text-is('Jobs')) a:text-is('score')")
    page.wait_for_selector("h1:text-is('shop: score')")
    runs = list(client.jobs.runs(job="shop/score"))
    assert page.locator("section:has(h2:text-is('Newest runs')) tbody tr").count() == min(40, len(runs))


def test_a_dashboard_of_an_endpoint_that_is_not_there_says_which_are(page, platform):
    show(page, platform, "model", "?endpoint=shop/<b>nobody")
    page.wait_for_selector("h2:has-text('No endpoint shop/<b>nobody')")
    page.wait_for_selector(f"text={ENDPOINT}")


def test_the_overview_leads_to_each_endpoint(page, platform, client):
    show(page, platform, "overview")
    page.locator(f"section:has(h2:text-is('{ENDPOINT}')) a:text-is('open')").click()
    page.wait_for_selector(f"h1:text-is('{ENDPOINT}')")
