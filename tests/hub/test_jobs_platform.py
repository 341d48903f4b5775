"""Jobs and runs on the whole platform: through the proxy, with the hub's tokens, from the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from running import Platform, wait_for

from cellwork.client import Client
from cellwork.errors import Refused
from cellwork.wire.batches import RawDataset
from cellwork.wire.jobs import JobRequest, Run, RunRequest, Schedule

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
ASKS = (NOTEBOOKS / "asks_the_platform.ipynb").read_text()


def printed(notebook: str) -> str:
    outputs = [o for cell in json.loads(notebook)["cells"] for o in cell.get("outputs", [])]
    return "".join("".join(o.get("text", "")) for o in outputs)


def test_a_run_reaches_the_services_with_its_own_token_which_ends_with_it(platform: Platform) -> None:
    """The notebook lists runs as its owner; its token is the hub's, carries no runner's scope, and is refused afterwards."""
    jobs = platform.client().jobs
    run = jobs.wait(jobs.start(RunRequest(project="shop", notebook="asks.ipynb", content=ASKS)).id, timeout=120)
    assert run.state == "succeeded", run.attempts
    answer = json.loads(printed(jobs.notebook(run.id)))
    assert answer["me"] == platform.user
    assert answer["runs"] == [run.id]
    assert answer["origin"] == {"run": run.id, "attempt": 1, "project": "shop", "notebook": "asks.ipynb"}
    assert "custom:cellwork:runs:execute" not in answer["scopes"]
    with platform.hub() as hub:

        def notes() -> list[str]:
            return [token["note"] for token in hub.get(f"/users/{platform.user}/tokens").json()["api_tokens"]]

        wait_for(lambda: f"run {run.id}" not in notes(), 60, "the end of its token")


def test_a_users_token_starts_runs_as_the_user_and_never_claims_them(platform: Platform) -> None:
    token = platform.user_token(
        "custom:cellwork:jobs:read", "custom:cellwork:jobs:write", "access:services!service=jobs"
    )
    with Client(platform.url, token) as client:
        works = (NOTEBOOKS / "works.ipynb").read_text()
        run = client.jobs.start(RunRequest(project="shop", notebook="works.ipynb", content=works, parameters={"x": 1}))
        assert run.principal == platform.user
        assert client.jobs.wait(run.id, timeout=120).state == "succeeded"
        with pytest.raises(Refused):
            client.jobs.claim("me")


def test_a_job_is_applied_run_and_removed_from_the_command_line(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "cellwork.toml").write_text('[project]\nname = "shop"\n')
    shutil.copy(NOTEBOOKS / "works.ipynb", tmp_path / "sum.ipynb")
    (tmp_path / "sum.yaml").write_text('on: {schedule: {cron: "0 3 29 2 *"}}\nwith: {name: "${date}"}\n')

    def cellwork(*arguments: str) -> tuple[int, str]:
        program = [str(Path(sys.executable).parent / "cellwork"), *arguments]
        answer = subprocess.run(
            program, cwd=tmp_path, env=platform.environ, capture_output=True, text=True, timeout=120
        )
        return answer.returncode, answer.stdout if "--json" in arguments else answer.stdout + answer.stderr

    assert cellwork("job", "apply", str(tmp_path))[0] == 0
    code, text = cellwork("job", "run", "sum", "-p", "x", "38", "--follow")
    assert (code, "succeeded" in text) == (0, True), text
    code, text = cellwork("job", "show", "sum", "--json")
    shown = json.loads(text)
    assert (code, shown["job"]["revision"], shown["runs"][0]["state"]) == (0, 1, "succeeded")
    shutil.copy(NOTEBOOKS / "raises_in_cell_3.ipynb", tmp_path / "broken.ipynb")
    code, text = cellwork("run", "start", "broken.ipynb", "--follow")
    assert (code, "cell 3 of 4" in text, "ZeroDivisionError" in text) == (1, True, True)
    assert cellwork("job", "remove", "sum")[0] == 0
    assert cellwork("job", "show", "sum")[0] == 1


def test_a_new_batch_runs_the_job_that_waits_for_it_once(platform: Platform) -> None:
    client = platform.client()
    client.batches.declare("shop", RawDataset(name="visits", key=["id"]))
    works = (NOTEBOOKS / "works.ipynb").read_text()
    when = Schedule(event="batch.ready", match={"dataset": "visits"})
    client.jobs.ensure(
        JobRequest(
            project="shop",
            name="on-visits",
            notebook="n.ipynb",
            content=works,
            schedule=when,
            parameters={"name": "${batch}", "x": "${event.rows}"},
        )
    )
    batch = client.batches.ingest("shop", "visits", pl.DataFrame({"id": [1, 2, 3]}), "2013-12-24").batch
    client.batches.ingest("shop", "visits", pl.DataFrame({"id": [1, 2, 3]}), "2013-12-24")
    later = client.batches.ingest("shop", "visits", pl.DataFrame({"id": [4]}), "2013-12-25").batch

    def told() -> list[Run]:
        """Events are taken in their order: when the later batch's is, all before it are."""
        found = list(client.jobs.runs(job="shop/on-visits"))
        return found if any(run.parameters["name"] == later.id for run in found) else []

    last, run = wait_for(told, 60, "the events' runs")
    assert last.parameters["name"] == later.id, "the same batch again is no new event"
    assert [client.jobs.wait(each.id, timeout=120).state for each in (run, last)] == ["succeeded"] * 2
    assert (run.parameters, run.cause.startswith("event evt_")) == ({"name": batch.id, "x": 3}, True)
    assert (run.id, "built_from", batch.id) in {(e.from_, e.relation, e.to) for e in client.records.edges(batch.id)}
    client.jobs.remove("shop/on-visits")


def test_a_secret_reaches_the_run_by_name_and_nobody_sees_its_value(platform: Platform) -> None:
    """Set from the command line, read in the notebook with the run's own token, hidden in what it prints."""
    value = "pass phrase/of the warehouse"
    program = [str(Path(sys.executable).parent / "cellwork"), "secret", "set", "shop/warehouse"]
    answer = subprocess.run(program, env=platform.environ, input=value, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    source = "from cellwork.secrets import secret\nvalue = secret('warehouse')\nprint('it is', value, len(value))"
    cell = {"cell_type": "code", "id": "c1", "metadata": {}, "outputs": [], "execution_count": None, "source": source}
    content = json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]})
    jobs = platform.client().jobs
    run = jobs.wait(jobs.start(RunRequest(project="shop", notebook="n.ipynb", content=content)).id, timeout=120)
    assert run.state == "succeeded", run.attempts
    assert printed(jobs.notebook(run.id)) == f"it is [secret:warehouse] {len(value)}\n"
    rows = platform.client().records.audit(limit=10_000)
    assert [row.subject for row in rows if row.action == "secret.read"] == ["shop/warehouse"]
    assert value not in str(rows)
