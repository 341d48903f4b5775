"""What a machine and an installation need, each with its way out. Looks only; changes nothing but a probe file."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from typing import Literal

import psutil

from cellwork.errors import CellworkError, Refused, Unavailable
from cellwork.settings import Settings
from cellwork.wire import Struct
from cellwork_hub import preparation, profiles, supervisor
from cellwork_hub.containers import images, way
from cellwork_hub.containers.engine import Engine
from cellwork_hub.units import program

EXTRAS = {
    "hub": (
        "jupyterhub",
        "jupyterhub_traefik_proxy",
        "mlflow",
        "voila",
        "uvicorn",
        "starlette",
        "sqlalchemy",
        "duckdb",
        "websockets",
    ),
    "jupyter": ("jupyterlab", "ipykernel", "ipywidgets", "dask", "feast", "sklearn", "skops"),
    "jobs": ("papermill",),
}
MOST_CACHE_SECONDS = 45
"""With the hub's own refresh it keeps what was revoked alive for less than a minute."""
EVERY_ADDRESS = ("0.0.0.0", "::")
MEMORY_GB, DISK_GB = 2.5, 2.0
TESTED = ((3, 11), (3, 12), (3, 13))


class Check(Struct):
    name: str
    verdict: Literal["ok", "optional", "missing"]
    found: str
    way_out: str = ""


def can_start(chosen: Settings) -> None:
    """Raise what forbids a start: a missing extra, a folder that can't be written, a taken port, a trust without a login."""
    for extra, modules in EXTRAS.items():
        for module in modules:
            if importlib.util.find_spec(module) is None:
                raise Unavailable(
                    "extra", extra, f"is not installed (no module {module})", "run: pip install 'cellwork[all]'"
                )
    program("traefik")
    chosen.folder.ensure()
    if chosen.trust == "team":
        can_start_team(chosen)
    preparation.one_user(chosen)
    preparation.public_port(chosen, preparation.known_ports(chosen.folder).get("public", 0))


def can_start_team(chosen: Settings) -> None:
    """Raise Refused or BadInput for what breaks the promises of `team` trust."""
    from cellwork_hub.config.logins import check_login

    check_login(chosen)
    if chosen.token_cache_seconds > MOST_CACHE_SECONDS:
        raise Refused(
            "setting token_cache_seconds",
            chosen.token_cache_seconds,
            "keeps a revoked token alive too long for team trust",
            f"set it to at most {MOST_CACHE_SECONDS}",
        )


def examine(chosen: Settings) -> list[Check]:
    """Return every check; `missing` forbids something the platform promises, `optional` narrows it."""
    return [
        _python(),
        *_extras(),
        _proxy(),
        _home(chosen),
        _port(chosen),
        _memory(),
        _disk(chosen),
        *_servers(chosen),
        *_programs(),
    ]


def _python() -> Check:
    version = platform.python_version()
    if sys.version_info[:2] in TESTED:
        return Check(name="Python", verdict="ok", found=version)
    return Check(name="Python", verdict="optional", found=version, way_out="3.11 to 3.13 are tested")


def _extras() -> list[Check]:
    rows = []
    for extra, modules in EXTRAS.items():
        lacking = [module for module in modules if importlib.util.find_spec(module) is None]
        rows.append(
            Check(
                name=f"extra {extra}",
                verdict="missing",
                found=f"no {', '.join(lacking)}",
                way_out=f"run: pip install 'cellwork[{extra}]'",
            )
            if lacking
            else Check(name=f"extra {extra}", verdict="ok", found="installed")
        )
    return rows


def _proxy() -> Check:
    try:
        return Check(name="proxy", verdict="ok", found=program("traefik"))
    except Unavailable as error:
        return Check(name="proxy", verdict="missing", found="no traefik", way_out=error.way_out)


def _home(chosen: Settings) -> Check:
    try:
        chosen.folder.ensure()
    except Refused as error:
        return Check(name="home", verdict="missing", found=f"{chosen.home} {error.verdict}", way_out=error.way_out)
    return Check(name="home", verdict="ok", found=str(chosen.home))


def _port(chosen: Settings) -> Check:
    if board := supervisor.running(chosen.folder):
        return Check(name="port", verdict="ok", found=f"{board.port}, the platform runs there")
    try:
        return Check(name="port", verdict="ok", found=f"{preparation.public_port(chosen, 0)} is free")
    except CellworkError as error:
        return Check(name="port", verdict="missing", found=f"{chosen.port} {error.verdict}", way_out=error.way_out)


