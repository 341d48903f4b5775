"""Jobs as Airflow DAGs: what is written is Python whatever the values are, what can't be carried over is said; a real Airflow runs it."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cellwork.errors import BadInput
from cellwork.jobs import airflow
from cellwork.wire.jobs import JobRequest, Policy, Schedule

CELLS = ["day: str = ''\nwords: list = []", "import pathlib, json\npathlib.Path('seen.json').write_text(json.dumps([day, words]))"]  # fmt: skip
HOSTILE = ["{{ 7 * 7 }}", "'); import os; os.abort() #", '"""', "${date} $(touch gone)", "LEFT_OUT"]


def notebook() -> str:
    cells = [
        {"cell_type": "code", "id": f"c{k}", "metadata": {"tags": ["parameters"]} if k == 0 else {}, "outputs": [], "execution_count": None, "source": source}
        for k, source in enumerate(CELLS)
    ]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3"}
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": cells})


def job(**fields: Any) -> JobRequest:
    given = {
        "project": "shop", "name": "score", "notebook": "nightly/score.ipynb", "content": notebook(), "files": {"cellwork.toml": '[project]\nname = "shop"\n'},
        "parameters": {"day": "${date}", "words": HOSTILE}, "schedule": Schedule(cron="30 3 * * 1-5", timezone="Europe/Berlin"), "retries": 2,
    }  # fmt: skip
    return JobRequest(**{**given, **fields})


def literal(path: Path) -> dict[str, Any]:
    """Return what the DAG file calls JOB."""
    tree = ast.parse(path.read_text())
    found = next(node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "JOB")
    value: dict[str, Any] = ast.literal_eval(found.value)
    return value


def test_a_job_becomes_a_dag_file_and_a_folder_and_values_are_literals(tmp_path: Path) -> None:
    path = airflow.export(job(), tmp_path)
    about = literal(path)
    assert (about["cron"], about["timezone"], about["retries"], about["catch_up"]) == ("30 3 * * 1-5", "Europe/Berlin", 2, False)  # fmt: skip
    assert about["parameters"] == {"day": "${date}", "words": HOSTILE}
    assert (tmp_path / "shop__score" / "nightly" / "score.ipynb").read_text() == notebook()
    assert (tmp_path / "shop__score" / "cellwork.toml").exists()
    assert airflow.export(job(), tmp_path).read_text() == path.read_text(), "twice is once"


def test_what_airflow_cannot_do_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"batch\.ready"):
        airflow.export(job(schedule=Schedule(event="batch.ready")), tmp_path)
    with pytest.raises(BadInput, match="last_success"):
        airflow.export(job(parameters={"day": "${last_success}"}), tmp_path)
    with pytest.raises(BadInput, match="outside"):
        airflow.export(job(files={"../x.py": ""}), tmp_path)
    made, left = airflow.exported([job(), job(name="waits", schedule=Schedule(event="batch.ready"))], tmp_path)
    assert ([path.name for path in made], list(left)) == (["shop__score.py"], ["shop/waits"])
    text = airflow.source(job(policy=Policy(memory_megabytes=512, deadline_seconds=60)))
    assert "Not carried over: the deadline, the memory limit." in text


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_real_airflow_takes_the_files_and_runs_the_notebook(tmp_path: Path) -> None:
    """In an environment of its own (`AIRFLOW_PYTHON`, or one that is made here): the DAGs load, and a run executes the notebook."""
    python = os.environ.get("AIRFLOW_PYTHON") or _install(tmp_path / "venv")
    dags = tmp_path / "airflow" / "dags"
    chained = job(name="after", schedule=Schedule(after="shop/score"), parameters={"day": "x"})
    every = job(name="often", schedule=Schedule(every_seconds=600), parameters={"day": "${due}"})
    assert len(airflow.exported([job(), chained, every], dags)[0]) == 3
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "AIRFLOW_HOME": str(tmp_path / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False", "CELLWORK_PROGRAM": str(Path(sys.executable).parent / "cellwork"),
        "CELLWORK_HOME": str(tmp_path / "nowhere"),
    }  # fmt: skip

    def ask(*words: str, seconds: float = 300) -> str:
        answer = subprocess.run([python, "-m", "airflow", *words], env=environment, capture_output=True, text=True, timeout=seconds)  # fmt: skip
        assert answer.returncode == 0, answer.stdout[-4000:] + answer.stderr[-4000:]
        return answer.stdout

    ask("db", "migrate")
    ask("dags", "reserialize")
    assert rows(ask("dags", "list-import-errors", "-o", "json")) == []
    listed = rows(ask("dags", "list", "-o", "json"))
    assert {row["dag_id"] for row in listed} == {"shop__score", "shop__after", "shop__often"}
    ask("dags", "test", "shop__score", "2026-11-18T23:30:00+00:00", seconds=600)
    folder = dags / "shop__score"
    seen = json.loads(next(folder.rglob("seen.json")).read_text())
    expected = [word.replace("${date}", "2026-11-19") for word in HOSTILE]
    assert seen == ["2026-11-19", expected], "the day is Berlin's; nothing was evaluated"
    assert len(list((folder / "runs").glob("*.ipynb"))) == 1


def rows(output: str) -> list[dict[str, Any]]:
    """Return what a command listed; its warnings stand above."""
    found: list[dict[str, Any]] = json.loads(next(line for line in reversed(output.splitlines()) if line.startswith("[")))  # fmt: skip
    return found


def _install(folder: Path) -> str:
    uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True, timeout=120)
    subprocess.run([uv, "pip", "install", "-q", "--python", str(folder / "bin" / "python"), "apache-airflow>=3,<4"], check=True, timeout=900)  # fmt: skip
    return str(folder / "bin" / "python")
