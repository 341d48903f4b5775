"""The real things, once a session: `platform` is a whole `cellwork up` in a temporary home, ended by `cellwork down`.

`make test` runs workers side by side (pytest-xdist), each a session of its own. Modules that share a thing that
is dear to start go to one worker (`DEAR`), so it is started once; every other module is a group by itself. The dear ones go first, so
that the short ones fill what is left of the time. Where `toured` comes to the worker that had `platform`, it is the same platform,
later: the tests of `platform` find one that nobody has used.
"""

from __future__ import annotations

import ast
import functools
import gc
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crew_world
import engine as engines
import pytest
import shop_world
import team_world
from hypothesis import HealthCheck, settings
from need import need
from redis_server import redis_server
from running import Platform, address, started
from shop_world import Toured
from team_world import Team
from xdist.scheduler import LoadScopeScheduling

from cellwork import training
from cellwork.cli import tour as tours
from cellwork.client import Client
from cellwork.home import Home
from cellwork_hub.containers import images
from cellwork_hub.containers.engine import connect

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
"""Before scikit-learn's kernels are loaded: two workers on two cores would wait for each other's spinning threads."""

if sys.version_info < (3, 11, 8):
    _parse = ast.parse

    @functools.wraps(_parse)
    def _parse_undisturbed(*given: Any, **more: Any) -> ast.AST:
        """Parse while nothing is collected: a callback of that gives another thread its turn, and of two that parse one raises SystemError (gh-106905)."""
        collects = gc.isenabled()
        gc.disable()
        try:
            return _parse(*given, **more)
        finally:
            if collects:
                gc.enable()

    ast.parse = _parse_undisturbed  # type: ignore[assignment]

settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")
"""How long an example takes is the machine's, and each run draws the same ones; ``pytest --hypothesis-profile default`` draws others."""

DEAR = {
    "crew": "engine",
    "cpu_image": "engine",
    "engine": "engine",
    "toured": "toured",
    "platform": "platform",
    "team": "team",
    "workers": "workers",
}
FIRST = ("engine", "platform", "toured", "team", "workers")
"""The dear groups in the order in which they begin."""


@functools.cache
def group(module: str) -> str:
    """Return what the tests of `module`, a path from the root, run beside: the first dear thing they ask for, else the module itself."""
    text = (Path(__file__).parent.parent / module).read_text()
    asks = r"(def \w+|usefixtures)\([^)]*\b{}\b"
    return next((group for thing, group in DEAR.items() if re.search(asks.format(thing), text)), module)


class Together(LoadScopeScheduling):
    """A scheduler whose units of work are groups."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid.partition("::")[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Together:
    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The groups of dear things come first."""
    groups = [group(item.nodeid.partition("::")[0]) for item in items]
    place = {name: FIRST.index(name) if name in FIRST else len(FIRST) for name in groups}
    items[:] = [item for _, item in sorted(zip(groups, items, strict=True), key=lambda pair: place[pair[0]])]


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The whole platform on a free port with a fresh home; at the end it is stopped, and nothing of it is left."""
    home = tmp_path_factory.mktemp("platform") / "home"
    with started(home) as said:
        yield Platform(home, address(said))


@pytest.fixture(scope="session")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """The whole platform in `team` trust, with people who log in by passwords of their own."""
    home = tmp_path_factory.mktemp("team") / "home"
    with team_world.running(home) as team:
        yield team


@pytest.fixture(scope="session")
def toured(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toured]:
    """A small generated project, walked once through all tutorial and scheduled notebooks with the user's own token."""
    tour = shop_world.tour(tmp_path_factory.mktemp("shop"))
    with Client(platform.url, platform.user_token("inherit")) as client:
        yield Toured(tour, client, list(tours.walk(tour, client, lambda _: None)))


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
    """The path of a Chromium, for playwright to drive."""
    need(importlib.util.find_spec("playwright") is not None, "playwright")
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
