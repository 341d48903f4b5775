"""The feature browser in Lab, in Chromium: found, looked at, picked, joined by the cell that comes out of it, and seen again by a second profile.

What a click did is asserted through the HTTP API, never by what the page claims.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from browsing import SLOW, logged_in, saved
from lab import failure, open_notebook, run_all, workspace
from running import Platform, wait_for

from cellwork.client import Client
from cellwork.features import joins
from cellwork.wire.datasets import DatasetRequest
from cellwork.wire.features import (
    Aggregate,
    Definitions,
    Entity,
    FeatureService,
    Field,
    Observations,
    Prepared,
    Rolling,
    View,
)

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.timeout(900)
DAY, HOUR = datetime(2013, 6, 1, tzinfo=UTC), timedelta(hours=1)
PROJECT = "browse"
SOURCE = f"""from datetime import UTC, datetime, timedelta
import polars as pl
from cellwork.ui.features import FeatureBrowser

day = datetime(2013, 6, 1, tzinfo=UTC)
trips = pl.DataFrame({{"origin": ["JFK", "LGA", "XXX"], "when": [day + timedelta(hours=h) for h in (9, 12, 12)]}})
FeatureBrowser("{PROJECT}", rows="trips", at="when")"""
SENT = f"""from cellwork import data

_ = data.ingest("{PROJECT}/joined", trips, partition="from-the-cell")"""


@pytest.fixture(scope="module")
def client(platform: Platform) -> Client:
    """A client of a platform that has a small project with features, one of which a dataset uses."""
    client = Client(platform.url, platform.user_token("inherit"))
    hours = range(24)
    flights = pl.DataFrame(
        {"id": list(hours), "origin": ["JFK" if h % 2 else "LGA" for h in hours], "planned": [DAY + h * HOUR for h in hours],
         "delay": [10.0 + h for h in hours]}, schema_overrides={"planned": pl.Datetime("us", "UTC")},
    )  # fmt: skip
    client.batches.ingest(PROJECT, "flights", flights, "day0")
    client.features.apply(definitions())
    client.features.wait(PROJECT)
    client.datasets.build(request("first"))
    return client


def definitions() -> Definitions:
    rolling = Rolling(
        rows="landed", event="planned", known="landed", window="6h", every="1h",
        aggregates={"flights": Aggregate(function="count"), "delay": Aggregate(function="mean", column="delay")},
    )  # fmt: skip
    sql = "SELECT *, planned + INTERVAL 2 HOUR AS landed, planned - INTERVAL 1 HOUR AS asked FROM flights"
    return Definitions(
        project=PROJECT,
        prepared=[Prepared(name="landed", sources=["flights"], sql=sql)],
        entities=[Entity(name="airport", join_keys=["origin"])],
        views=[
            View(
                name="late", entities=["airport"], pipeline=rolling, owner="grace", description="How late an airport is",
                fields=[Field(name="flights", type="Int64"), Field(name="delay", type="Float64", description="Mean, in minutes")],
            )
        ],
        services=[FeatureService(name="all", features=["late"])],
        observations=[
            Observations(name="departures", rows="landed", id="id", at="asked", keys={"origin": "origin"}, inputs=[], label="delay", label_known="landed")
        ],
    )  # fmt: skip


def request(name: str) -> DatasetRequest:
    return DatasetRequest(
        project=PROJECT, name=name, observations="departures", features=["late:delay"], start=DAY - HOUR, end=DAY + 24 * HOUR
    )  # fmt: skip


def notebook(*sources: str) -> dict[str, Any]:
    cells = [
        {"cell_type": "code", "id": f"cell-{n}", "metadata": {}, "outputs": [], "execution_count": None, "source": source}
        for n, source in enumerate(sources)
    ]  # fmt: skip
    return {
        "cells": cells,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def listed(page: Page) -> list[str]:
    return page.locator(".widget-select select option").all_inner_texts()


def look_for(page: Page, words: str, wanted: list[str]) -> None:
    """Type `words` and wait until the list is what is `wanted`."""
    page.fill("input[placeholder^='name, description']", words)
    page.keyboard.press("Enter")
    end = time.monotonic() + SLOW / 1000
    while listed(page) != wanted:
        assert time.monotonic() < end, f"{words!r} lists {listed(page)}, the API says {wanted}"
        page.wait_for_timeout(200)


def found(client: Client, words: str) -> list[str]:
    """Return what the API finds, as the widget lists it: of this project first."""
    there = [each for each in client.search.find(words) if each.kind in ("view", "feature", "label")]
    return [f"{each.project}/{each.name}" for each in sorted(there, key=lambda each: each.project != PROJECT)]


def test_what_is_found_and_picked_becomes_a_cell_that_a_second_profile_sees(
    platform: Platform, client: Client, chromium: str, tmp_path: Path
) -> None:
    folder = workspace(platform) / PROJECT
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cellwork.toml").write_text(f'[project]\nname = "{PROJECT}"\n')
    (folder / "browse.ipynb").write_text(json.dumps(notebook(SOURCE, "pass")))
    with logged_in(platform, chromium, tmp_path / "one") as page:
        open_notebook(page, platform, f"{PROJECT}/browse.ipynb")
        run_all(page, page.locator(".widget-select select option").count)
        code = picked(page, client)
        assert code == "%%features trips --at when\nlate:delay\nlate:flights"
        path = f"{PROJECT}/joined.ipynb"  # another one: Lab may be saving the first
        (folder / "joined.ipynb").write_text(json.dumps(notebook(SOURCE, code, SENT)))
        open_notebook(page, platform, path)
        run_all(page, lambda: sent(client) or failure(page))
        assert failure(page) == ""
        page.click(".jp-NotebookPanel-toolbar [data-command='docmanager:save']")
        wait_for(lambda: has_outputs(folder / "joined.ipynb"), SLOW / 1000, "the notebook, saved with its outputs")
    check_joined(client)
    seen_again(platform, client, chromium, tmp_path / "two", path, code)


def picked(page: Page, client: Client) -> str:
    """Search, look at what is there, pick two features; returns the cell."""
    for words in ("grace", "late delay"):
        look_for(page, words, found(client, words))
    page.select_option(".widget-select select", label=f"{PROJECT}/late:delay")
    about = client.features.describe(PROJECT, "late")
    page.wait_for_selector(f"h4:text-is('{PROJECT}/late:delay')")
    details = page.locator(".widget-html-content:has(h4)").inner_text()
    entry = next(each for each in client.search.find("late delay") if each.name == "late:delay")
    for said in (entry.owner, entry.description, f"{about.rows:,} in {about.batches} batches", *entry.used_by):
        assert said in details, said
    assert f"dataset:{PROJECT}/first" in entry.used_by
    assert page.locator(".widget-html-content:has(h4) svg[role='img']").count() == 1
    delay = next(column for column in about.columns if column.name == "delay")
    assert page.locator(f".widget-html-content svg[aria-label^='from {float(delay.min):.4g} to']").count() == 1
    page.click("button:has-text('Pick')")
    look_for(page, "late flights", found(client, "late flights"))
    page.select_option(".widget-select select", label=f"{PROJECT}/late:flights")
    page.wait_for_selector(f"h4:text-is('{PROJECT}/late:flights')")
    page.click("button:has-text('Pick')")
    page.wait_for_function(
        "[...document.querySelectorAll('.widget-textarea textarea')].some(t => t.value.includes('late:flights'))"
    )
    return page.locator(".widget-textarea textarea").input_value()


def sent(client: Client) -> bool:
    return (
        any(batch.partition == "from-the-cell" for batch in client.batches.list(PROJECT, "joined"))
        if has(client)
        else False
    )


def has(client: Client) -> bool:
    return any(each.name == "joined" for each in client.batches.declared(PROJECT))


def has_outputs(path: Path) -> bool:
    cells = saved(path).get("cells", [])
    return bool(cells) and all(cell["outputs"] for cell in cells[:2])


def check_joined(client: Client) -> None:
    """What the cell joined, and then sent, is what the API joins."""
    trips = pl.DataFrame({"origin": ["JFK", "LGA", "XXX"], "when": [DAY + h * HOUR for h in (9, 12, 12)]})
    wanted = joins.join(trips, ["late:delay", "late:flights"], at="when", project=PROJECT, client=client).frame
    there = client.batches.rows(PROJECT, "joined")
    columns = ["origin", "late__delay", "late__flights"]
    assert there.select(columns).rows() == wanted.select(columns).rows()
    assert there["late__flights"][0] > 0
    assert there["late__flights"][2] is None


def seen_again(platform: Platform, client: Client, chromium: str, folder: Path, path: str, code: str) -> None:
    """A second profile sees the cell with its report, and in the browser who uses the feature by now."""
    client.datasets.build(request("second"))
    with logged_in(platform, chromium, folder) as page:
        open_notebook(page, platform, path)
        for line in code.splitlines():
            page.wait_for_selector(f".jp-CodeCell .cm-line:has-text('{line}')", state="attached")
        report = page.locator(".jp-OutputArea-output table th:text-is('nothing known yet')")
        report.first.wait_for(state="attached")
        assert report.count() == 1
        run_all(page, page.locator(".widget-select select option").count)
        look_for(page, "late delay", found(client, "late delay"))
        page.select_option(".widget-select select", label=f"{PROJECT}/late:delay")
        page.wait_for_selector(f".widget-html-content:has(h4):has-text('dataset:{PROJECT}/second')")
    entry = next(each for each in client.search.find("late delay") if each.name == "late:delay")
    assert f"dataset:{PROJECT}/second" in entry.used_by
