"""The whole of watching, played through on a project of its own, in a real browser: new days go wrong, the dashboard shows it, an alert
starts the retraining, the model is replaced, and every old prediction still leads to its raw batches, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import shop_world
from browsing import logged_in
from running import Platform, wait_for

from cellwork import clock, lineage
from cellwork.cli import tour as tours
from cellwork.cli.tour import Tour
from cellwork.client import Client
from cellwork.jobs import schedule
from cellwork.wire.endpoints import Deploy, Prediction, Request, Row
from cellwork.wire.jobs import Run
from cellwork.wire.monitors import Alert, Monitor
from cellwork.wire.outcomes import Outcome

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2400)]
PROJECT, ENDPOINT = "kiosk", "kiosk/tardy"
BAD_DAY = datetime(2024, 5, 20, tzinfo=UTC)
ROWS = 300


@pytest.fixture(scope="module")
def client(platform: Platform) -> Client:
    return Client(platform.url, platform.user_token("inherit"))


@pytest.fixture(scope="module")
def tour(platform: Platform, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Tour:
    """A project of its own, up to the days that are scored as they arrive; its retraining waits for an alert."""
    folder = tmp_path_factory.mktemp("kiosk")
    made = shop_world.tour(folder, PROJECT)
    for step in tours.steps(made, client)[:6]:
        step.run(lambda _: None)
    text = shop_world.schedule("retrain", PROJECT)
    assert shop_world.RETRAINS in text
    path = made.project.folder / "retrain_on_alert.yaml"
    path.write_text(
        text.replace(shop_world.RETRAINS, "event: {name: alert.raised, match: {severity: critical, monitor: worse}}")
    )
    client.jobs.ensure(schedule.read(path))
    return made


@pytest.fixture(scope="module")
def page(platform: Platform, tour: Tour, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with logged_in(platform, chromium, tmp_path_factory.mktemp("profile")) as page:
        yield page


def show(page: Page, platform: Platform) -> None:
    page.goto(f"{platform.url}/services/dashboards/voila/render/model.ipynb?endpoint={ENDPOINT}")
    page.wait_for_selector("#cellwork-model")


def figure(page: Page, name: str) -> str:
    return page.locator(f".cw-tile:has(small:text-is('{name}')) b").inner_text()


def bad_day(client: Client, like: list[Prediction]) -> None:
    """Ask for orders ten times as heavy as ever, and send the opposite of what was predicted as their truth."""
    rows = [
        Row(features={**p.features, "weight": 10.0 * float(p.features["weight"] or 1) + 50}, observation=f"bad-{k}", at=BAD_DAY + timedelta(minutes=k))
        for k, p in enumerate(like)
    ]  # fmt: skip
    scores = [
        client.endpoints.predict(ENDPOINT, Request(rows=rows[at : at + 100])).outputs for at in range(0, len(rows), 100)
    ]
    told = [output.score for part in scores for output in part]
    middle = sorted(told)[len(told) // 2]
    client.outcomes.send(
        PROJECT,
        [Outcome(value=float(score <= middle), observed_at=clock.now(), endpoint=ENDPOINT, observation=f"bad-{k}") for k, score in enumerate(told)],
    )  # fmt: skip


def test_new_days_go_wrong_and_the_dashboard_the_alert_the_retraining_and_the_trail_all_say_so(
    page: Page, platform: Platform, client: Client, tour: Tour, tmp_path: Path
) -> None:
    log = client.endpoints.predictions(ENDPOINT, limit=10_000)
    old = next(p for p in log if p.batch_run and p.feature_batches)
    live = client.endpoints.get(ENDPOINT).routes.live.version
    assert old.version.version == live

    def as_told() -> bool:
        """What a page shows may be some seconds old."""
        show(page, platform)
        return figure(page, "outcomes") == f"{client.outcomes.quality(ENDPOINT).outcomes:,}"

    wait_for(as_told, 120, "the dashboard")
    outcomes, area = figure(page, "outcomes"), figure(page, "ROC AUC")

    watched = [
        Monitor(name="moved", kind="drift", endpoint="tardy", window="1d", every="10s", columns=["weight"]),
        Monitor(name="worse", kind="quality", endpoint="tardy", window="1d", every="10s", least=0.6, least_outcomes=100, severity="critical"),
    ]  # fmt: skip
    client.monitors.apply(PROJECT, watched)
    bad_day(client, [p for p in log if p.features.get("weight") is not None][:ROWS])

    alert = wait_for(lambda: _open(client, "worse"), 120, "the alert of quality")
    assert wait_for(lambda: _open(client, "moved"), 120, "the alert of drift").words.startswith(
        f"{ENDPOINT}@{live}: weight"
    )

    def moved() -> bool:
        return as_told() and figure(page, "outcomes") != outcomes and figure(page, "ROC AUC") != area

    wait_for(moved, 120, "quality on the dashboard")
    seen = page.locator("svg[aria-label='PSI of features by day'] g:has(title:has-text('weight, 2024-05-20'))")
    wait_for(lambda: (show(page, platform), seen.locator("circle").count())[1], 120, "drift on the dashboard")
    assert "worse" in page.locator(".cw section:has(h2:text-is('Alerts'))").inner_text()

    run = wait_for(lambda: _started(client), 120, "the retraining")
    assert run.cause.startswith("event ")
    events = {event.id: event for event in client.records.events(name="alert.raised")}
    assert events[run.cause.split()[1]].subject == alert.id
    ended = client.jobs.wait(run.id, timeout=900)
    assert ended.state == "succeeded", ended.attempts[-1].error

    newest = _replace(client, live)
    trail = lineage.why(client, old.id)
    assert client.endpoints.get(ENDPOINT).routes.live.version == newest != live
    assert f"{ENDPOINT}@{live}" in {step.id for step in trail.steps}
    assert set(old.feature_batches.values()) <= {step.id for step in trail.steps if step.kind == "batch"}
    again = client.monitors.recompute(PROJECT, old.id)
    assert again.same, again.views
    page.goto(f"{platform.url}/services/dashboards/voila/render/why.ipynb?subject={old.id}&again=1")
    page.wait_for_selector("h2:text-is('Made anew from the raw batches')")
    shown = page.locator(".cw").inner_text()
    assert all(batch in shown for batch in old.feature_batches.values())
    assert shown.count("the same") == len(old.feature_batches)


def _open(client: Client, monitor: str) -> Alert | None:
    return next((a for a in client.monitors.alerts(PROJECT, "open") if a.monitor == monitor), None)


def _started(client: Client) -> Run | None:
    return next(iter(client.jobs.runs(job=f"{PROJECT}/retrain_on_alert")), None)


def _replace(client: Client, live: int) -> int:
    """Let the version that the retraining made answer, if the gate did not let it by itself; return its number."""
    now = client.endpoints.get(ENDPOINT).routes.live.version
    if now != live:
        return now
    newest = live + 1
    for check in client.gate.check(ENDPOINT, newest).checks:
        if not check.passed:
            client.gate.override(ENDPOINT, newest, check.name, "to see that the trail holds")
    client.gate.promote(ENDPOINT, newest)
    return client.endpoints.deploy(ENDPOINT, Deploy(version=newest)).live.version
