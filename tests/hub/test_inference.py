"""Endpoints as callers meet them: a real service, real models in child processes, real failures."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import serving_world as world
from cellwork import errors
from cellwork.client import Client
from cellwork.serving.plan import Key
from cellwork.wire.endpoints import Deploy, Request, Row
from cellwork.wire.evaluations import Check
from cellwork.wire.features import OnlineValue
from cellwork_hub.inference.app import build

NOW = datetime.now(UTC)
ONLINE = {
    ("c1",): OnlineValue(values={"age": 3.0}, event=NOW - timedelta(hours=1), batch="bat_1"),
    ("old",): OnlineValue(values={"age": 3.0}, event=NOW - timedelta(days=30), batch="bat_0"),
}


def lookup(project: str, needed: dict[str, list[Key]]) -> dict[str, dict[Key, OnlineValue]]:
    return {view: {key: ONLINE[key] for key in keys if key in ONLINE} for view, keys in needed.items()}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for version in (1, 2, 3):
        world.save(world.estimator(version), world.FRAME, folder / str(version))
    world.save(world.fragile(), world.FRAME[["visits"]], folder / "fragile")
    return folder


@pytest.fixture
def folders(models: Path) -> world.Folders:
    folders = world.Folders()
    for version in (1, 2, 3):
        folders.add(models / str(version), version)
    folders.add(models / "fragile", 9)
    return folders


class House:
    """A service that can be restarted on the same home."""

    def __init__(self, home: Path, folders: world.Folders) -> None:
        self.context, self.folders = world.context(home), folders

    def serve(self):  # type: ignore[no-untyped-def]
        def make():  # type: ignore[no-untyped-def]
            return build(
                self.context, authorise=world.authorise, registry=self.folders, lookup=lookup, deadline=1.0
            )

        return world.running(make, self.context.ports["inference"])


@pytest.fixture
def house(tmp_path: Path, folders: world.Folders) -> House:
    return House(tmp_path / "home", folders)


@pytest.fixture
def client(house: House) -> Iterator[Client]:
    with house.serve() as address, world.caller(address) as client:
        yield client


def row(visits: float | None = 3.0, customer: str = "c1", **more: object) -> Row:
    return Row(entities={"customer_id": customer}, features={"visits": visits, "plan": "free"}, **more)  # type: ignore[arg-type]


def child(client: Client) -> int:
    """Return the pid of the one child process that serves the live version: the newest one."""
    mine = os.getpid()
    children = Path(f"/proc/{mine}/task").glob("*/children")
    return max(int(pid) for file in children for pid in file.read_text().split() if _is_predictor(pid))


def _is_predictor(pid: str) -> bool:
    return b"cellwork.serving.child" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_deployed_version_answers_by_entity_id_and_each_answer_is_in_the_log(client: Client) -> None:
    routes = client.endpoints.deploy(world.MODEL, Deploy(version=1))
    assert (routes.revision, routes.live.version, routes.previous, routes.service) == (1, 1, None, ["customer:age"])
    answer = client.endpoints.predict(world.MODEL, Request(rows=[row(), row(customer="unknown")]))
    known, unknown = answer.outputs
    assert known.defaults == []
    assert known.feature_age_s == pytest.approx(3600, abs=120)
    assert unknown.defaults == ["customer__age"]
    logged = client.endpoints.prediction(known.id)
    assert logged.features == {"visits": 3.0, "plan": "free", "customer__age": 3.0}
    assert (logged.feature_batches, logged.version, logged.deployment) == ({"customer": "bat_1"}, answer.model, routes.deployment)
    assert (logged.score, logged.caller, logged.route) == (known.score, "deployer", "live")
    checks = client.endpoints.deployment(routes.deployment).checks
    assert [line.split(":")[0] for line in checks] == ["gate evaluated", "loads", "schema", "finite", "parity", "latency"]


def test_a_value_older_than_the_ttl_is_not_used(client: Client) -> None:
    client.endpoints.deploy(world.MODEL, Deploy(version=1))
    at = NOW - timedelta(days=29)
    answer = client.endpoints.predict(world.MODEL, Request(rows=[row(customer="old"), row(customer="old", at=at)]))
    assert [output.defaults for output in answer.outputs] == [["customer__age"], []]


def test_a_row_that_names_its_time_does_not_get_a_later_value(client: Client) -> None:
    client.endpoints.deploy(world.MODEL, Deploy(version=1))
    answer = client.endpoints.predict(world.MODEL, Request(rows=[row(at=NOW - timedelta(hours=2))]))
    assert answer.outputs[0].defaults == ["customer__age"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Row(features={"visit": 1.0}), "did you mean 'visits'?"),
        (Row(features={"visits": "many"}), "is not a number"),
        (Row(features={"plan": 3}), "is not text"),
        (Row(entities={"customer": "c1"}), "did you mean 'customer_id'?"),
        (Row(entities={"customer_id": [1]}), "is not an id"),
    ],
)
def test_a_wrong_row_is_refused_with_its_value_and_the_way_out(client: Client, wrong: Row, message: str) -> None:
    client.endpoints.deploy(world.MODEL, Deploy(version=1))
    with pytest.raises(errors.BadInput, match=message.replace("?", r"\?")):
        client.endpoints.predict(world.MODEL, Request(rows=[wrong]))


def test_an_unknown_endpoint_is_not_found(client: Client) -> None:
    with pytest.raises(errors.NotFound, match="does not exist"):
        client.endpoints.predict("shop/nothing", Request(rows=[row()]))


def test_a_version_that_fails_the_gate_gets_no_traffic_and_the_refusal_is_recorded(
    client: Client, folders: world.Folders
) -> None:
    client.endpoints.deploy(world.MODEL, Deploy(version=1))
    folders.closed[2] = [
        Check(name="baseline", passed=False, text="0.60 is not above 0.61"),
        Check(name="origin", passed=False, text="no notebook"),
    ]
    with pytest.raises(errors.Refused, match=r"0\.60 is not above 0\.61.*no notebook"):
        client.endpoints.deploy(world.MODEL, Deploy(version=2))
    assert client.endpoints.get(world.MODEL).routes.live.version == 1
    assert [line.action for line in client.records.audit(service="inference")] == ["endpoint.deploy", "endpoint.refused"]


def test_a_version_whose_file_is_damaged_is_refused(client: Client, folders: world.Folders, tmp_path: Path) -> None:
    import shutil

    client.endpoints.deploy(world.MODEL, Deploy(version=1))
    damaged = shutil.copytree(folders.folders[world.MODEL, 2], tmp_path / "damaged")
    (damaged / "model.skops").write_bytes(b"no archive")
    folders.add(damaged, 4)
    with pytest.raises(errors.Refused, match="can't be loaded"):
        client.endpoints.deploy(world.MODEL, Deploy(version=4))
    assert client.endpoints.predict(world.MODEL, Request(rows=[row()])).model.version == 1


def test_deploying_twice_changes_nothing_and_rollback_goes_back_at_once(client: Client) -> None:
    client.endpoints.deploy(world.MODEL, Deploy(version=1))
    client.endpoints.deploy(world.MODEL, Deploy(version=2))
    assert client.endpoints.deploy(world.MODEL, Deploy(version=2)).revision == 2
    began = time.monotonic()
    routes = client.endpoints.rollback(world.MODEL, "worse")
    assert time.monotonic() - began < 1
    assert (routes.revision, routes.live.version, routes.previous and routes.previous.version) == (3, 1, 2)
    assert client.endpoints.predict(world.MODEL, Request(rows=[row()])).model.version == 1
    assert client.records.audit(service="inference")[-1].reason == "worse"


def test_of_two_people_who_saw_the_same_revision_one_wins_and_one_is_told(client: Client) -> None:
    client.endpoints.deploy(world.MODEL, Deploy(version=1))
    results: list[object] = []

    def change(version: int) -> None:
        try:
            results.append(client.endpoints.deploy(world.MODEL, Deploy(version=version, revision=1)).live.version)
        except errors.Conflict as error:
            results.append(error)

    people = [threading.Thread(target=change, args=(version,)) for version in (2, 3)]
    for person in people:
        person.start()
    for person in people:
        person.join(60)
    assert sorted(type(result).__name__ for result in results) == ["Conflict", "int"]
    assert client.endpoints.get(world.MODEL).routes.revision == 2


def test_a_repeated_request_id_gets_the_logged_answer_whatever_is_live_now(client: Client) -> None:
    client.endpoints.deploy(world.MODEL, Deploy(version=1))
    first = client.endpoints.predict(world.MODEL, Request(rows=[row(1.0), row(30.0)], id="order-7"))
    client.endpoints.deploy(world.MODEL, Deploy(version=2))
    again = client.endpoints.predict(world.MODEL, Request(rows=[row(1.0), row(30.0), row(8.0)], id="order-7"))
    assert [(o.id, o.score) for o in again.outputs[:2]] == [(o.id, o.score) for o in first.outputs]
    assert [output.repeated for output in again.outputs] == [True, True, False]
    assert len(client.endpoints.predictions(world.MODEL)) == 3


def test_one_callers_row_does_not_spoil_the_answers_of_others(client: Client) -> None:
    """Missing values make this model raise; requests of the same turn are then asked one by one."""
    client.endpoints.deploy("shop/sum", Deploy(version=9, model=world.MODEL))
    results: list[object] = []

    def ask(visits: float | None) -> None:
        try:
            results.append(client.endpoints.predict("shop/sum", Request(rows=[Row(features={"visits": visits})])))
        except errors.Unavailable as error:
            results.append(error)

    callers = [threading.Thread(target=ask, args=(None if k == 3 else 1.0,)) for k in range(8)]
    for one in callers:
        one.start()
    for one in callers:
        one.join(30)
    assert sorted(type(result).__name__ for result in results) == ["Answer"] * 7 + ["Unavailable"]


@pytest.mark.parametrize("poison", ["raises", "infinite", "dies", "hangs"])
def test_the_previous_version_answers_when_the_live_one_cannot(client: Client, poison: str) -> None:
    client.endpoints.deploy(world.MODEL, Deploy(version=1))
    client.endpoints.deploy(world.MODEL, Deploy(version=9))
    visits = {"raises": None, "infinite": 1e5}.get(poison, 1.0)
    if poison in ("dies", "hangs"):
        os.kill(child(client), signal.SIGKILL if poison == "dies" else signal.SIGSTOP)
    began = time.monotonic()
    answer = client.endpoints.predict(world.MODEL, Request(rows=[Row(features={"visits": visits})]))
    assert (answer.model.version, answer.route) == (1, "fallback")
    assert time.monotonic() - began < 2
    reason = {"raises": "raised ValueError", "infinite": "not finite", "dies": "died", "hangs": "did not answer"}
    assert reason[poison] in answer.reason
    assert client.endpoints.prediction(answer.outputs[0].id).route == "fallback"


def test_a_child_that_dies_is_started_again(client: Client) -> None:
    client.endpoints.deploy(world.MODEL, Deploy(version=1))
    os.kill(child(client), signal.SIGKILL)
    with pytest.raises(errors.Unavailable, match="died"):
        client.endpoints.predict(world.MODEL, Request(rows=[row()]))
    end = time.monotonic() + 20
    while not client.endpoints.get(world.MODEL).ready and time.monotonic() < end:
        time.sleep(0.05)
    assert client.endpoints.predict(world.MODEL, Request(rows=[row()])).route == "live"


def test_swapping_versions_under_load_fails_no_request_and_the_log_names_each_answers_version(client: Client) -> None:
    client.endpoints.deploy(world.MODEL, Deploy(version=1))
    answers: list[tuple[str, int]] = []
    failures: list[Exception] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                answer = client.endpoints.predict(world.MODEL, Request(rows=[row()]))
                answers.append((answer.outputs[0].id, answer.model.version))
            except Exception as error:
                failures.append(error)

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for one in callers:
        one.start()
    client.endpoints.deploy(world.MODEL, Deploy(version=2))
    for _ in range(10):
        client.endpoints.rollback(world.MODEL)
    client.endpoints.deploy(world.MODEL, Deploy(version=3))
    stop.set()
    for one in callers:
        one.join(30)
    logged = {p.id: p.version.version for p in client.endpoints.predictions(world.MODEL, limit=10_000)}
    assert not failures
    assert {version for _, version in answers} == {1, 2, 3}
    assert all(logged[name] == version for name, version in answers)


def test_a_restart_serves_what_it_had_with_the_registry_away(house: House, folders: world.Folders) -> None:
    with house.serve() as address, world.caller(address) as client:
        client.endpoints.deploy(world.MODEL, Deploy(version=1))
        client.endpoints.deploy(world.MODEL, Deploy(version=2))
        before = client.endpoints.predict(world.MODEL, Request(rows=[row()]))
    folders.away = True
    with house.serve() as address, world.caller(address) as client:
        after = client.endpoints.predict(world.MODEL, Request(rows=[row()]))
        assert (after.model, after.revision, after.outputs[0].score) == (before.model, 2, before.outputs[0].score)
        assert client.endpoints.rollback(world.MODEL).live.version == 1


def test_a_thousand_rows_with_their_own_values_take_well_under_a_second(client: Client) -> None:
    client.endpoints.deploy(world.MODEL, Deploy(version=1))
    rows = [
        Row(
            features={"visits": float(k), "plan": "paid", "customer__age": 2.0},
            feature_events={"customer": NOW}, feature_batches={"customer": "bat_2"}, observation=f"o{k}", key=f"o{k}@1", at=NOW,
        )
        for k in range(1000)
    ]  # fmt: skip
    request = Request(rows=rows, batch_run="run_1")
    client.endpoints.predict(world.MODEL, Request(rows=rows[:1], batch_run="run_1"))
    began = time.monotonic()
    answer = client.endpoints.predict(world.MODEL, request)
    assert time.monotonic() - began < 1
    assert sum(output.repeated for output in answer.outputs) == 1
    logged = client.endpoints.predictions(world.MODEL, after=500)
    assert (logged[0].observation, logged[0].feature_batches, logged[0].batch_run) == ("o500", {"customer": "bat_2"}, "run_1")


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["plan", "visits"], "data": [["free", 3.0], ["paid", None]]}},
        {"dataframe_records": [{"plan": "free", "visits": 3.0}, {"plan": "paid"}]},
        {"inputs": {"plan": ["free", "paid"], "visits": [3.0, None]}},
        {"instances": [[3.0, "free", None], [None, "paid", None]]},
    ],
)
def test_mlflows_formats_come_through_the_second_door(client: Client, body: dict[str, object]) -> None:
    client.endpoints.deploy(world.MODEL, Deploy(version=1))
    rows = [Row(features={"plan": "free", "visits": 3.0}), Row(features={"plan": "paid"})]
    scores = [output.score for output in client.endpoints.predict(world.MODEL, Request(rows=rows)).outputs]
    answer = client.connection.call("inference", "POST", f"/invocations/{world.MODEL}", dict, body)
    assert answer["predictions"] == scores
    assert client.endpoints.prediction(answer["ids"][0]).score == scores[0]


@pytest.mark.parametrize("body", [b"no", b"[]", b'{"inputs": {"a": [1], "b": [1, 2]}}', b'{"instances": [[1]]}', b'{"instances": 1}'])
def test_a_malformed_invocation_is_the_callers_fault(client: Client, body: bytes) -> None:
    client.endpoints.deploy(world.MODEL, Deploy(version=1))
    answer = client.connection.http.post(f"/services/inference/invocations/{world.MODEL}", content=body)
    assert answer.status_code in (400, 422)


def test_a_viewer_reads_but_neither_predicts_nor_deploys(house: House) -> None:
    with house.serve() as address, world.caller(address, "viewer") as viewer:
        assert list(viewer.endpoints.list()) == []
        with pytest.raises(errors.Refused, match="endpoints:write"):
            viewer.endpoints.deploy(world.MODEL, Deploy(version=1))
        with pytest.raises(errors.Refused, match="endpoints:predict"):
            viewer.endpoints.predict(world.MODEL, Request(rows=[row()]))
        assert httpx.get(f"{address}/api/v1/endpoints", trust_env=False).status_code == 401
