"""What many tests of the platform service share: an empty state, and its service with a client that notebooks find too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from feature_world import new_state, service

from cellwork import client as clients
from cellwork.client import Client
from cellwork_hub.platform.state import State


@pytest.fixture
def state(tmp_path: Path) -> State:
    return new_state(tmp_path / "home")


@pytest.fixture
def client(state: State, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """The client of a service over `state`; `cellwork.client.connect()` and the command line find the same service."""
    with service(state) as connected:
        monkeypatch.setenv("CELLWORK_URL", connected.connection.url)
        monkeypatch.setenv("CELLWORK_TOKEN", "token")
        yield connected
    clients.connect().close()
