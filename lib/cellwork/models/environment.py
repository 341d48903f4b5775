"""What a model needs installed: its own packages and all that they need, each with the version it was trained under."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

LOCK = "environment.lock"
HEAD = "# python "


def behind(types: Iterable[str], origins: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the installed distributions that `types` come from, by how their names begin."""
    from importlib import metadata

    names = list(types)
    used = [found for begin, found in origins.items() if any(name.startswith(begin) for name in names)]
    there = {
        distribution.name for found in used for name in found for distribution in metadata.distributions(name=name)
    }
    return sorted(there)


def lock(packages: Iterable[str]) -> str:
    """Return ``name==version`` lines of `packages` and of everything they need here, sorted, under a line with Python's version.

    What a package needs only for an extra, or on another system, is left out, as is what is not installed.
    """
    from importlib import metadata

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, str] = {}
    waiting = [canonicalize_name(name) for name in packages]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = installed.version
        needs = (Requirement(line) for line in installed.requires or [])
        waiting += [canonicalize_name(n.name) for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})]
    pins = (f"{name}=={found[name]}" for name in sorted(found))
    return "\n".join([f"{HEAD}{platform.python_version()}", *pins, ""])


def read(folder: Path) -> list[str]:
    """Return the lines of a model folder's lock, its comments left out; of one made before there were locks, MLflow's requirements."""
    there = [path for path in (folder / LOCK, folder / "requirements.txt") if path.is_file()]
    lines = there[0].read_text().splitlines() if there else []
    return [line for line in lines if line and not line.startswith("#")]


def python(folder: Path) -> str:
    """Return the version of Python that a model folder's lock names; empty if it has none."""
    try:
        first = (folder / LOCK).read_text().partition("\n")[0]
    except OSError:
        return ""
    return first.removeprefix(HEAD) if first.startswith(HEAD) else ""
