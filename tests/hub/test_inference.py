"""Endpoints as callers meet them: a real service, real models, what it answers, what it refuses, and both in the log."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import endpoint_house
import httpx
import msgspec
import pytest
import serving_world as world
from click.testing import CliRunner
from endpoint_house import NOW, row

from cellwork import errors
from cellwork.cli import main
from cellwork.client import Client
from cellwork.wire.endpoints import Deploy, Request, Row
from cellwork.wire.gate import Check


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> world.Folders:
    return endpoint_house.folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, folders: world.Folders) -> Iterator[Client]:
    """One service for the tests of this module; each changes endpoints of its own."""
    with endpoint_house.served(tmp_path_factory.mktemp("home"), folders) as client:
        yield client


@pytest.fixture(scope="module")
def steady(client: Client) -> str:
    """An endpoint with version 1 that no test changes."""
    return client.endpoints.deploy("shop/steady", Deploy(version=1, model=world.MODEL)).endpoint


def test_a_deployment_that_is_asked_for_again_while_it_is_made_is_one(client: Client) -> None:
    """A client whose time was up asks again: both answers tell of the one change, neither of a conflict."""
    wish = Deploy(version=2, model=world.MODEL)
    with ThreadPoolExecutor(2) as pool, Client(client.connection.url, "deployer", timeout=240) as patient:
        both = list(pool.map(lambda _: patient.endpoints.deploy("shop/twice", wish), range(2)))
    assert [(routes.revision, routes.live.version) for routes in both] == [(1, 2), (1, 2)]


def test_an_endpoint_answers_by_entity_id_and_each_answer_is_in_the_log(client: Client, steady: str) -> None:
    answer = client.endpoints.predict(steady, Request(rows=[row(), row(customer="unknown")]))
    known, unknown = answer.outputs
    assert known.defaults == []
    assert known.feature_age_s == pytest.approx((datetime.now(UTC) - NOW).total_seconds() + 3600, abs=60)
    assert unknown.defaults == ["customer__age"]
    logged = client.endpoints.prediction(known.id)
    assert logged.features == {"visits": 3.0, "plan": "free", "customer__age": 3.0}
    assert logged.feature_batches == {"customer": "bat_1"}
    assert (logged.version, logged.score, logged.caller, logged.route) == (
        answer.model,
        known.score,
        "deployer",
        "live",
    )


def test_a_deployment_keeps_what_was_checked(client: Client, steady: str) -> None:
    status = client.endpoints.get(steady)
    assert (status.routes.service, status.columns) == (["customer:age"], ["visits", "plan", "customer__age"])
    checks = client.endpoints.deployment(status.routes.deployment).checks
    kinds = [line.split(":")[0] for line in checks]
    assert kinds == ["gate evaluated", "loads", "schema", "finite", "parity", "latency"]


def test_a_value_older_than_the_ttl_is_not_used(client: Client, steady: str) -> None:
    at = NOW - timedelta(days=29)
    answer = client.endpoints.predict(steady, Request(rows=[row(customer="old"), row(customer="old", at=at)]))
    assert [output.defaults for output in answer.outputs] == [["customer__age"], []]


def test_a_row_that_names_its_time_does_not_get_a_later_value(client: Client, steady: str) -> None:
    answer = client.endpoints.predict(steady, Request(rows=[row(at=NOW - timedelta(hours=2))]))
    assert answer.outputs[0].defaults == ["customer__age"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Row(features={"visit": 1.0}), r"did you mean 'visits'\?"),
        (Row(features={"visits": "many"}), "is not a number"),
        (Row(features={"plan": 3}), "is not text"),
        (Row(entities={"customer": "c1"}), r"did you mean 'customer_id'\?"),
        (Row(entities={"customer_id": [1]}), "is not an id"),
    ],
)
def test_a_wrong_row_is_refused_with_its_value_and_the_way_out(
    client: Client, steady: str, wrong: Row, message: str
) -> None:
    with pytest.raises(errors.BadInput, match=message):
        client.endpoints.predict(steady, Request(rows=[wrong]))


def test_an_unknown_endpoint_is_not_found(client: Client) -> None:
    with pytest.raises(errors.NotFound, match="does not exist"):
        client.endpoints.predict("shop/nothing", Request(rows=[row()]))


def test_a_version_that_fails_the_gate_gets_no_traffic_and_the_refusal_is_recorded(
    client: Client, steady: str, folders: world.Folders
) -> None:
    folders.closed[3] = [
        Check(name="baseline", passed=False, text="0.60 is not above 0.61"),
        Check(name="origin", passed=False, text="no notebook"),
    ]
    with pytest.raises(errors.Refused, match=r"0\.60 is not above 0\.61.*no notebook"):
        client.endpoints.deploy(steady, Deploy(version=3, model=world.MODEL))
    del folders.closed[3]
    assert client.endpoints.get(steady).routes.live.version == 1
    refusal = client.records.audit(service="inference")[-1]
    assert (refusal.action, refusal.after) == ("endpoint.refused", f"{world.MODEL}@3")
    assert "no notebook" in refusal.reason


def test_a_version_whose_file_is_damaged_is_refused(client: Client, steady: str) -> None:
    with pytest.raises(errors.Refused, match="can't be loaded"):
        client.endpoints.deploy(steady, Deploy(version=4, model=world.MODEL))
    assert client.endpoints.predict(steady, Request(rows=[row()])).model.version == 1


def test_an_endpoint_takes_models_of_its_own_project_only(client: Client, steady: str) -> None:
    with pytest.raises(errors.Refused, match="another project"):
        client.endpoints.deploy("other/steady", Deploy(version=1, model=world.MODEL))


def test_a_thousand_rows_with_their_own_values_are_scored_and_logged_in_one_request(
    client: Client, steady: str
) -> None:
    rows = [
        Row(
            features={"visits": float(k), "plan": "paid", "customer__age": 2.0}, at=NOW, key=f"o{k}@1", observation=f"o{k}",
            feature_events={"customer": NOW}, feature_batches={"customer": "bat_2"},
        )
        for k in range(1000)
    ]  # fmt: skip
    client.endpoints.predict(steady, Request(rows=rows[:1]))
    answer = client.endpoints.predict(steady, Request(rows=rows, batch_run="run_1"))
    assert [output.repeated for output in answer.outputs] == [True] + [False] * 999
    logged = client.endpoints.prediction(answer.outputs[500].id)
    assert (logged.observation, logged.feature_batches, logged.batch_run) == ("o500", {"customer": "bat_2"}, "run_1")


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["plan", "visits"], "data": [["free", 3.0], ["paid", None]]}},
        {"dataframe_records": [{"plan": "free", "visits": 3.0}, {"plan": "paid"}]},
        {"inputs": {"plan": ["free", "paid"], "visits": [3.0, None]}},
        {"instances": [[3.0, "free", None], [None, "paid", None]]},
    ],
)
def test_mlflows_formats_come_through_the_second_door(client: Client, steady: str, body: dict[str, object]) -> None:
    rows = [Row(features={"plan": "free", "visits": 3.0}), Row(features={"plan": "paid"})]
    scores = [output.score for output in client.endpoints.predict(steady, Request(rows=rows)).outputs]
    answer = client.connection.call("inference", "POST", f"/invocations/{steady}", dict, body)
    assert answer["predictions"] == scores
    assert client.endpoints.prediction(answer["ids"][0]).score == scores[0]


@pytest.mark.parametrize(
    "body", [b"no", b"[]", b'{"inputs": {"a": [1], "b": [1, 2]}}', b'{"instances": [[1]]}', b'{"instances": 1}']
)
def test_a_malformed_invocation_is_the_callers_fault(client: Client, steady: str, body: bytes) -> None:
    answer = client.connection.http.post(f"/services/inference/invocations/{steady}", content=body)
    assert answer.status_code in (400, 422)


@pytest.mark.parametrize(
    "columns",
    [
        None, 5, "visits", {"a": 1}, [0, 1], ["visits", None], [["a", "visits"], ["a", "plan"]], [{"a": 1}, "plan"],
        ["visits", "visits"],
    ],
)  # fmt: skip
def test_columns_of_a_frame_that_are_no_names_are_the_callers_fault(
    client: Client, steady: str, columns: object
) -> None:
    """As pandas sends numbered columns, a MultiIndex and doubled names."""
    body = msgspec.json.encode({"dataframe_split": {"columns": columns, "data": [[3.0, 4.0]]}})
    answer = client.connection.http.post(f"/services/inference/invocations/{steady}", content=body)
    assert (answer.status_code, answer.json()["subject"]) == (422, "columns"), answer.text


def test_a_viewer_reads_but_neither_predicts_nor_deploys(client: Client, steady: str) -> None:
    with world.caller(client.connection.url, "viewer") as viewer:
        assert steady in [status.routes.endpoint for status in viewer.endpoints.list()]
        with pytest.raises(errors.Refused, match="endpoints:write"):
            viewer.endpoints.deploy(steady, Deploy(version=1))
        with pytest.raises(errors.Refused, match="endpoints:predict"):
            viewer.endpoints.predict(steady, Request(rows=[row()]))
    assert httpx.get(f"{client.connection.url}/api/v1/endpoints", trust_env=False, timeout=60).status_code == 401


def test_the_command_line_deploys_asks_and_exits_with_3_when_the_gate_says_no(
    client: Client, steady: str, folders: world.Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELLWORK_URL", client.connection.url)
    monkeypatch.setenv("CELLWORK_TOKEN", "deployer")
    folders.closed[2] = [Check(name="baseline", passed=False, text="0.60 is not above 0.61")]
    runner = CliRunner()
    refused = runner.invoke(main, ["endpoint", "deploy", steady, "2", "--model", world.MODEL])
    del folders.closed[2]
    assert (refused.exit_code, "0.60 is not above 0.61" in refused.output) == (3, True)
    same = runner.invoke(main, ["endpoint", "deploy", steady, "1", "--model", world.MODEL])
    assert (same.exit_code, same.output) == (0, "shop/steady serves version 1 (revision 1)\n")
    asked = runner.invoke(
        main, ["endpoint", "predict", steady, "-e", "customer_id=c1", "-f", "visits=3", "-f", "plan=free"]
    )
    assert asked.exit_code == 0, asked.output
    assert asked.output.splitlines()[-1].startswith("cellwork why pred_")
    for command in (["list"], ["show", steady], ["log", steady, "-n", "1"]):
        shown = runner.invoke(main, ["endpoint", *command])
        assert shown.exit_code == 0, shown.output
        assert steady in shown.output or command[0] == "log"
        assert msgspec.json.decode(runner.invoke(main, ["endpoint", *command, "--json"]).output)
    assert runner.invoke(main, ["endpoint", "predict", steady, "-f", "visits"]).exit_code == 2
