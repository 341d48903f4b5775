"""An engine that answers with errors: the platform stops and starts all the same, and says what is left."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ill_engine
import msgspec
import pytest
from ill_engine import IllEngine

from cellwork import files
from cellwork.errors import Unavailable
from cellwork.home import Home
from cellwork.settings import Settings
from cellwork_hub import commands, processes, supervisor
from cellwork_hub.containers import engine, way
from cellwork_hub.containers.way import Way
from cellwork_hub.supervisor import Supervisor
from cellwork_hub.units import Unit, environment

SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")
STUCK, FREE = "a" * 64, "b" * 64


@pytest.fixture
def ill() -> Iterator[IllEngine]:
    """An engine with two containers, the first of which it will not remove."""
    with tempfile.TemporaryDirectory(prefix="cwi-") as folder, ill_engine.started(Path(folder)) as engine:
        engine.containers, engine.stuck = {STUCK: "cellwork-ada", FREE: "cellwork-bob"}, STUCK
        yield engine


@pytest.fixture
def home(ill: IllEngine, tmp_path: Path) -> Home:
    """The home of a platform whose servers run in that engine."""
    home = Home(tmp_path / "home").ensure()
    files.write(home.servers(), msgspec.json.encode(Way(kind="containers", text="", engine=ill.address)), mode=0o600)
    return home


def test_a_container_that_the_engine_will_not_remove_is_named_and_the_others_are_removed(
    ill: IllEngine, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="cellwork"):
        assert way.end_all(home) == 1
    assert list(ill.containers) == [STUCK]
    assert "cellwork-ada" in caplog.text
    assert "device or resource busy" in caplog.text


def test_an_engine_that_cannot_list_its_containers_is_a_warning(
    ill: IllEngine, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    ill.deaf = True
    with caplog.at_level(logging.WARNING, logger="cellwork"):
        assert way.end_all(home) == 0
    assert "the store is locked" in caplog.text
    with pytest.raises(Unavailable, match="the store is locked"):
        engine.remove_all(engine.connect(ill.address), way.label(home))


def test_an_engine_that_removes_nothing_is_not_asked_for_ever(
    ill: IllEngine, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "TROUBLE_SECONDS", 0.0)
    assert way.end_all(home) == 0
    assert list(ill.containers) == [STUCK, FREE]


def test_a_platform_with_a_stuck_container_stops_all_of_its_processes_and_starts_again(home: Home) -> None:
    environ = environment(Settings(home=home.root), processes.new_instance())
    units = [Unit("cellwork", SLEEPER, settle=0.1), Unit("hub", SLEEPER, settle=0.1, after=("cellwork",))]
    one = Supervisor(home, units, environ)
    while not one.complete:
        one.turn()
    one.stop()
    assert processes.of_instance(one.instance) == []
    supervisor.end_leftovers(home)


def test_down_after_a_supervisor_was_killed_forgets_it_though_a_container_is_stuck(home: Home) -> None:
    board = supervisor.Board(instance="of nobody", pid=0, created=0, port=0, services=[])
    supervisor.write_board(home, board)
    commands.stop(Settings(home=home.root))
    assert supervisor.read_board(home) is None


def test_a_run_starts_beside_a_kernel_that_the_engine_will_not_remove(ill: IllEngine, home: Home) -> None:
    engine.remove_ended(engine.connect(ill.address), "cellwork.kernel", 10.0)
    assert list(ill.containers) == [STUCK]
