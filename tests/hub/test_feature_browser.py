"""The feature browser on a real platform service: what it lists, shows, picks, and the cell that comes out of it, which is then run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import polars as pl
import pytest
from feature_world import DAY, definitions, flights, new_state, service, work
from IPython.core.interactiveshell import InteractiveShell

from cellwork.client import Client
from cellwork.ui.features import FeatureBrowser
from cellwork_jupyter import kernel


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    state = new_state(tmp_path_factory.mktemp("browser") / "home")
    with service(state) as connected:
        connected.batches.ingest("air", "flights", flights(0), "day0")
        wanted = definitions()
        wanted.views[0].owner, wanted.views[0].description = "grace", "How late <b>flights</b> are at an airport"
        connected.features.apply(wanted)
        work(state)
        yield connected


def test_it_opens_with_all_of_its_project_and_no_complaint(client):
    browser = FeatureBrowser("air", client=client)
    labels = [label for label, _ in browser.list.options]
    assert {"air/late", "air/late:flights", "air/plan", "air/departures:delay"} <= set(labels)
    assert browser._message.value == ""
    browser.list.value = labels.index("air/departures:delay")
    assert browser.pick_button.disabled
    browser.list.value = labels.index("air/late")
    assert not browser.pick_button.disabled


def test_words_find_views_and_what_is_chosen_is_shown_with_owner_and_spread(client):
    browser = FeatureBrowser("air", client=client)
    browser.words.value = "grace"
    labels = [label for label, _ in browser.list.options]
    assert "air/late" in labels
    browser.list.value = labels.index("air/late")
    shown = browser._details.value
    assert "How late &lt;b&gt;flights&lt;/b&gt;" in shown
    assert "grace" in shown
    assert "<svg" in shown
    assert "rows" in shown


def test_what_is_chosen_stays_chosen_while_it_is_found(client):
    browser = FeatureBrowser("air", client=client)
    browser.list.value = [label for label, _ in browser.list.options].index("air/late:flights")
    browser.words.value = "late"
    assert browser.list.label == "air/late:flights"
    assert "<h4>air/late:flights</h4>" in browser._details.value
    browser.words.value = "plan"
    assert browser.list.label != "air/late:flights"


def test_nothing_found_is_said_and_nothing_can_be_picked(client):
    browser = FeatureBrowser("air", client=client)
    browser.words.value = "zebra"
    assert browser.list.options == ()
    assert browser.pick_button.disabled
    assert browser._details.value == "nothing found"


def test_what_is_picked_becomes_a_cell_that_joins_it(client, monkeypatch):
    browser = FeatureBrowser("air", rows="trips", at="when", client=client)
    browser.words.value = "late"
    labels = [label for label, _ in browser.list.options]
    for name in ("air/late:flights", "air/late:delay", "air/late:flights"):
        browser.list.value = labels.index(name)
        browser.pick_button.click()
    assert browser.code.value == "%%features trips --at when\nlate:flights\nlate:delay"
    monkeypatch.setenv("CELLWORK_URL", client.connection.url)
    monkeypatch.setenv("CELLWORK_TOKEN", "token")
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    kernel.load(shell)
    when = [DAY + timedelta(hours=20)] * 2
    shell.user_ns["trips"] = pl.DataFrame({"origin": ["JFK", "LGA"], "when": when})
    line, _, body = browser.code.value.partition("\n")
    shell.run_cell_magic("features", line.removeprefix("%%features ") + " --project air", body)
    kernel.unload(shell)
    InteractiveShell.clear_instance()
    assert shell.user_ns["trips"]["late__flights"].null_count() == 0
    browser.clear_button.click()
    assert (browser.code.value, browser.picked) == ("", [])


def test_an_error_is_shown_in_the_words_of_the_service(client):
    browser = FeatureBrowser("air", client=Client("http://127.0.0.1:1", "token"))
    assert "does not answer" in browser._message.value
