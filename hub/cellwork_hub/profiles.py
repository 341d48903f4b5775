"""Profiles: what a user's server may take, and who may have it. One definition serves DockerSpawner and KubeSpawner.

The menu is CELLWORK_HOME/profiles.toml if it is there, else the three built in. The file is the whole menu; each table of it is
a profile, the first is the default.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from cellwork import __version__, ids
from cellwork.errors import BadInput, NotFound, Refused, near_miss
from cellwork.wire import Struct

SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT])")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
LEAST_MEMORY = 256 * 2**20
OURS = frozenset({"base", "cpu", "gpu", "jobs"})
"""Images that may be named short; any other name is the engine's or the cluster's own."""
EVERYBODY: tuple[str, ...] = ()


class Profile(Struct):
    name: str
    title: str
    memory: str
    """The limit, e.g. ``2G``."""
    cores: float
    image: str = "cpu"
    gpus: int = 0
    groups: list[str] = []
    """Who may use it; empty is everybody."""
    description: str = ""

    @property
    def memory_bytes(self) -> int:
        return parse_size(self.memory, f"memory of profile {self.name!r}")

    @property
    def full_image(self) -> str:
        """The image with its tag, as an engine knows it."""
        return f"cellwork/{self.image}:{__version__}" if self.image in OURS else self.image

    @property
    def text(self) -> str:
        """Say what a server of it gets."""
        gpus = f", {self.gpus} GPU" if self.gpus else ""
        return f"{self.cores:g} {'core' if self.cores == 1 else 'cores'}, {self.memory} memory{gpus}"


BUILT_IN = (
    Profile(name="cpu-small", title="Small", memory="2G", cores=1, description="Notebooks, features, small models."),
    Profile(name="cpu-large", title="Large", memory="8G", cores=4, description="Training on Dask with several workers."),
    Profile(name="gpu", title="GPU", memory="16G", cores=4, image="gpu", gpus=1, description="Deep learning with PyTorch."),
)  # fmt: skip


def load(path: Path) -> list[Profile]:
    """Return the menu that `path` defines, or the built-in one if there is no such file.

    Raises
    ------
    BadInput
        The file is not TOML, or a profile in it is not one; with the file, the profile and the field.
    """
    if not path.is_file():
        return list(BUILT_IN)
    try:
        tables = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise BadInput("profiles file", path, f"is not TOML: {error}", "mend it or remove it") from None
    if not tables:
        raise BadInput("profiles file", path, "has no profile", "remove it to get the built-in ones")
    return [_profile(name, table, path) for name, table in tables.items()]


def _profile(name: str, table: Any, path: Path) -> Profile:
    subject = f"profile {name!r} in {path}"
    ids.name(name, "profile")
    if not isinstance(table, Mapping):
        raise BadInput(subject, table, "is not a table", f"write [{name}] and its fields below")
    if unknown := set(table) - set(Profile.__struct_fields__) or {"name"} & set(table):
        raise BadInput(
            f"field in {subject}", min(unknown), "is unknown", near_miss(min(unknown), Profile.__struct_fields__)
        )
    try:
        found = msgspec.convert({"title": name, **table, "name": name}, Profile)
    except msgspec.ValidationError as error:
        raise BadInput(subject, "", f"is not a profile: {error}", 'e.g. memory = "2G", cores = 1') from None
    if found.memory_bytes < LEAST_MEMORY:
        raise BadInput(f"memory of {subject}", found.memory, "is too little for a server", "give it at least 256M")
    if not (found.cores > 0 and math.isfinite(found.cores)) or found.gpus < 0:
        raise BadInput(subject, f"{found.cores} cores, {found.gpus} GPUs", "is not a machine", "cores > 0, gpus >= 0")
    return found


def parse_size(text: str, subject: str = "size") -> int:
    """Return the bytes of ``2G``, ``512M``; units are powers of 1024."""
    found = SIZE.fullmatch(text)
    if not found:
        raise BadInput(subject, text, "is not a size", "write a number and K, M, G or T, e.g. 2G")
    return int(float(found[1]) * UNITS[found[2]])


def choose(menu: Iterable[Profile], name: str, groups: Collection[str] | None) -> Profile:
    """Return the profile `name` (empty: the first that is allowed) for a member of `groups`; None may have all.

    Raises
    ------
    NotFound
        There is no such profile.
    Refused
        It is not for this user.
    """
    everything = list(menu)
    open_to = allowed(everything, groups)
    if not name:
        if not open_to:
            raise Refused("profiles", "", "none is for you", "ask an admin for a group that has one")
        return open_to[0]
    found = next((profile for profile in everything if profile.name == name), None)
    if found is None:
        raise NotFound("profile", name, "is not on the menu", near_miss(name, (p.name for p in open_to)))
    if found not in open_to:
        raise Refused("profile", name, f"is for {' or '.join(found.groups)} only", "ask an admin for that group")
    return found


def allowed(menu: Iterable[Profile], groups: Collection[str] | None) -> list[Profile]:
    return [p for p in menu if groups is None or not p.groups or set(p.groups) & set(groups)]


def for_kubernetes(menu: Iterable[Profile], *, registry: str = "") -> list[dict[str, Any]]:
    """Return the menu as KubeSpawner's `profile_list`; memory and cores are guaranteed by half. `registry` goes before our images."""
    return [
        {
            "display_name": profile.title,
            "description": f"{profile.description} {profile.text}".strip(),
            "slug": profile.name,
            "default": number == 0,
            "kubespawner_override": _override(profile, registry),
        }
        for number, profile in enumerate(menu)
    ]


def kubernetes_image(profile: Profile, registry: str) -> str:
    """Return the image of `profile` as a cluster pulls it."""
    ours = registry and profile.image in OURS
    return f"{registry.rstrip('/')}/{profile.full_image}" if ours else profile.full_image


def _override(profile: Profile, registry: str) -> dict[str, Any]:
    override: dict[str, Any] = {
        "image": kubernetes_image(profile, registry),
        "mem_limit": profile.memory,
        "mem_guarantee": profile.memory_bytes // 2,
        "cpu_limit": profile.cores,
        "cpu_guarantee": profile.cores / 2,
    }
    if profile.gpus:
        override["extra_resource_limits"] = {"nvidia.com/gpu": str(profile.gpus)}
    return override


def as_toml(menu: Iterable[Profile]) -> str:
    """Return the menu as the file that would define it."""
    return "\n".join(f"[{profile.name}]\n{_fields(profile)}" for profile in menu)


def _fields(profile: Profile) -> str:
    values = msgspec.to_builtins(profile)
    return "".join(f"{key} = {msgspec.json.encode(value).decode()}\n" for key, value in values.items() if key != "name")
