"""The real things, once a session: `platform` is a whole `cellwork up` in a temporary home, ended by `cellwork down`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import crew_world
import engine as engines
import pytest
import shop_world
import team_world
from need import need
from redis_server import redis_server
from running import Platform, board, command, left_of, logs
from shop_world import Toured
from team_world import Team

from cellwork import training
from cellwork.cli import tour as tours
from cellwork.client import Client
from cellwork.home import Home
from cellwork_hub.containers import images
from cellwork_hub.containers.engine import connect


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The whole platform on a free port with a fresh home; at the end it is stopped, and nothing of it is left."""
    home = tmp_path_factory.mktemp("platform") / "home"
    started = command(home, "up")
    try:
        assert started.returncode == 0, started.stdout + started.stderr + logs(home)
        line = next(line for line in started.stdout.splitlines() if line.startswith("Cellwork runs at"))
        yield Platform(home, line.split()[-1])
        instance = board(home)["instance"]
    finally:
        stopped = command(home, "down")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert left_of(home, instance) == []


@pytest.fixture(scope="session")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """The whole platform in `team` trust, with people who log in by passwords of their own."""
    home = tmp_path_factory.mktemp("team") / "home"
    with team_world.running(home) as team:
        yield team


@pytest.fixture(scope="session")
def toured(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Toured:
    """A small generated project, walked once through all tutorial and scheduled notebooks with the user's own token."""
    tour = shop_world.tour(tmp_path_factory.mktemp("shop"))
    client = Client(platform.url, platform.user_token("inherit"))
    return Toured(tour, client, list(tours.walk(tour, client, lambda _: None)))


@pytest.fixture(scope="session")
def engine() -> Iterator[engines.Engine]:
    """A container engine of the session's own."""
    with engines.started() as engine:
        yield engine


@pytest.fixture(scope="session")
def workers() -> Iterator[training.Cluster]:
    """Two Dask workers of this machine; tests that kill workers open their own."""
    with training.cluster(workers=2) as opened:
        yield opened


@pytest.fixture(scope="session")
def cpu_image(engine: engines.Engine, tmp_path_factory: pytest.TempPathFactory) -> images.Image:
    """Our image `cpu`, made from this checkout; what it installs comes from the engine's build cache after the first time."""
    using, home = connect(engine.address), Home(tmp_path_factory.mktemp("images"))
    return images.build(using, home, "cpu", base=engine.base(), secrets=engine.secrets(), network="host")


@pytest.fixture(scope="session")
def crew(
    engine: engines.Engine, cpu_image: images.Image, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[crew_world.Crew]:
    """The whole platform in `team` trust with two people, each with a server in a container."""
    with crew_world.running(tmp_path_factory.mktemp("crew") / "home", engine) as crew:
        yield crew


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
    )
    need(bool(found), "chromium")
    return found


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The address of a real Redis."""
    with redis_server() as url:
        yield url
