"""An engine whose disk is full: who builds an image and who starts a server is told so, with a way out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import engine as engines
import pytest

from cellwork.home import Home
from cellwork_hub import profiles
from cellwork_hub.containers import images
from cellwork_hub.containers.engine import connect
from cellwork_hub.containers.reasons import explain

pytestmark = pytest.mark.timeout(600)
ROOM_MEGABYTES = 300


@pytest.fixture(scope="module")
def full(engine: engines.Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[engines.Engine]:
    """An engine that has the base image, and room for nothing else."""
    data = tmp_path_factory.mktemp("full") / "disk"
    with engines.small(data, ROOM_MEGABYTES) as small:
        small.base()
        filler = os.open(data / "filler", os.O_CREAT | os.O_WRONLY)
        try:
            while os.write(filler, bytes(2**16)):
                pass
        except OSError:
            os.close(filler)
        yield small
        (data / "filler").unlink()


def test_a_build_on_a_full_disk_says_so_and_how_to_make_room(full: engines.Engine, tmp_path: Path) -> None:
    with pytest.raises(images.BuildFailed, match=r"no space left on the engine's disk.*docker builder prune"):
        images.build(connect(full.address), Home(tmp_path), "base", base=full.base(), network="none")


def test_a_server_on_a_full_disk_is_refused_with_that_reason(full: engines.Engine) -> None:
    import docker

    with pytest.raises(docker.errors.APIError) as refused:
        full.client.containers.create(full.base(), ["true"], network_mode="none").start()
    told = str(explain(refused.value, profiles.BUILT_IN[0], "cpu"))
    assert "no space left on its disk" in told
    assert "docker builder prune" in told
