"""Rollouts in a real service: to the end, back by themselves, stopped, and across a restart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import serving_world as world
from click.testing import CliRunner

from cellwork import errors
from cellwork.cli import main
from cellwork.client import Client
from cellwork.wire.endpoints import ArmWish, Deploy, Request, RolloutWish, RouteTable, Row
from cellwork_hub.context import Context
from cellwork_hub.inference.app import build
from cellwork_hub.inference.door import FrontDoor

HOLD = 0.2


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> world.Folders:
    """Versions 1 and 2 have the same scores; 3's are elsewhere; 8 lives in a child and fails from 300 visits on."""
    from sklearn.linear_model import LinearRegression

    folder, folders = tmp_path_factory.mktemp("models"), world.Folders()
    frame = world.FRAME[["visits"]]
    for version, factor in ((1, 1.0), (2, 1.0), (3, 40.0)):
        model = LinearRegression().fit(frame, factor * frame["visits"])
        folders.add(world.save(model, frame, folder / str(version)), version)
    folders.add(world.save(world.fragile(), frame, folder / "8"), 8)
    return folders


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return world.context(tmp_path_factory.mktemp("home"))


@contextmanager
def service(context: Context, folders: world.Folders) -> Iterator[Client]:
    def start() -> FrontDoor:
        return build(
            context, authorise=world.authorise, registry=folders, lookup=lambda *_: {}, deadline=world.DEADLINE
        )

    with world.running(start, context.ports["inference"]) as address, world.caller(address) as client:
        yield client


@pytest.fixture(scope="module")
def client(context: Context, folders: world.Folders) -> Iterator[Client]:
    with service(context, folders) as client:
        yield client


def endpoint(client: Client, name: str) -> str:
    return client.endpoints.deploy(f"shop/{name}", Deploy(version=1, model=world.MODEL)).endpoint


def wish(version: int, **more: object) -> RolloutWish:
    """How slow a version may be is not what these tests are about: it hangs on what else the machine does."""
    limits = {"stages": [0.3, 1.0], "hold_seconds": HOLD, "least": 30, "slower": 1e6, **more}
    return RolloutWish(version=version, model=world.MODEL, **limits)  # type: ignore[arg-type]


@contextmanager
def traffic(
    client: Client, name: str, visits: Callable[[int], float] = lambda k: float(k % 40)
) -> Iterator[list[object]]:
    """Ask all the time, each time for another unit; yields what failed."""
    stop, failed = threading.Event(), list[object]()

    def ask(k: int) -> None:
        with world.caller(client.connection.url) as own:
            own.connection.attempts = 1
            while not stop.is_set():
                k += 2
                try:
                    row = Row(features={"visits": visits(k)})
                    own.endpoints.predict(name, Request(rows=[row], unit=f"u{k}"))
                except errors.CellworkError as error:
                    failed.append(error)

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield failed
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def ended(client: Client, name: str) -> RouteTable:
    end = time.monotonic() + 90
    while True:
        table = client.endpoints.get(name).routes
        assert table.rollout is not None
        if table.rollout.state != "running":
            return table
        assert time.monotonic() < end, table.rollout
        time.sleep(0.05)


def test_a_good_version_comes_to_all_requests_by_itself_and_nobody_notices(client: Client) -> None:
    name = endpoint(client, "good")
    begun = client.endpoints.roll_out(name, wish(2))
    assert [(arm.version.version, arm.weight) for arm in begun.canary] == [(2, 0.3)]
    assert client.endpoints.roll_out(name, wish(2)) == begun
    with traffic(client, name) as failed:
        table = ended(client, name)
    assert table.rollout is not None
    assert (table.rollout.state, table.live.version, table.canary, failed) == ("promoted", 2, [], [])
    assert table.previous is not None
    assert table.previous.version == 1
    actions = [row.action for row in client.records.audit(service="inference") if row.subject == name]
    assert actions == ["endpoint.deploy", "endpoint.rollout", "endpoint.rollout", "endpoint.rollout_promoted"]
    routes = {p.route for p in client.endpoints.predictions(name, limit=10_000)}
    assert routes >= {"live", "canary"}


