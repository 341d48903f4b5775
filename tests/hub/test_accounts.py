"""A new password whatever state the hub is in: nobody but the hub is ended, and a hub that is away is said in a sentence."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest

from cellwork import files, settings
from cellwork.errors import Unavailable
from cellwork.settings import Settings
from cellwork.wire.records import ServiceStatus
from cellwork_hub import accounts, preparation, processes, supervisor


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A platform that runs, on whose board the hub is given up."""
    for name, value in {"HOME": str(tmp_path / "home"), "PORT": "0", "USER": "ada"}.items():
        monkeypatch.setenv(f"CELLWORK_{name}", value)
    found = dataclasses.replace(settings.load()[0], ready_seconds=1)
    home = found.folder.ensure()
    preparation.make_secrets(home)
    preparation.ports(found)
    board(found, ServiceStatus(name="hub", state="failed", pid=0, message="ended 5 times"))
    return found


def board(chosen: Settings, hub: ServiceStatus) -> None:
    own = os.getpid()
    created = processes.created(own)
    supervisor.write_board(chosen.folder, supervisor.Board(instance="x", pid=own, created=created, port=1, services=[hub]))  # fmt: skip


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, sign: found.append((pid, int(sign))))
    return found


def test_a_hub_that_is_away_leaves_the_new_password_and_says_what_is_still_to_do(
    chosen: Settings, ended: list[tuple[int, int]]
) -> None:
    path = chosen.folder.secret("password")
    before = files.read_secret(path)
    with pytest.raises(Unavailable, match=r"new password holds.*run it again") as said:
        accounts.reset_password(chosen)
    assert "browsers" in str(said.value)
    assert files.read_secret(path) != before
    assert ended == []


def test_no_process_is_ended_for_a_hub_that_has_none(
    chosen: Settings, ended: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a process group of number 0 belongs whoever asks."""
    monkeypatch.setattr(accounts, "revoke_browsers", lambda *_: None)  # it answered that, and ended a moment later
    with pytest.raises(Unavailable, match="did not come back"):
        accounts.reset_password(chosen)
    assert ended == []


def test_a_hub_that_runs_is_ended_by_its_number(chosen: Settings, ended: list[tuple[int, int]]) -> None:
    board(chosen, ServiceStatus(name="hub", state="ready", pid=4321))
    with pytest.raises(Unavailable, match="did not come back"):
        accounts.restart_hub(chosen)
    assert ended == [(4321, int(signal.SIGTERM))]
