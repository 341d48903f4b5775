"""User servers on a cluster: the values of the Zero-to-JupyterHub chart, made from the same profiles as the containers of one machine.

Only user servers: the services are told by address, and run where the operator puts them. The hub's groups decide who may have
which profile there too, by a hook that the chart runs in the hub.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cellwork import __version__
from cellwork.wire import PREFIX
from cellwork_hub import profiles
from cellwork_hub.profiles import Profile

CHART = "4"
"""The chart's major version these values are for."""
HOME_FOLDER = "/home/jovyan/work"


def values(
    menu: Iterable[Profile], *, url: str, registry: str, storage: str = "10Gi", idle_seconds: int = 0
) -> dict[str, Any]:
    """Return the chart's values for user servers of `menu`.

    Parameters
    ----------
    url : where the platform's services answer, as seen from a pod.
    registry : where our images were pushed to; empty leaves their names as they are on a machine.
    storage : the size of a user's volume.
    idle_seconds : when an idle server is stopped; 0 never.
    """
    chosen = list(menu)
    return {
        "hub": {"allowNamedServers": True, "concurrentSpawnLimit": 20, **_only_for_groups(chosen)},
        "singleuser": {
            **_server(chosen[0], registry),
            "profileList": profiles.for_kubernetes(chosen, registry=registry),
            "extraEnv": _environment(url),
            "storage": {"type": "dynamic", "capacity": storage, "homeMountPath": HOME_FOLDER},
        },
        "cull": {"enabled": idle_seconds > 0, **({"timeout": idle_seconds} if idle_seconds else {})},
    }


def _server(first: Profile, registry: str) -> dict[str, Any]:
    """Return what holds for every server; limits are those of the default profile."""
    image = profiles.kubernetes_image(first, registry)
    name, colon, tag = image.rpartition(":")
    return {
        "image": {"name": name if colon else image, "tag": tag if colon else __version__},
        "cmd": ["cellwork-server"],
        "defaultUrl": "/lab",
        "uid": 1000,
        "fsGid": 1000,
        "allowPrivilegeEscalation": False,
        "memory": {"limit": first.memory, "guarantee": first.memory_bytes // 2},
        "cpu": {"limit": first.cores, "guarantee": first.cores / 2},
        "networkPolicy": {"enabled": True},
        "cloudMetadata": {"blockWithIptables": True},
    }


def _environment(url: str) -> dict[str, str]:
    return {
        "CELLWORK_URL": url.rstrip("/"),
        "MLFLOW_TRACKING_URI": url.rstrip("/") + PREFIX["mlflow"],
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }


def _only_for_groups(menu: list[Profile]) -> dict[str, Any]:
    groups = {profile.name: profile.groups for profile in menu if profile.groups}
    return {"extraConfig": {"cellwork-profiles": hook(groups)}} if groups else {}


def hook(groups: dict[str, list[str]]) -> str:
    """Return what the chart runs in the hub: each user is offered the profiles of their groups."""
    return f"""
ONLY_FOR = {groups!r}
EVERY = list(c.KubeSpawner.profile_list)

def offered(spawner):
    mine = {{group.name.removeprefix("group:") for group in spawner.user.groups}}
    return [p for p in EVERY if not ONLY_FOR.get(p["slug"]) or mine & set(ONLY_FOR[p["slug"]])]

c.KubeSpawner.profile_list = offered
"""
