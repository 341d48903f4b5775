"""User servers: containers where an engine answers (see `containers`), else, in `personal` trust only, processes of the account that runs the platform, in the user's workspace.

The server's own hub token is what its notebooks call the services with; CELLWORK_HOME is not theirs to know.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from jupyterhub.spawner import LocalProcessSpawner

from cellwork import assets
from cellwork.errors import NotFound
from cellwork.settings import Settings
from cellwork.wire import PREFIX
from cellwork_hub import processes
from cellwork_hub.config.no_servers import refuse_servers
from cellwork_hub.config.sharing import become_dashboard
from cellwork_hub.containers import way
from cellwork_hub.units import reachable

ARGUMENTS = (
    "--LabApp.extension_manager=readonly",
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--SchedulerApp.scheduler_class=cellwork_jupyter.server.scheduler.CellworkScheduler",
    "--SchedulerApp.environment_manager_class=cellwork_jupyter.server.environments.CellworkEnvironments",
    "--SchedulerApp.db_url=sqlite://",
)

LOOK_SECONDS = 5
"""How often the hub looks whether a server still runs: a look is a signal to a process."""


class AccountSpawner(LocalProcessSpawner):  # type: ignore[misc]
    """Runs every server as the account of the hub. A server is named by pid and start time: a pid given away is never touched."""

    created = 0.0

    def make_preexec_fn(self, name: str) -> None:
        return None

    def user_env(self, env: dict[str, str]) -> dict[str, str]:
        kept = {
            key: os.environ[key]
            for key in ("HOME", "USER", "SHELL", "TMPDIR", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
            if key in os.environ
        }
        return {**env, **kept}

    async def start(self) -> tuple[str, int]:
        where: tuple[str, int] = await super().start()
        self.created = processes.created(self.pid)
        return where

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "created": self.created}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.created = state.get("created", 0.0)

    async def _signal(self, sig: int) -> bool:
        return processes.alive(self.pid, self.created) and await super()._signal(sig)


def set_spawner(c: Any, settings: Settings, ports: dict[str, int]) -> None:
    chosen = way.known(settings.folder)
    if chosen.kind == "containers":
        from cellwork_hub.config.containers import set_containers

        set_containers(c, settings, ports, chosen)
        return
    if settings.trust == "team":
        refuse_servers(c)
        return
    workspace = settings.workspace or settings.folder.workspace()
    workspace.mkdir(parents=True, exist_ok=True)
    url = f"http://{reachable(settings.host)}:{ports['public']}"
    c.JupyterHub.spawner_class = AccountSpawner
    c.Spawner.cmd = [sys.executable, "-P", "-m", "cellwork_jupyter.singleuser"]
    c.Spawner.args = [*ARGUMENTS, *(["--allow-root"] if os.geteuid() == 0 else [])]
    c.Spawner.default_url = "/lab"
    c.Spawner.notebook_dir = str(workspace)
    c.Spawner.start_timeout = c.Spawner.http_timeout = settings.ready_seconds
    c.Spawner.poll_interval = LOOK_SECONDS
    c.LocalProcessSpawner.popen_kwargs = {"cwd": str(workspace)}
    c.LocalProcessSpawner.interrupt_timeout = c.LocalProcessSpawner.term_timeout = 10
    c.Spawner.environment = environment(settings, url)
    c.Spawner.pre_spawn_hook = prepare_server(workspace)


def environment(settings: Settings, url: str) -> dict[str, str]:
    """Return what every user server sees; the token comes with each start."""
    jupyter = settings.folder.jupyter()
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}",
        "CELLWORK_URL": url,
        "MLFLOW_TRACKING_URI": url + PREFIX["mlflow"],
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "JUPYTER_RUNTIME_DIR": str(jupyter / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(jupyter / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(jupyter / "workspaces"),
        "IPYTHONDIR": str(jupyter / "ipython"),
        processes.MARKER: os.environ.get(processes.MARKER, ""),
    }


def prepare_server(workspace: Path) -> Any:
    """Return the hook before each start: the server's token for its notebooks, and the tutorials where there are none yet."""

    def prepare(spawner: Any) -> None:
        become_dashboard(spawner, sys.executable)
        token = spawner.api_token
        spawner.environment = {
            **spawner.environment,
            "CELLWORK_TOKEN": token,
            "MLFLOW_TRACKING_TOKEN": token,
            "CELLWORK_USER": spawner.user.name,
        }
        copy_tutorials(workspace)

    return prepare


def copy_tutorials(workspace: Path) -> None:
    """Copy the tutorials into `workspace`; once there they are the user's, and nothing is written over."""
    target = workspace / "tutorials"
    if target.exists():
        return
    try:
        source = assets.folder("nbs") / "tutorials"
    except NotFound:
        return
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*", "__pycache__"))
