"""Endpoints as callers meet them: a real service, real models in child processes, real failures."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import serving_world as world
from click.testing import CliRunner

from cellwork import db, errors
from cellwork.cli import main
from cellwork.client import Client
from cellwork.serving.plan import Key
from cellwork.wire.endpoints import Deploy, Request, Row
from cellwork.wire.features import OnlineValue
from cellwork.wire.gate import Check
from cellwork_hub.context import Context
from cellwork_hub.edge import Service
from cellwork_hub.inference.app import build
from cellwork_hub.platform import alert_deeds
from cellwork_hub.platform.state import State

NOW = datetime.now(UTC)
ONLINE = {
    ("c1",): OnlineValue(values={"age": 3.0}, event=NOW - timedelta(hours=1), batch="bat_1"),
    ("old",): OnlineValue(values={"age": 3.0}, event=NOW - timedelta(days=30), batch="bat_0"),
}


def lookup(project: str, needed: dict[str, list[Key]]) -> dict[str, dict[Key, OnlineValue]]:
    return {view: {key: ONLINE[key] for key in keys if key in ONLINE} for view, keys in needed.items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for version in (1, 2, 3):
        world.save(world.estimator(version), world.FRAME, folder / str(version))
    world.save(world.fragile(), world.FRAME[["visits"]], folder / "9")
    damaged = shutil.copytree(folder / "2", folder / "4")
    (damaged / "model.skops").write_bytes(b"no archive")
    return folder


@pytest.fixture(scope="module")
def folders(models: Path) -> world.Folders:
    folders = world.Folders()
    for version in (1, 2, 3, 4, 9):
        folders.add(models / str(version), version)
    return folders


class House:
    """A service that can be restarted on the same home."""

    def __init__(self, home: Path, folders: world.Folders) -> None:
        self.context, self.folders = world.context(home), folders

    def serve(self) -> AbstractContextManager[str]:
        return world.running(self._build, self.context.ports["inference"])

    def _build(self) -> Service:
        return build(self.context, authorise=world.authorise, registry=self.folders, lookup=lookup, deadline=1.0)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, folders: world.Folders) -> Iterator[Client]:
    """One service for the tests of this module; each changes endpoints of its own."""
    with House(tmp_path_factory.mktemp("home"), folders).serve() as address, world.caller(address) as client:
        yield client


@pytest.fixture(scope="module")
def steady(client: Client) -> str:
    """An endpoint with version 1 that no test changes."""
    return client.endpoints.deploy("shop/steady", Deploy(version=1, model=world.MODEL)).endpoint


@pytest.fixture(scope="module")
def shaky(client: Client) -> str:
    """An endpoint whose live version can be made to fail; version 1 is at hand."""
    client.endpoints.deploy("shop/shaky", Deploy(version=1, model=world.MODEL))
    return client.endpoints.deploy("shop/shaky", Deploy(version=9, model=world.MODEL)).endpoint


@pytest.fixture(scope="module")
def moving(client: Client) -> str:
    """An endpoint that tests change; it has had versions 1 and 2."""
    client.endpoints.deploy(world.MODEL, Deploy(version=1))
    return client.endpoints.deploy(world.MODEL, Deploy(version=2)).endpoint


def row(visits: float | None = 3.0, customer: str = "c1", **more: Any) -> Row:
    return Row(entities={"customer_id": customer}, features={"visits": visits, "plan": "free"}, **more)


def child(digest: str) -> int:
    """Return the pid of the newest child process of this one that holds the model of `digest`."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [pid for file in children for pid in file.read_text().split()]
    return max(int(pid) for pid in pids if digest.encode() in Path(f"/proc/{pid}/cmdline").read_bytes())


def wait_until_ready(client: Client, endpoint: str) -> None:
    end = time.monotonic() + 60
    while not client.endpoints.get(endpoint).ready:
        assert time.monotonic() < end, client.endpoints.get(endpoint).predictor
        time.sleep(0.05)