def test_a_version_whose_scores_lie_elsewhere_goes_back_by_itself(client: Client) -> None:
    name = endpoint(client, "elsewhere")
    client.endpoints.roll_out(name, wish(3, hold_seconds=600.0))
    with traffic(client, name):
        table = ended(client, name)
    assert table.rollout is not None
    assert (table.rollout.state, table.live.version, table.canary) == ("back", 1, [])
    assert "gives other scores" in table.rollout.said
    told = [e for e in client.records.events(service="inference") if e.name == "endpoint.rollout_ended"][-1]
    assert (told.subject, told.data["state"]) == (name, "back")


def test_a_failing_version_goes_back_and_no_request_fails(client: Client) -> None:
    name = endpoint(client, "failing")
    client.endpoints.roll_out(name, wish(8, stages=[1.0], hold_seconds=600.0))
    with traffic(client, name, lambda k: 1e5) as failed:
        table = ended(client, name)
    assert table.rollout is not None
    assert (table.rollout.state, table.live.version, failed) == ("back", 1, [])
    assert "not finite" in table.rollout.said or "failed" in table.rollout.said


def test_a_rollout_that_is_stopped_or_overtaken_by_a_deployment_leaves_nothing_behind(client: Client) -> None:
    name = endpoint(client, "stopped")
    client.endpoints.roll_out(name, wish(2, hold_seconds=600.0))
    with pytest.raises(errors.Conflict, match="is on its way already"):
        client.endpoints.roll_out(name, wish(3))
    with pytest.raises(errors.BadInput, match="stop the rollout first"):
        client.endpoints.put_arm(name, 2, ArmWish(model=world.MODEL, weight=0.5))
    table = client.endpoints.stop_rollout(name, "enough")
    assert table.rollout is not None
    assert (table.rollout.state, table.rollout.said, table.canary) == ("stopped", "enough", [])
    assert client.endpoints.stop_rollout(name) == table
    client.endpoints.roll_out(name, wish(2, hold_seconds=600.0))
    table = client.endpoints.deploy(name, Deploy(version=3, model=world.MODEL))
    assert table.rollout is not None
    assert (table.rollout.state, table.canary, table.live.version) == ("stopped", [], 3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"stages": [0.5, 0.1, 1.0]}, "do not rise"),
        ({"stages": [0.5]}, "do not rise"),
        ({"hold_seconds": -1.0}, "hold_seconds"),
        ({"slower": 0.5}, "to be quicker"),
    ],
)
def test_a_rollout_that_makes_no_sense_is_refused(client: Client, more: dict[str, object], message: str) -> None:
    name = endpoint(client, "nonsense")
    with pytest.raises(errors.BadInput, match=message):
        client.endpoints.roll_out(name, wish(2, **more))


def test_the_command_line_rolls_out_and_stops(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    name = endpoint(client, "typed")
    monkeypatch.setenv("CELLWORK_URL", client.connection.url)
    monkeypatch.setenv("CELLWORK_TOKEN", "deployer")
    begun = CliRunner().invoke(
        main, ["endpoint", "rollout", name, "2", "--model", world.MODEL, "--stages", "5%,100%", "--hold", "1h"]
    )
    assert "rollout: version 2, stage 1 of 2" in begun.output, begun.output
    stopped = CliRunner().invoke(main, ["endpoint", "stop", name, "--reason", "late"])
    assert "it was stopped: late" in stopped.output, stopped.output


def test_a_service_that_starts_again_goes_on_with_the_rollout_and_needs_no_registry(
    tmp_path: Path, folders: world.Folders
) -> None:
    context = world.context(tmp_path / "home")
    with service(context, folders) as client:
        name = endpoint(client, "restart")
        client.endpoints.roll_out(name, wish(2, hold_seconds=1.0))
    folders.away = True
    try:
        with service(context, folders) as client, traffic(client, name) as failed:
            table = ended(client, name)
    finally:
        folders.away = False
    assert table.rollout is not None
    assert (table.rollout.state, table.live.version, failed) == ("promoted", 2, [])
