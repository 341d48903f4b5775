"""Labels by name: declared beside features, found with owner and consumers, taken by `dataset.build`, of any rows and as known last."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from click.testing import CliRunner
from feature_world import DAY, definitions, flights, work
from raw_platform import serving, state_in

from cellwork import client as clients
from cellwork import project
from cellwork.cli import main
from cellwork.client import Client
from cellwork.data import dataset
from cellwork.errors import BadInput
from cellwork.features import define
from cellwork.wire.features import Definitions, Label, Prepared
from cellwork_hub.platform import batches, dataset_builds, datasets, features, search
from cellwork_hub.platform.state import State

ROUTERS = [batches, features, datasets, dataset_builds, search]
ASKED: dict[str, Any] = {
    "observations": "departures",
    "features": ["late"],
    "start": DAY - timedelta(hours=1),
    "end": DAY + timedelta(days=1),
}
COMPLAINTS = Label(
    name="complained", rows="complaints", id="flight", value="complained", known="written", owner="grace",
    description="Did somebody complain?", tags={"team": "service"},
)  # fmt: skip


def labelled() -> Definitions:
    known = definitions()
    known.prepared.append(Prepared(name="complaints", sources=["letters"], sql="SELECT * FROM letters"))
    own = Label(name="delayed", rows="landed", id="id", value="delay", known="landed", description="Minutes late.")
    known.labels = [COMPLAINTS, own]
    return known


def letters() -> pl.DataFrame:
    """Of flight 1 a no that became a yes, of 2 a yes, of 3 one that is not known yet; and of a flight that nobody observed."""
    hour = timedelta(hours=1)
    rows = [
        (1, DAY + 30 * hour, 1.0),
        (1, DAY + 20 * hour, 0.0),
        (2, DAY + 9 * hour, 1.0),
        (3, None, 1.0),
        (999, DAY, 1.0),
    ]
    types = {"flight": pl.Int64, "written": pl.Datetime("us", "UTC"), "complained": pl.Float64}
    return pl.DataFrame(rows, types, orient="row")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    return state_in(tmp_path_factory.mktemp("labels"), ROUTERS, on_batch=(features.enqueue,))


@pytest.fixture(scope="module")
def address(state: State) -> Iterator[str]:
    with serving(state, ROUTERS) as url, Client(url, "author") as client:
        client.batches.ingest("air", "flights", flights(0), "d0")
        client.batches.ingest("air", "letters", letters(), "d0")
        client.features.apply(labelled())
        work(state)
        yield url


@pytest.fixture
def air(address: str, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setenv("CELLWORK_URL", address)
    monkeypatch.setenv("CELLWORK_TOKEN", "author")
    return clients.connect()


def test_a_label_of_other_rows_is_joined_by_id_as_it_was_known_last(air: Client) -> None:
    built = dataset.build("air/by-name", **ASKED, labels="complained")
    assert (built.record.label, built.record.label_name, built.labelled) == ("complained", "complained", 2)
    frame = built.frame()
    assert frame.height == 24
    assert frame["id"].to_list() == flights(0)["id"].to_list()
    assert dict(zip(frame["id"], frame["complained"], strict=True)) == {n: {1: 1.0, 2: 1.0}.get(n) for n in range(24)}
    assert built.y().to_list() == [1.0, 1.0]
    assert "delay" not in frame.columns
    letters_batch = next(batch.id for batch in air.batches.list("air", "letters"))
    assert letters_batch in built.record.batches


def test_a_label_of_the_same_rows_is_the_observations_own_by_another_name(air: Client) -> None:
    named, own = dataset.build("air/named", **ASKED, labels="delayed"), dataset.build("air/own", **ASKED)
    assert named.y().to_list() == own.y().to_list()
    assert named.id != own.id
    assert dataset.build("air/named", **ASKED, labels="delayed").id == named.id
    assert dataset.build("air/none", **ASKED, labels=False).record.label == ""


def test_a_label_that_is_not_there_is_refused_with_the_near_miss(air: Client) -> None:
    with pytest.raises(BadInput, match="did you mean 'complained'"):
        dataset.build("air/wrong", **ASKED, labels="complaind")


def test_a_label_may_not_bear_the_name_of_a_column_that_a_model_gets(air: Client, state: State) -> None:
    clash = labelled()
    clash.project, clash.labels = "clash", [msgspec.structs.replace(COMPLAINTS, name="origin")]
    for name, frame in (("flights", flights(0)), ("letters", letters())):
        air.batches.ingest("clash", name, frame, "d0")
    air.features.apply(clash)
    work(state)
    with pytest.raises(BadInput, match="rename one of both"):
        dataset.build("clash/wrong", **{**ASKED, "features": []}, labels="origin")


def test_it_is_found_with_owner_and_description_and_says_who_uses_it(air: Client) -> None:
    dataset.build("air/consumer", **ASKED, labels="complained")
    for words in ("complained", "grace label", "service"):
        assert ("label", "complained") in [(each.kind, each.name) for each in air.search.find(words)]
    found = next(each for each in air.search.find("complained", kind="label") if each.name == "complained")
    assert (found.owner, found.description) == ("grace", "Did somebody complain?")
    assert "dataset:air/consumer" in found.used_by


def test_what_it_needs_is_checked_when_it_is_applied(air: Client) -> None:
    for change, said in (
        ({"rows": "complaint"}, "did you mean 'complaints'"),
        ({"value": "complaned"}, "complained"),
        ({"known": "complained"}, "not a time with a zone"),
    ):
        wrong = labelled()
        wrong.labels[0] = msgspec.structs.replace(COMPLAINTS, **change)
        with pytest.raises(BadInput, match=said):
            air.features.apply(wrong)


def test_a_changed_label_is_a_change_of_the_definitions(air: Client) -> None:
    changed = labelled()
    changed.labels[0] = msgspec.structs.replace(COMPLAINTS, description="Did anybody complain?")
    assert air.features.apply(changed).changed == ["label:complained"]
    assert air.features.apply(labelled()).changed == ["label:complained"]
    assert air.features.apply(labelled()).changed == []


def test_the_commands_list_it_and_build_with_it(air: Client) -> None:
    listed = CliRunner().invoke(main, ["feature", "list", "--project", "air"])
    assert "complained" in listed.output
    assert "grace" in listed.output
    said = json.loads(CliRunner().invoke(main, ["feature", "list", "--project", "air", "--json"]).output)
    assert [each["name"] for each in said if each["kind"] == "label"] == ["complained", "delayed"]
    command = ["dataset", "build", "air/typed", "--observations", "departures", "--feature", "late", "--label", "complained",
               "--start", "2013-05-31", "--end", "2013-06-02", "--json"]  # fmt: skip
    assert json.loads(CliRunner().invoke(main, command).stdout)["label_name"] == "complained"


def test_a_definitions_file_declares_it(tmp_path: Path) -> None:
    (tmp_path / "labels.py").write_text(
        "from cellwork.features import Label, Prepared\n"
        "from cellwork.data import RawDataset\n"
        "letters = RawDataset(name='letters')\n"
        "rows = Prepared(name='complaints', sources=['letters'], sql='SELECT * FROM letters')\n"
        "complained = Label(name='complained', rows='complaints', id='flight', value='complained', known='written', owner='grace')\n"
    )
    (tmp_path / "cellwork.toml").write_text('[project]\nname = "air"\n[features]\npaths = ["labels.py"]\n')
    _, known = define.load(project.find(tmp_path))
    assert [(label.name, label.owner) for label in known.labels] == [("complained", "grace")]
