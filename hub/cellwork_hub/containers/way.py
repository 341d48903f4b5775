"""How user servers run: in containers when an engine answers and there is an image, else as local processes, and it is said which.

It is decided once, when the platform starts, and written down; whatever starts later (a hub after a crash) goes by that. The
network of the containers belongs to one home: its members can't reach each other, and the platform has one door in it, the
public proxy, on the network's own address of this machine. A closed network has no way out of this machine; the hub then reaches
a server at its address in there, because the engine publishes no port of it.
"""

from __future__ import annotations

import hashlib
import logging
import socket
from typing import Any, Literal

import msgspec

from cellwork import files
from cellwork.errors import CellworkError, Unavailable
from cellwork.home import Home
from cellwork.settings import Settings
from cellwork.wire import Struct
from cellwork_hub import profiles
from cellwork_hub.containers import engine as engines
from cellwork_hub.containers import images
from cellwork_hub.containers.engine import OWNER, Engine

log = logging.getLogger("cellwork")

RUN_IMAGES = ("jobs", "cpu")
"""What a run executes in that was scheduled from no container: the first that is there, then the first profile's image."""


class Way(Struct):
    """`door` is the address of this machine in the containers' network."""

    kind: Literal["containers", "processes", "none"]
    text: str
    """For people: what it is, or why it is not containers."""
    engine: str = ""
    network: str = ""
    door: str = ""
    cores: float = 0
    gpus: bool = False
    closed: bool = False


def decide(settings: Settings) -> Way:
    """Return how user servers of this start run, make what it needs, and write it down.

    Raises
    ------
    Refused, Unavailable
        The setting `container_engine` names an engine that may not be used or does not answer.
    """
    way = _decide(settings)
    files.write(settings.folder.servers(), msgspec.json.encode(way), mode=0o600)
    return way


def known(home: Home) -> Way:
    """Return what was decided at the last start."""
    try:
        return msgspec.json.decode(home.servers().read_bytes(), type=Way)
    except (OSError, msgspec.MsgspecError):
        return Way(kind="processes", text="local processes")


def look(settings: Settings) -> Way:
    """Return how user servers would run if the platform started now; makes nothing."""
    found, why = engines.find(settings.container_engine)
    if found is None:
        return _without(settings, why)
    if not found.address.startswith("unix://"):
        return _without(
            settings, f"the engine at {found.address} is on another machine, where servers can't reach this one"
        )
    first = profiles.load(settings.folder.profiles())[0]
    chosen_by_hand = settings.container_engine or settings.trust == "team"
    if not chosen_by_hand and images.look(found, settings.folder, first.image) is None:
        return _without(
            settings, f"{found.version} answers, but there is no image yet (cellwork image build {first.image})"
        )
    closed = settings.server_network == "closed" or (settings.server_network == "auto" and settings.trust == "team")
    reach = "they reach the platform and nothing else" if closed else "they reach what this machine reaches"
    return Way(
        kind="containers", text=f"containers, {found.text}; {reach}", engine=found.address,
        network=network_name(settings.folder, closed=closed), cores=found.cpus, gpus=found.gpus, closed=closed,
    )  # fmt: skip


def image_of_runs(engine: Engine, home: Home) -> images.Image | None:
    """Return the image of a run that was scheduled from no container, or None if there is none for it yet."""
    names = (*RUN_IMAGES, profiles.load(home.profiles())[0].image)
    return next((found for name in names if (found := images.look(engine, home, name))), None)


def _without(settings: Settings, why: str) -> Way:
    if settings.trust == "team":
        return Way(kind="none", text=f"none: {why}; in team trust servers need containers")
    return Way(kind="processes", text=f"local processes, no limits enforced: {why}")


def _decide(settings: Settings) -> Way:
    way = look(settings)
    if way.kind != "containers":
        return way
    door = ensure_network(engines.connect(way.engine), settings.folder, closed=way.closed)
    if not _is_ours(door):
        why = f"the containers' network has its gateway {door} on another machine"
        return _without(settings, why)
    return msgspec.structs.replace(way, door=door)


def label(home: Home) -> str:
    return str(home.root.absolute())


def prefix(home: Home) -> str:
    """Return what the names of everything of this home in an engine begin with."""
    return f"cellwork-{hashlib.sha256(label(home).encode()).hexdigest()[:8]}"


def network_name(home: Home, *, closed: bool = False) -> str:
    return f"{prefix(home)}-closed" if closed else prefix(home)


def ensure_network(engine: Engine, home: Home, *, closed: bool = False) -> str:
    """Make the network of this home's containers, if it is not there; return this machine's address in it."""
    import docker

    client = engine.client()
    name = network_name(home, closed=closed)
    try:
        network = client.networks.get(name)
    except docker.errors.NotFound:
        network = client.networks.create(
            name,
            driver="bridge",
            check_duplicate=True,
            internal=closed,
            labels={OWNER: label(home)},
            options={"com.docker.network.bridge.enable_icc": "false"},
        )
        network.reload()
    told: dict[str, Any] = network.attrs
    client.close()
    gateways = [pool.get("Gateway", "").partition("/")[0] for pool in told["IPAM"]["Config"] or []]
    found = next((gateway for gateway in gateways if "." in gateway), "")
    if not found:
        raise Unavailable("network", name, "has no gateway", f"remove it: docker network rm {name}")
    return found


def _is_ours(address: str) -> bool:
    """Whether this machine has `address`; on a desktop's engine the network lies in a virtual machine."""
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def end_all(home: Home) -> int:
    """Remove the containers of this home, of this start and of earlier ones; return how many there were."""
    way = known(home)
    if way.kind != "containers":
        return 0
    try:
        return engines.remove_all(engines.connect(way.engine), label(home))
    except CellworkError as error:
        log.warning("containers of user servers may be left behind: %s", error)
        return 0
