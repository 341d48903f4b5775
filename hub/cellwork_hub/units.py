"""What the supervisor runs, as data: command, when it is ready, after what it starts. The order of the list is the order of stopping, reversed."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from cellwork.errors import NotFound, Unavailable
from cellwork.settings import Settings
from cellwork_hub import processes
from cellwork_hub.containers import way
from cellwork_hub.context import SERVICES

MODULES = {"cellwork": "cellwork_hub.platform"} | {
    name: f"cellwork_hub.{module}"
    for name, module in (
        ("mlflow", "tracking"),
        ("jobs", "jobs"),
        ("inference", "inference"),
        ("dashboards", "dashboards"),
    )
}
NEVER_HANDED_ON = ("CELLWORK_", "JUPYTERHUB_", "JPY_", "MLFLOW_", "PYTHONDONTWRITEBYTECODE")
"""Prefixes of variables that belong to whoever called `cellwork up`, perhaps a notebook of another platform."""
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


@dataclass(frozen=True)
class Unit:
    """One process. It is ready when every URL in `ready` answers 200; without any, when it has run for `settle` seconds."""

    name: str
    command: tuple[str, ...]
    ready: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    """What must answer, too, until everything was ready once; later it may be another unit's fault that it does not."""
    after: tuple[str, ...] = ()
    port: int = 0
    grace: float = 15.0
    """Seconds between SIGTERM and SIGKILL."""
    settle: float = 2.0


def platform_units(settings: Settings, ports: Mapping[str, int]) -> list[Unit]:
    """Return the services, the proxy, the hub (after all of them: it waits half a minute for one that is missing) and the runner."""
    public = f"http://{reachable(settings.host)}:{ports['public']}"
    units = [_service(name, ports[name]) for name in SERVICES]
    units = [
        replace(unit, grace=unit.grace + settings.drain_seconds) if unit.name == "inference" else unit for unit in units
    ]
    traefik = (program("traefik"), "--configfile", str(settings.folder.proxy() / "traefik.toml"))
    units.append(Unit("proxy", traefik, (f"http://127.0.0.1:{ports['proxy-api']}/ping",), port=ports["public"]))
    routes = tuple(f"{public}/services/{name}/health/live" for name in SERVICES)
    hub = (sys.executable, "-m", "jupyterhub", "-f", str(hub_config()))
    units.append(Unit("hub", hub, (f"{public}/hub/health",), routes, after=("proxy",), port=ports["hub"]))
    dashboards = (sys.executable, "-m", "cellwork_hub.voila")
    units.append(Unit("voila", dashboards, (f"http://127.0.0.1:{ports['dashboards']}/health/ready",), after=("hub",)))
    contained = way.known(settings.folder).kind == "containers"
    if (
        contained or settings.trust != "team"
    ):  # there, a run as a process of this account would read the platform's folder
        runner = f"cellwork_hub.jobs.runners.{'container' if contained else 'process'}"
        units.append(Unit("runner", (sys.executable, "-m", runner), after=("hub",)))
    return units


def _service(name: str, port: int) -> Unit:
    ready = (
        f"http://127.0.0.1:{port}/health/{'live' if name == 'dashboards' else 'ready'}",
    )  # Voila comes after the hub
    return Unit(name, (sys.executable, "-m", MODULES[name]), ready, port=port)


def hub_config() -> Path:
    """Return jupyterhub_config.py: of the installed package, else of the checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "jupyterhub_config.py", package.parent / "jupyterhub_config.py"):
        if candidate.is_file():
            return candidate
    raise NotFound(
        "file", "jupyterhub_config.py", "is neither in the package nor in a checkout", "install cellwork again"
    )


def program(name: str) -> str:
    """Return the path of a program that a wheel put beside the interpreter, or that is on the PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if not found:
        raise Unavailable("program", name, "is not installed", "run: pip install 'cellwork[all]'")
    return found


def reachable(host: str) -> str:
    """Return an address at which a server on `host` answers from this machine."""
    return "127.0.0.1" if host in ("", "0.0.0.0", "::") else host


def environment(settings: Settings, instance: str, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return what the children see: `base` without what belongs to the caller, and every setting as it was resolved here."""
    kept = {key: value for key, value in base.items() if not key.startswith(NEVER_HANDED_ON)}
    values = {f.name: getattr(settings, f.name) for f in fields(settings)}
    ours = {f"CELLWORK_{name.upper()}": str(value) for name, value in values.items() if value is not None}
    ours["CELLWORK_HOME"] = str(settings.home.absolute())
    return {**kept, **QUIET, **ours, processes.MARKER: instance}
