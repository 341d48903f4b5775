"""What an engine's refusals and silences are told as; the texts are those that Docker 27 gave."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from docker.errors import DockerException
from jupyterhub.spawner import SpawnException

from cellwork.home import Home
from cellwork_hub import profiles
from cellwork_hub.config.containers import ContainerSpawner
from cellwork_hub.containers import images
from cellwork_hub.containers.reasons import explain

FULL = "failed to register layer: write /usr/lib/x.so: no space left on device"


def spawner(tmp_path: Path) -> ContainerSpawner:
    home = Home(tmp_path / "home").ensure()
    made = ContainerSpawner(home=str(home.root), engine_address=f"unix://{tmp_path}/nobody.sock", by_groups=1)
    made.user, made.user_options = SimpleNamespace(name="ada", groups=[], url="/user/ada"), {}
    return made


def test_a_server_whose_engine_is_away_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SpawnException) as refused:
        asyncio.run(spawner(tmp_path).start())
    assert refused.value.message.startswith("Container engine: there is no such socket; try again")
    assert refused.value.status_code == 503


@pytest.mark.parametrize(
    "lost",
    [
        requests.ConnectionError("('Connection aborted.', RemoteDisconnected('Remote end closed connection'))"),
        requests.ReadTimeout("UnixHTTPConnectionPool(host='localhost'): Read timed out. (read timeout=60)"),
        DockerException(
            "Error while fetching server API version: ('Connection aborted.', ConnectionRefusedError(111))"
        ),
        BrokenPipeError(32, "Broken pipe"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_engine_that_ends_while_a_server_starts_is_said_too(
    lost: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clearing away what was begun fails as the start did, and hides nothing."""
    made = spawner(tmp_path)

    async def image(_: Any) -> Any:
        return SimpleNamespace(tag="cellwork/cpu:1")

    async def fail(*_: Any, **__: Any) -> Any:
        made.object_id = "c0ffee"
        raise lost

    monkeypatch.setattr(made, "_image", image)
    monkeypatch.setattr(made, "_take", lambda *_: None)
    monkeypatch.setattr(made, "_create", fail)
    monkeypatch.setattr(made, "docker", fail)
    with pytest.raises(SpawnException) as refused:
        asyncio.run(made.start())
    assert refused.value.message.startswith("Container engine: ")
    assert "try again" in refused.value.message


def test_the_way_to_make_room_removes_nothing_that_the_platform_still_needs() -> None:
    """`system prune` takes the platform's network when no server runs, and images that jobs name by digest."""
    told = str(explain(SimpleNamespace(explanation=FULL, status_code=500), profiles.BUILT_IN[0], "cpu"))
    for text in (told, images._why(f"ERROR: {FULL}")):
        assert "no space left" in text
        assert "docker builder prune" in text
        assert "docker container prune" in text
        assert "system prune" not in text
