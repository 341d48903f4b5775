"""An engine that answers with errors, or has no image: the platform stops and starts all the same, and says what is left and what it lacks."""

from __future__ import annotations

import hashlib
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ill_engine
import msgspec
import pytest
from ill_engine import IllEngine

from cellwork import clock, files
from cellwork.errors import Unavailable
from cellwork.home import Home
from cellwork.settings import Settings
from cellwork_hub import commands, doctor, processes, profiles, supervisor
from cellwork_hub.containers import engine, images, way
from cellwork_hub.containers.way import Way
from cellwork_hub.context import Context
from cellwork_hub.jobs.runners import container
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


def give(ill: IllEngine, home: Home, name: str) -> None:
    """Let the engine have the image `name`, and the home know what is installed in it."""
    tag, digest = (
        images.tag(name) if name in profiles.OURS else name,
        f"sha256:{hashlib.sha256(name.encode()).hexdigest()}",
    )
    image = images.Image(name=name, tag=tag, digest=digest, env="", size_mb=1, built=clock.now())
    files.write(home.image(digest), msgspec.json.encode(image))
    ill.images[tag] = digest


def team(ill: IllEngine, home: Home) -> Settings:
    return Settings(home=home.root, trust="team", container_engine=ill.address)


def context(ill: IllEngine, home: Home) -> Context:
    return Context(team(ill, home), {"public": 8000})


def own_menu(home: Home) -> None:
    """Let every server be of an image that is another's."""
    home.profiles().write_text('[own]\nmemory = "1G"\ncores = 1\nimage = "lab.example/own:1"\n')


def image_check(ill: IllEngine, home: Home) -> doctor.Check | None:
    return next((check for check in doctor.examine(team(ill, home)) if check.name == "images"), None)


def test_doctor_names_the_image_that_servers_and_runs_lack_with_the_command_that_builds_it(
    ill: IllEngine, home: Home
) -> None:
    lacking = image_check(ill, home)
    assert lacking is not None
    assert (lacking.verdict, lacking.way_out) == ("missing", "run: cellwork image build cpu")
    assert "runs wait for it" in lacking.found
    give(ill, home, "jobs")
    lacking = image_check(ill, home)
    assert lacking is not None
    assert lacking.verdict == "missing"
    assert "runs wait for it" not in lacking.found
    give(ill, home, "cpu")
    assert image_check(ill, home) == doctor.Check(name="images", verdict="ok", found="cpu")


def test_doctor_says_that_the_engine_does_not_tell_its_images(ill: IllEngine, home: Home) -> None:
    ill.deaf = True
    found = image_check(ill, home)
    assert found is not None
    assert (found.verdict, "the store is locked" in found.found) == ("missing", True)


def test_an_image_that_is_anothers_is_pulled_at_the_first_start_and_doctor_says_so(ill: IllEngine, home: Home) -> None:
    own_menu(home)
    lacking = image_check(ill, home)
    assert lacking is not None
    assert (lacking.verdict, lacking.way_out) == ("optional", "run: docker pull lab.example/own:1")


def test_runs_of_a_menu_with_images_of_its_own_alone_execute_in_the_first_of_them(ill: IllEngine, home: Home) -> None:
    own_menu(home)
    with pytest.raises(Unavailable, match="cellwork image build jobs"):
        container.find(context(ill, home))
    give(ill, home, "lab.example/own:1")
    assert container.find(context(ill, home)).image.tag == "lab.example/own:1"
    give(ill, home, "cpu")
    assert container.find(context(ill, home)).image.name == "cpu"


def test_a_runner_without_an_image_waits_for_one_and_says_so_once(
    ill: IllEngine, home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It ended, again and again, and the start of the whole platform with it."""
    looks: list[float] = []

    def look_again(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            give(ill, home, "jobs")

    monkeypatch.setattr("time.sleep", look_again)
    assert container.awaited(context(ill, home)).image.name == "jobs"
    assert looks == [container.LOOK_SECONDS] * 3
    assert caplog.text.count("cellwork image build jobs") == 1
