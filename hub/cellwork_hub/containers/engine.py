"""The container engine: which one answers, and why none does. Nothing is started, pulled or changed here.

The setting `container_engine` names it: an address, `none` for local processes whatever answers, or empty for the first of
the usual sockets that answers. An address that was named must answer; one that was only guessed may be missing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellwork import clock
from cellwork.errors import CellworkError, Refused, Unavailable

if TYPE_CHECKING:
    import docker

log = logging.getLogger("cellwork")

NONE = "none"
PING_SECONDS = 3
REMOVE_SECONDS = 20
TROUBLE_SECONDS = 20.0
"""With one call more that is within what `cellwork down` waits."""
SOCKETS = ("/var/run/docker.sock", "/run/docker.sock", "/run/podman/podman.sock")
OWNER = "cellwork.home"
"""The label by which everything of ours in an engine is known: the platform's home it belongs to."""
HARDENED = {
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "pids_limit": 1024,
    "init": True,
    "auto_remove": False,  # what a server said last is still wanted after it died
    "log_config": {"type": "json-file", "config": {"max-size": "10m", "max-file": "2"}},
}
"""What every container that runs a user's code is made with; its limits on memory and cores come from a profile."""


@dataclass(frozen=True)
class Engine:
    """An engine that answered."""

    address: str
    version: str
    cpus: float
    memory: int
    """Bytes."""
    gpus: bool
    """Whether it can hand a GPU to a container, as far as it says."""

    def client(self, timeout: float = 60) -> docker.DockerClient:
        import docker

        return docker.DockerClient(base_url=self.address, timeout=timeout)

    @property
    def text(self) -> str:
        return f"{self.version} at {self.address} ({self.cpus:g} cores, {self.memory / 2**30:.0f} GB)"


def find(setting: str, environ: Mapping[str, str] = os.environ) -> tuple[Engine | None, str]:
    """Return the engine to use, or None and a sentence that says why there is none.

    Raises
    ------
    Refused, Unavailable
        `setting` names an engine that may not be used, or that does not answer.
    """
    if setting == NONE:
        return None, "containers are switched off (setting container_engine is 'none')"
    if setting:
        return connect(setting), ""
    reasons = []
    for address in _usual(environ):
        try:
            return connect(address), ""
        except CellworkError as error:
            reasons.append(str(error))
    return None, "; ".join(reasons) or "no container engine was found (no Docker or Podman socket)"


def _usual(environ: Mapping[str, str]) -> Iterator[str]:
    if environ.get("DOCKER_HOST"):
        yield environ["DOCKER_HOST"]
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    own = (f"{runtime}/docker.sock", f"{runtime}/podman/podman.sock") if runtime else ()
    there = {str(Path(path).resolve()): path for path in (*SOCKETS, *own) if Path(path).exists()}
    yield from (f"unix://{path}" for path in there.values())


def connect(address: str) -> Engine:
    """Return the engine at `address`; raises Refused (no permission) or Unavailable (no answer in seconds)."""
    try:
        import docker
    except ModuleNotFoundError:
        raise Unavailable(
            "extra", "containers", "is not installed (no module docker)", "run: pip install 'cellwork[containers]'"
        ) from None
    try:
        client = docker.DockerClient(base_url=address, timeout=PING_SECONDS)
        told: Mapping[str, Any] = client.info()
        client.close()
    except (docker.errors.DockerException, OSError) as error:
        raise reason(address, error) from None
    name = "Podman" if "podman" in str(told.get("BuildahVersion", "") or address) else "Docker"
    gpus = "nvidia" in told.get("Runtimes", {}) or (bool(told.get("CDISpecDirs")) and Path("/dev/nvidiactl").exists())
    return Engine(address, f"{name} {told['ServerVersion']}", float(told["NCPU"]), int(told["MemTotal"]), gpus)


def reason(address: str, error: Exception) -> CellworkError:
    """Return the error that names the cause, out of the chain that libraries wrap around it."""
    text = str(error)
    if "PermissionError" in text or "Permission denied" in text:
        return Refused(
            "container engine", address, "may not be used by this account (permission denied)",
            "add the account to the group that owns the socket (usually: usermod -aG docker NAME), then log in again",
        )  # fmt: skip
    causes = {
        "FileNotFoundError": "there is no such socket",
        "No such file": "there is no such socket",
        "ConnectionRefused": "nobody listens there",
        "Connection refused": "nobody listens there",
        "timed out": f"does not answer in {PING_SECONDS} s",
    }
    verdict = next((said for sign, said in causes.items() if sign in text), f"does not answer ({text[:200]})")
    return Unavailable(
        "container engine", address, verdict, "start it, or use local processes: CELLWORK_CONTAINER_ENGINE=none"
    )


def _remove(container: Any) -> bool:
    """Remove a container, and return whether it is gone: the log names one that the engine will not remove, or not in time.

    One that is gone, or is being removed by whoever started it, is none of ours.
    """
    import docker

    try:
        container.remove(force=True)
    except (docker.errors.DockerException, OSError) as error:
        if getattr(error, "status_code", 0) not in (404, 409):
            log.warning("container %s is left behind: %s", _name(container), _said(error))
            return False
    return True


def _said(error: Exception) -> str:
    """Return an engine's own words, or those of who did not reach it."""
    return str(getattr(error, "explanation", "") or error)


def _name(container: Any) -> str:
    """Return a container's name, or where a list told little of it, the first of its names."""
    return str(container.name or next(iter(container.attrs.get("Names") or ()), container.short_id)).lstrip("/")


def remove_all(engine: Engine, home: str) -> int:
    """Remove every container that belongs to the platform at `home`; volumes and networks stay. Return how many are gone.

    What the engine will not remove is left, and after TROUBLE_SECONDS of that what has not been tried yet.

    Raises
    ------
    Unavailable
        The engine does not say which there are.
    """
    import docker

    end, left = time.monotonic() + TROUBLE_SECONDS, 0
    with closing(engine.client(REMOVE_SECONDS)) as client:
        try:
            found = client.containers.list(all=True, sparse=True, filters={"label": f"{OWNER}={home}"})
        except (docker.errors.DockerException, OSError) as error:
            verdict = f"does not tell its containers ({_said(error)})"
            raise Unavailable("container engine", engine.address, verdict, "look at it: docker ps --all") from None
        for number, container in enumerate(found):
            if left and time.monotonic() > end:
                log.warning("%d more containers are left behind", len(found) - number)
                return number - left
            left += not _remove(container)
    return len(found) - left


def remove_ended(engine: Engine, label: str, seconds: float) -> None:
    """Remove containers with `label` that ended more than `seconds` ago: who would have removed them was killed."""
    client = engine.client()
    try:
        for container in client.containers.list(filters={"label": label, "status": "exited"}, ignore_removed=True):
            ended = datetime.fromisoformat(container.attrs["State"]["FinishedAt"][:19] + "+00:00")
            if (clock.now() - ended).total_seconds() > seconds:
                _remove(container)
    finally:
        client.close()
