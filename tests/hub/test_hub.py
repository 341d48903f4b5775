"""The hub and its user servers: one user, one password, a kernel that computes, tokens that reach what they may and no more."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import httpx
import pytest
from running import START_SECONDS, Platform, Server, wait_for
from traitlets.config import Config

from cellwork import scopes
from cellwork.settings import Settings
from cellwork_hub import processes
from cellwork_hub.config.culling import set_culling
from cellwork_hub.config.no_servers import NoServers, refuse_servers
from cellwork_hub.config.revocation import set_revocation
from cellwork_hub.config.spawner import AccountSpawner

DATA_READ = scopes.to_hub("data:read")


@pytest.fixture(scope="module")
def server(platform: Platform) -> Server:
    return platform.start_server()


@pytest.fixture(scope="module")
def kernel(server: Server) -> str:
    return server.start_kernel()


def test_a_kernel_of_a_users_server_computes(server: Server, kernel: str) -> None:
    assert server.execute(kernel, "5 * 4") == "20"


def test_a_kernel_has_the_magics_and_the_library_without_asking(server: Server, kernel: str) -> None:
    assert "cellwork_jupyter" in server.execute(kernel, "print(get_ipython().extension_manager.loaded)")
    assert server.execute(kernel, "import cellwork; cellwork.__version__").startswith("'")


def test_a_notebook_is_told_where_the_platform_is_but_not_its_home(
    platform: Platform, server: Server, kernel: str
) -> None:
    text = server.execute(
        kernel,
        "import os; print(os.environ['CELLWORK_URL'], os.environ.get('CELLWORK_HOME'), os.environ['CELLWORK_USER'])",
    )
    assert text.split() == [platform.url, "None", "ada"]


def test_a_notebooks_own_token_reaches_every_service_and_only_with_its_owners_scopes(
    server: Server, kernel: str
) -> None:
    code = """
import os, httpx
http = httpx.Client(base_url=os.environ["CELLWORK_URL"], headers={"authorization": "Bearer " + os.environ["CELLWORK_TOKEN"]}, trust_env=False, timeout=60)
for method, path in (("GET", "/services/cellwork/api/v1/events"), ("GET", "/services/jobs/api/v1/jobs"), ("GET", "/services/inference/api/v1/endpoints"),
                     ("GET", "/services/mlflow/version"), ("GET", "/services/dashboards/voila/tree"),
                     ("POST", "/services/jobs/api/v1/claims"), ("GET", "/hub/api/users"), ("POST", "/hub/api/users/eve")):
    print(http.request(method, path, json={"runner": "me"} if method == "POST" else None).status_code)
"""
    assert server.execute(kernel, code).split() == ["200", "200", "200", "200", "200", "403", "403", "403"]


def test_a_notebooks_client_and_the_cli_in_a_terminal_find_the_platform_by_themselves(
    server: Server, kernel: str
) -> None:
    code = """
import cellwork.client, subprocess
print(list(cellwork.client.connect().jobs.list()))
print(subprocess.run(["cellwork", "job", "list", "--json"], capture_output=True, text=True).stdout)
"""
    assert server.execute(kernel, code).split() == ["[]", "[]"]


def test_a_notebook_starts_a_run_which_executes_with_its_authors_own_token(server: Server, kernel: str) -> None:
    """The run's kernel carries a fresh token of the same user, and nothing of the platform's."""
    code = """