def together(calls: list[Callable[[], object]]) -> list[object]:
    """Make the calls at once and return what each gave or raised."""
    results: list[object] = [None] * len(calls)

    def make(k: int) -> None:
        try:
            results[k] = calls[k]()
        except errors.CellworkError as error:
            results[k] = error

    threads = [threading.Thread(target=make, args=(k,)) for k in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    return results


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


def test_a_viewer_reads_but_neither_predicts_nor_deploys(client: Client, steady: str) -> None:
    with world.caller(client.connection.url, "viewer") as viewer:
        assert steady in [status.routes.endpoint for status in viewer.endpoints.list()]
        with pytest.raises(errors.Refused, match="endpoints:write"):
            viewer.endpoints.deploy(steady, Deploy(version=1))
        with pytest.raises(errors.Refused, match="endpoints:predict"):
            viewer.endpoints.predict(steady, Request(rows=[row()]))
    assert httpx.get(f"{client.connection.url}/api/v1/endpoints", trust_env=False).status_code == 401


def test_a_repeated_request_id_gets_the_logged_answer_whatever_is_live_now(client: Client, moving: str) -> None:
    first = client.endpoints.predict(moving, Request(rows=[row(1.0), row(30.0)], id="order-7"))
    client.endpoints.rollback(moving)
    again = client.endpoints.predict(moving, Request(rows=[row(1.0), row(30.0), row(8.0)], id="order-7"))
    assert [(o.id, o.score) for o in again.outputs[:2]] == [(o.id, o.score) for o in first.outputs]
    assert [output.repeated for output in again.outputs] == [True, True, False]
    assert len([p for p in client.endpoints.predictions(moving) if p.request_id == "order-7"]) == 3


def test_the_same_request_id_at_once_is_answered_and_logged_once(client: Client, moving: str) -> None:
    request = Request(rows=[row(5.0)], id="order-8")
    answers = together([lambda: client.endpoints.predict(moving, request).outputs[0]] * 8)
    assert len({(output.id, output.score) for output in answers}) == 1
    assert len([p for p in client.endpoints.predictions(moving) if p.request_id == "order-8"]) == 1


def test_an_alert_rolls_back_the_version_it_is_about_and_no_other(client: Client, moving: str, tmp_path: Path) -> None:
    """What the platform does of itself is the same call as a person's, and only while that version answers."""
    here = world.context(tmp_path)
    (here.home.secrets / "cellwork-token").write_text("deployer")
    (here.home.secrets / "cellwork-token").chmod(0o600)
    port = int(client.connection.url.rpartition(":")[2])
    engine = db.open_database(f"sqlite:///{tmp_path}/platform.sqlite", [])
    state = State(engine, here.home, Context(here.settings, {**here.ports, "public": port}))
    client.endpoints.deploy(moving, Deploy(version=2))
    assert alert_deeds._roll_back(state, moving, f"{moving}@7", "another") == "not needed: version 2 answers"
    assert alert_deeds._roll_back(state, moving, f"{moving}@2", "worse").startswith("version 1 answers again")
    assert alert_deeds._roll_back(state, moving, f"{moving}@2", "twice") == "not needed: version 1 answers"
    assert client.endpoints.get(moving).routes.live.version == 1


def test_rollback_goes_back_at_once_and_deploying_the_live_version_changes_nothing(client: Client, moving: str) -> None:
    before = client.endpoints.get(moving).routes
    assert before.previous is not None
    began = time.monotonic()
    after = client.endpoints.rollback(moving, "worse")
    assert time.monotonic() - began < 1
    assert (after.revision, after.live, after.previous) == (before.revision + 1, before.previous, before.live)
    assert client.endpoints.predict(moving, Request(rows=[row()])).model == before.previous
    assert client.records.audit(service="inference")[-1].reason == "worse"
    assert client.endpoints.deploy(moving, Deploy(version=after.live.version)) == after


def test_swapping_versions_under_load_fails_no_request_and_the_log_names_each_answers_version(
    client: Client, moving: str
) -> None:
    answers: list[tuple[str, int]] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answer = client.endpoints.predict(moving, Request(rows=[row()]))
            answers.append((answer.outputs[0].id, answer.model.version))

    def swap() -> None:
        try:
            for _ in range(10):
                client.endpoints.rollback(moving)
                time.sleep(0.02)
            client.endpoints.deploy(moving, Deploy(version=3))
        finally:
            stop.set()

    assert together([ask] * 4 + [swap]) == [None] * 5
    logged = {p.id: p.version.version for p in client.endpoints.predictions(moving, limit=10_000)}
    assert {version for _, version in answers} >= {1, 2}
    assert [version for name, version in answers if logged[name] != version] == []


def test_of_two_people_who_saw_the_same_revision_one_wins_and_one_is_told(client: Client, moving: str) -> None:
    seen = client.endpoints.deploy(moving, Deploy(version=3)).revision
    wishes = [Deploy(version=version, revision=seen) for version in (1, 2)]
    results = together([lambda wish=wish: client.endpoints.deploy(moving, wish) for wish in wishes])  # type: ignore[misc]
    assert sorted(type(result).__name__ for result in results) == ["Conflict", "RouteTable"]
    assert client.endpoints.get(moving).routes.revision == seen + 1


def test_one_callers_row_does_not_spoil_the_answers_of_others(client: Client, shaky: str) -> None:
    """Missing values make this model raise; requests of the same turn are then asked one by one."""
    requests = [Request(rows=[Row(features={"visits": None if k == 3 else 1.0})]) for k in range(8)]
    answers = together([lambda r=r: client.endpoints.predict(shaky, r).route for r in requests])  # type: ignore[misc]
    assert answers == ["live"] * 3 + ["fallback"] + ["live"] * 4


@pytest.mark.parametrize("poison", ["raises", "infinite", "dies", "hangs"])
def test_the_previous_version_answers_when_the_live_one_cannot(client: Client, shaky: str, poison: str) -> None:
    wait_until_ready(client, shaky)
    pid = child(client.endpoints.get(shaky).routes.live.digest)
    visits = {"raises": None, "infinite": 1e5}.get(poison, 1.0)
    if poison in ("dies", "hangs"):
        os.kill(pid, signal.SIGKILL if poison == "dies" else signal.SIGSTOP)
    began = time.monotonic()
    answer = client.endpoints.predict(shaky, Request(rows=[Row(features={"visits": visits})]))
    seconds = time.monotonic() - began
    if poison == "hangs":
        os.kill(pid, signal.SIGCONT)
    assert (answer.model.version, answer.route) == (1, "fallback")
    assert seconds < 3
    reason = {"raises": "raised ValueError", "infinite": "not finite", "dies": "died", "hangs": "did not answer"}
    assert reason[poison] in answer.reason
    assert client.endpoints.prediction(answer.outputs[0].id).route == "fallback"


def test_a_version_that_keeps_failing_is_taken_out_no_request_fails_and_an_event_says_so(
    client: Client, shaky: str
) -> None:
    wait_until_ready(client, shaky)
    routes = [client.endpoints.predict(shaky, Request(rows=[Row(features={"visits": 1e5})])).route for _ in range(6)]
    assert routes == ["fallback"] * 6
    assert client.endpoints.get(shaky).breaker
    spared = client.endpoints.predict(shaky, Request(rows=[Row(features={"visits": 1.0})]))
    assert (spared.route, "is taken out" in spared.reason) == ("fallback", True)
    told = [e for e in client.records.events(service="inference") if e.name == "endpoint.breaker_opened"][-1]
    assert (told.subject, told.data["version"]) == (shaky, f"{world.MODEL}@9")


def test_without_a_previous_version_a_dead_child_is_unavailable_until_it_is_started_again(client: Client) -> None:
    live = client.endpoints.deploy("shop/alone", Deploy(version=9, model=world.MODEL)).live
    os.kill(child(live.digest), signal.SIGKILL)
    request = Request(rows=[Row(features={"visits": 1.0})])
    with pytest.raises(errors.Unavailable, match="died"):
        client.endpoints.predict("shop/alone", request)
    wait_until_ready(client, "shop/alone")
    assert client.endpoints.predict("shop/alone", request).route == "live"


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
