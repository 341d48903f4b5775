"""The reference pages equal what the code says: every setting, command and route is documented, and nothing that is gone."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = runpy.run_path(str(ROOT / "nbs" / "reference" / "build.py"))["PAGES"]


@pytest.mark.parametrize("name", sorted(PAGES))
def test_the_reference_page_is_what_the_code_says(name: str) -> None:
    assert (ROOT / "nbs" / "reference" / name).read_text() == PAGES[name](), "run: make docs"


def test_every_command_has_help_with_an_example() -> None:
    commands = runpy.run_path(str(ROOT / "nbs" / "reference" / "build.py"))["commands"]()
    without = [path for path, command in commands if "Example:" not in (command.help or "")]
    assert without == []


def test_every_route_says_what_it_does() -> None:
    routes = runpy.run_path(str(ROOT / "nbs" / "reference" / "build.py"))["services"]()
    assert [f"{name} {r.method} {r.path}" for name, rows in routes.items() for r in rows if not r.doc] == []
