from __future__ import annotations

import os
from pathlib import Path

import pytest

from cellwork import settings
from cellwork.errors import BadInput, Refused
from cellwork.files import read_secret
from cellwork.home import Home


def test_a_variable_wins_over_a_file_and_a_file_over_the_default(tmp_path: Path) -> None:
    (tmp_path / "cellwork.toml").write_text("[platform]\nport = 8100\nrunners = 3\n")
    chosen, origins = settings.load({"CELLWORK_HOME": str(tmp_path / "home"), "CELLWORK_PORT": "8200"}, tmp_path)
    assert (chosen.port, chosen.runners, chosen.host) == (8200, 3, "127.0.0.1")
    assert origins["port"].source == "CELLWORK_PORT"
    assert origins["runners"].source == str(tmp_path / "cellwork.toml")
    assert origins["host"].source == "default"


def test_a_saved_setting_is_read_again_and_keeps_its_neighbours(tmp_path: Path) -> None:
    home = Home(tmp_path)
    settings.save(home, {"port": 9000})
    settings.save(home, {"user": 'a"b\\c'})
    chosen, _ = settings.load({"CELLWORK_HOME": str(tmp_path)}, tmp_path / "nowhere")
    assert (chosen.port, chosen.user) == (9000, 'a"b\\c')


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[platform]\nprot = 1", "did you mean 'port'"),
        ('[platform]\nport = "many"', "not a whole number"),
        ('[platform]\ntrust = "none"', "personal, team"),
        ("[platform", "is not TOML"),
    ],
)
def test_a_wrong_setting_names_the_file_the_value_and_the_way_out(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "cellwork.toml").write_text(text)
    with pytest.raises(BadInput, match=words):
        settings.load({"CELLWORK_HOME": str(tmp_path / "home")}, tmp_path)


def test_a_project_file_without_platform_settings_changes_none(tmp_path: Path) -> None:
    (tmp_path / "cellwork.toml").write_text('[project]\nname = "flights"\n')
    assert settings.load({"CELLWORK_HOME": str(tmp_path / "h")}, tmp_path)[0].port == 8000


def test_a_home_that_cannot_be_written_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="can't be written"):
        Home(tmp_path / "file" / "home").ensure()


def test_homes_folders_are_closed_to_others(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").ensure()
    assert {oct(p.stat().st_mode & 0o777) for p in (home.root, home.secrets, home.db)} == {"0o700"}


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("x\n")
    path.chmod(0o600)
    assert read_secret(path) == "x"
    path.chmod(0o640)
    with pytest.raises(Refused, match=f"chmod 600 {os.fspath(path)}"):
        read_secret(path)


def test_an_empty_variable_counts_as_not_set(tmp_path: Path) -> None:
    chosen, origins = settings.load(
        {"CELLWORK_HOME": str(tmp_path), "CELLWORK_PORT": "", "CELLWORK_WORKSPACE": ""}, tmp_path
    )
    assert (chosen.port, chosen.workspace, origins["port"].source) == (8000, None, "default")