import json, nbformat, cellwork.client
from cellwork.wire.jobs import RunRequest
cell = "import os, httpx\\nme = httpx.get(os.environ['JUPYTERHUB_API_URL'] + '/user') if 'JUPYTERHUB_API_URL' in os.environ else None\\n" \
       "token = os.environ['CELLWORK_TOKEN']\\nprint('own', token != %r, os.environ.get('CELLWORK_HOME'), me)" % os.environ["CELLWORK_TOKEN"]
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
client = cellwork.client.connect()
run = client.jobs.start(RunRequest(project="trial", notebook="small.ipynb", content=nbformat.writes(notebook)))
run = client.jobs.wait(run.id, timeout=120)
outputs = json.loads(client.jobs.notebook(run.id))["cells"][-1]["outputs"]
print(run.state, run.principal, "".join(outputs[0]["text"]))
"""
    words = server.execute(kernel, code, timeout=150).split()
    assert words[0] == "succeeded"
    assert words[1].endswith("ada")
    assert words[2:] == ["own", "True", "None", "None"]


def test_the_jobs_service_may_mint_tokens_and_nothing_else_at_the_hub(platform: Platform) -> None:
    headers = {"authorization": f"token {platform.token('jobs')}"}
    with httpx.Client(base_url=f"{platform.url}/hub/api", headers=headers, trust_env=False, timeout=60) as hub:
        wanted = {"expires_in": 60, "scopes": [DATA_READ]}
        assert hub.post("/users/ada/tokens", json=wanted).status_code == 201
        more = {"expires_in": 60, "scopes": [scopes.to_hub("admin")]}
        assert hub.post("/users/ada/tokens", json=more).status_code in (400, 403)
        tried = (
            ("GET", "/users"),
            ("POST", "/users/eve"),
            ("POST", "/users/ada/server"),
            ("POST", "/shutdown"),
            ("GET", "/proxy"),
        )
        assert [hub.request(method, path).status_code for method, path in tried] == [403] * 5


def test_the_runner_may_claim_runs_and_nothing_else(platform: Platform) -> None:
    with platform.http(platform.token("runner")) as http:
        assert http.get("/services/jobs/api/v1/jobs").status_code == 200
        tried = (
            "/services/cellwork/api/v1/events",
            "/services/inference/api/v1/endpoints",
            "/services/mlflow/version",
            "/hub/api/users",
        )
        assert [http.get(path).status_code for path in tried] == [403] * 4


def test_the_tutorials_are_copied_once_and_never_written_over(platform: Platform) -> None:
    from cellwork_hub.config.spawner import copy_tutorials

    mine = platform.home / "work" / "tutorials" / "mine.txt"
    mine.write_text("mine")
    copy_tutorials(platform.home / "work")
    assert mine.read_text() == "mine"


def test_exactly_one_name_may_log_in(platform: Platform) -> None:
    with platform.browser() as browser:
        form = browser.get("/hub/login", headers={"accept": "text/html"})
        assert "promises no secrecy" in form.text
        xsrf = next(c.value for c in browser.cookies.jar if c.name == "_xsrf")
        for name, word, status in (
            ("eve", platform.password, 403),
            ("ada", "wrong", 403),
            ("ada", platform.password, 200),
        ):
            answer = browser.post(
                "/hub/login?next=%2Fhub%2Fhome", data={"username": name, "password": word, "_xsrf": xsrf}
            )
            assert (name, answer.status_code) == (name, status)


def test_a_killed_hub_comes_back_and_keeps_user_servers_and_what_their_kernels_know(
    platform: Platform, server: Server, kernel: str
) -> None:
    server.execute(kernel, "kept = 41")
    before = platform.status("hub")
    os.kill(before["pid"], signal.SIGKILL)
    wait_for(
        lambda: (now := platform.status("hub"))["restarts"] > before["restarts"] and now["state"] == "ready",
        START_SECONDS,
        "the hub's return",
    )
    assert server.execute(kernel, "kept + 1") == "42"
    with platform.hub() as hub:
        wait_for(lambda: hub.get("/users/ada").json()["servers"].get("", {}).get("ready"), 60, "the hub's look at it")


def test_the_proxy_does_not_hand_on_paths_that_read_two_ways(platform: Platform) -> None:
    with httpx.Client(trust_env=False, timeout=60) as http:
        for path in (
            "/services%2fcellwork/api/v1/batches",
            "/services/cellwork%5capi/v1/batches",
            "/services/cellwork/%00",
        ):
            assert http.get(platform.url + path).status_code == 400


def test_idle_servers_stop_themselves_only_when_that_is_set(tmp_path: Path) -> None:
    for seconds, expected in ((0, ["--x"]), (600, ["--x", "--ServerApp.shutdown_no_activity_timeout=600"])):
        c = Config()
        c.Spawner.args = ["--x"]
        set_culling(c, Settings(home=tmp_path, culling_idle_seconds=seconds), {})
        assert c.Spawner.args[: len(expected)] == expected
        assert (len(c.Spawner.args) == 1) == (seconds == 0)


def test_a_hub_without_servers_starts_whenever_idle_servers_were_to_stop(tmp_path: Path) -> None:
    c, settings = Config(), Settings(home=tmp_path, trust="team", culling_idle_seconds=600)
    refuse_servers(c)
    set_culling(c, settings, {})
    set_revocation(c, settings, {})
    told = NoServers(config=c).args
    assert "--ServerApp.shutdown_no_activity_timeout=600" in told
    assert "--HubOAuth.cache_max_age=30" in told


def test_a_pid_that_was_given_away_is_never_taken_for_a_server() -> None:
    spawner = AccountSpawner()
    spawner.load_state({"pid": os.getpid(), "created": processes.created(os.getpid()) - 1000})
    assert asyncio.run(spawner.poll()) == 0
    spawner.load_state({"pid": os.getpid(), "created": processes.created(os.getpid())})
    assert asyncio.run(spawner.poll()) is None
