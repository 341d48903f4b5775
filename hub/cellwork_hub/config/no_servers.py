"""`team` trust on a machine without a container engine: people log in, look at models and dashboards, and get no Jupyter server.

A server that is a process of the platform's account reads the platform's folder, and one shared other account would let
colleagues read each other's tokens. Neither keeps what `team` promises, so there is no third way to be chosen by mistake.
"""

from __future__ import annotations

from typing import Any, NoReturn

from jupyterhub.spawner import Spawner, SpawnException

VERDICT = "Servers need a container engine in team trust, and none answers here"
WAY_OUT = "an admin installs Docker or Podman and starts the platform again (cellwork doctor says what it finds)"


class NoServers(Spawner):  # type: ignore[misc]
    """Refuses every start with the reason; nothing of it ever runs."""

    async def start(self) -> NoReturn:
        raise SpawnException(f"{VERDICT}; {WAY_OUT}.", reason="no-container-engine", status_code=503)

    async def stop(self, now: bool = False) -> None:
        return None

    async def poll(self) -> int:
        return 0


def refuse_servers(c: Any) -> None:
    c.JupyterHub.spawner_class = NoServers
