"""What Lab asks a user's server about runs: the stream of their ends, and their pages."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from jobs_world import World, page
from users_server import a_users_server

from cellwork.wire.jobs import Progress, RunRequest


def test_a_users_server_passes_the_news_on_and_puts_the_page_of_a_run_where_lab_shows_it(
    shop: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTERHUB_USER", "ada")
    monkeypatch.setenv("JUPYTERHUB_ROOT_DIR", str(shop))
    jobs, runner = world.client().jobs, world.client("runner").jobs
    with a_users_server(shop) as server:
        assert httpx.get(f"{server.base_url}/cellwork/news", trust_env=False).status_code == 403
        with server.stream("GET", "/cellwork/news") as stream:
            assert stream.headers["content-type"] == "text/event-stream"
            lines = stream.iter_lines()
            begin = next(line for line in lines if line.startswith("id: "))
            run = jobs.start(RunRequest(project="shop", notebook="n.ipynb", content=page("1 / 0")))
            claim = runner.claim("r", wait_seconds=5)
            assert claim is not None
            said = Progress(
                fence=claim.fence, state="failed", cell=1, cells=1, error="ZeroDivisionError: division by zero"
            )
            runner.report(run.id, said)
            told = next(json.loads(line[6:]) for line in lines if line.startswith("data: ") and run.id in line)
            assert (told["name"], told["data"]["cell"]) == ("run.failed", 1)
        after = {"Last-Event-ID": begin.removeprefix("id: ")}
        with server.stream("GET", "/cellwork/news", headers=after) as stream:
            assert any(run.id in line for line in stream.iter_lines() if line.startswith("data: ")), (
                "a page that comes back"
            )
        answer = server.post(f"/cellwork/runs/{run.id}/open")
        assert answer.is_success, answer.text
        assert answer.json() == {"path": f"runs/n-{run.id[-6:]}.ipynb", "cell": 0}
        assert json.loads((shop / "runs" / f"n-{run.id[-6:]}.ipynb").read_text())["cells"][0]["source"] == "1 / 0"
        gone = server.post("/cellwork/runs/run_" + "0" * 26 + "/open")
        assert (gone.status_code, "does not exist" in gone.json()["message"]) == (409, True)
