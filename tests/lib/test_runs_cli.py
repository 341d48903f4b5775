"""`cellwork run` on this machine: papermill's flags, progress, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from test_runs import NOTEBOOKS, text_of


def cellwork(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("CELLWORK_")} | {
        "CELLWORK_HOME": str(cwd / "home")
    }
    return subprocess.run(
        [sys.executable, "-c", "from cellwork.cli import main; main()", *arguments],
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_a_notebook_runs_with_papermills_flags_and_tells_its_progress(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("name: from file\nx: 1\n")
    answer = cellwork(
        "run", str(NOTEBOOKS / "works.ipynb"), "-f", "more.yaml", "-p", "x", "38", "-o", "out.ipynb", cwd=tmp_path
    )
    assert answer.returncode == 0, answer.stderr
    assert "cell 3 of 5  " in answer.stderr
    assert "from file 42" in text_of(tmp_path / "out.ipynb")


def test_a_failed_run_exits_with_1_and_a_wrong_parameter_with_2(tmp_path: Path) -> None:
    failed = cellwork("run", str(NOTEBOOKS / "raises_in_cell_3.ipynb"), cwd=tmp_path)
    assert (failed.returncode, "cell 3 of 4" in failed.stderr, "ZeroDivisionError" in failed.stderr) == (1, True, True)
    assert (tmp_path / "raises_in_cell_3.out.ipynb").exists()
    wrong = cellwork("run", str(NOTEBOOKS / "works.ipynb"), "-p", "nmae", "1", cwd=tmp_path)
    assert (wrong.returncode, "did you mean 'name'?" in wrong.stderr) == (2, True)


def test_json_is_one_document(tmp_path: Path) -> None:
    answer = cellwork("run", "here", str(NOTEBOOKS / "works.ipynb"), "-r", "name", "7", "--json", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["parameters"] == {"name": "7"}


def test_a_platform_that_does_not_run_is_said_to(tmp_path: Path) -> None:
    answer = cellwork("run", "list", cwd=tmp_path)
    assert (answer.returncode, "cellwork up" in answer.stderr) == (4, True)