def _memory() -> Check:
    free = psutil.virtual_memory().available / 1e9
    if free >= MEMORY_GB:
        return Check(name="memory", verdict="ok", found=f"{free:.1f} GB free")
    return Check(
        name="memory",
        verdict="missing",
        found=f"{free:.1f} GB free",
        way_out=f"free {MEMORY_GB} GB for the platform with one user",
    )


def _disk(chosen: Settings) -> Check:
    folder = next(path for path in (chosen.home, *chosen.home.parents) if path.exists())
    free = shutil.disk_usage(folder).free / 1e9
    if free >= DISK_GB:
        return Check(name="disk", verdict="ok", found=f"{free:.0f} GB free at {folder}")
    return Check(
        name="disk",
        verdict="missing",
        found=f"{free:.1f} GB free at {folder}",
        way_out=f"free {DISK_GB:.0f} GB or set CELLWORK_HOME",
    )


def _servers(chosen: Settings) -> list[Check]:
    """How user servers would run if the platform started now, and whether their image is there."""
    try:
        found = way.look(chosen)
    except CellworkError as error:
        return [Check(name="user servers", verdict="missing", found=str(error), way_out=error.way_out)]
    return [_way(found), *([_image(chosen, found)] if found.kind == "containers" else [])]


def _way(found: way.Way) -> Check:
    if found.kind == "containers":
        others = ", ".join(sorted(_open_to_containers()))
        if not others or not found.closed:
            return Check(name="user servers", verdict="ok", found=found.text)
        way_out = "let them listen at one address, or close them to the containers' network in the firewall"
        return Check(name="user servers", verdict="optional", found=f"{found.text} but what listens at every address of this machine: {others}", way_out=way_out)  # fmt: skip
    verdict: Literal["optional", "missing"] = "missing" if found.kind == "none" else "optional"
    way_out = "for limits and isolation: start Docker or Podman, then cellwork image build cpu"
    return Check(name="user servers", verdict=verdict, found=found.text, way_out=way_out)


def _image(chosen: Settings, found: way.Way) -> Check:
    """Look for the image that servers start from unless another is asked for; of runs without any, it is the last resort."""
    import docker

    engine, home = Engine(found.engine, "", 0, 0, False), chosen.folder
    wanted = profiles.load(home.profiles())[0].image
    try:
        if images.look(engine, home, wanted):
            return Check(name="images", verdict="ok", found=wanted)
        waiting = "" if way.image_of_runs(engine, home) else ", and runs wait for it"
    except (CellworkError, docker.errors.DockerException, OSError) as error:
        way_out = "look at the engine: docker image ls"
        return Check(name="images", verdict="missing", found=f"the engine does not tell: {error}", way_out=way_out)
    if wanted in profiles.OURS:
        text = f"no {wanted}: no server of the first profile starts{waiting}"
        return Check(name="images", verdict="missing", found=text, way_out=f"run: cellwork image build {wanted}")
    text = f"{wanted} is not here: the first start of a server pulls it{waiting}"
    return Check(name="images", verdict="optional", found=text, way_out=f"run: docker pull {wanted}")


def _open_to_containers() -> set[str]:
    """Return program and port of what listens at every address of this machine, the containers' network's too."""
    try:
        found = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return {"what only an admin of it sees"}
    listening = [c for c in found if c.status == psutil.CONN_LISTEN and c.laddr.ip in EVERY_ADDRESS]
    return {f"{preparation.holder(c.laddr.port)} at port {c.laddr.port}" for c in listening}


def _programs() -> list[Check]:
    """What only some tests or ways of running need."""
    wanted = {
        "chromium": (("chromium", "chromium-browser", "google-chrome"), "browser tests are skipped without it"),
        "redis": (("redis-server",), "the Redis online store is tested only with it"),
    }
    rows = []
    for name, (programs, text) in wanted.items():
        found = next((path for p in programs if (path := shutil.which(p))), "")
        verdict: Literal["ok", "optional"] = "ok" if found and os.access(found, os.X_OK) else "optional"
        rows.append(Check(name=name, verdict=verdict, found=found or "not found", way_out="" if found else text))
    return rows
