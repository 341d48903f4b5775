"""`make up` on a machine that lacks something: one clear line, and nothing half made. The Makefile is the real one, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from need import need

ROOT = Path(__file__).resolve().parents[1]
OLD = f"""#!{sys.executable}
import collections, sys
Version = collections.namedtuple("Version", "major minor micro releaselevel serial")
sys.version_info = Version(3, 9, 18, "final", 0)
assert sys.argv[1] == "-c"
exec(sys.argv[2])
"""
"""What answers as an old Python would to the Makefile's own question."""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    need(bool(shutil.which("make")), "make")
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run make as a person does, also where these tests themselves run under `make test` (which would tell it so)."""
    alone = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", *words], cwd=folder, env=alone, capture_output=True, text=True, timeout=60)


def test_an_old_python_is_named_with_the_way_to_another(clone: Path) -> None:
    old = clone / "python3"
    old.write_text(OLD)
    old.chmod(0o755)
    refused = make(clone, "up", f"PYTHON={old}")
    said = [line for line in refused.stderr.splitlines() if not line.startswith("make")]
    assert refused.returncode != 0
    assert said == ["cellwork: Python 3.9 is too old, 3.11 or newer is needed; run: make up PYTHON=/path/to/python3.11"]
    assert not (clone / ".venv").exists()


def test_a_machine_without_python_is_told_so(clone: Path) -> None:
    refused = make(clone, "up", "PYTHON=python-of-nowhere")
    said = [line for line in refused.stderr.splitlines() if not line.startswith("make")]
    assert refused.returncode != 0
    assert len(said) == 1
    assert said[0].startswith("cellwork: there is no python-of-nowhere on the PATH; install Python 3.11 or newer")
    assert not (clone / ".venv").exists()


def test_down_where_nothing_was_installed_says_so(clone: Path) -> None:
    stopped = make(clone, "down")
    assert (stopped.returncode, stopped.stdout) == (0, "nothing is installed here, so nothing runs\n")
