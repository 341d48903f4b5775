"""A jobs service, and a project's folder as a user's kernel or server has it: what the tests of magics and of Lab's form share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hub"))

from jobs_world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    started = World(tmp_path_factory.mktemp("home"))
    yield started
    started.close()


@pytest.fixture
def shop(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the project `shop`; this process speaks to the service as ada."""
    monkeypatch.setenv("CELLWORK_URL", world.url)
    monkeypatch.setenv("CELLWORK_TOKEN", "ada-token")
    (tmp_path / "cellwork.toml").write_text('[project]\nname = "shop"\n')
    return tmp_path
