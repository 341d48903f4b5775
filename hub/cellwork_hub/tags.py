"""The tags `cellwork.*` in MLflow: what the gate and `why` go by. Authors write them once, when they make a run or a version.

Then they are held against the platform's own records: the dataset is one of the model's project and is what it is said to be, the
notebook run is the caller's, and the user is whoever calls. Afterwards nobody but the platform changes one, on anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import anyio

from cellwork import errors
from cellwork.client import Client
from cellwork.models import versions
from cellwork.wire.records import Principal
from cellwork_hub.bodies import decode
from cellwork_hub.gate import Asked
from cellwork_hub.route import Malformed

OURS = versions.TAG
MOST_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Door:
    """Who asks, and the platform's services, asked as MLflow's own."""

    principal: Principal
    services: Client


async def check_kept(asked: Asked, match: re.Match[str], door: Door) -> None:
    """Refuse what writes or removes a tag of ours."""
    values = decode(await asked.body(MOST_BYTES))
    names = [match.groupdict().get("key"), values.get("key"), *(name for name, _ in _tags(values))]
    for name in names:
        if isinstance(name, str) and _ours(name):
            raise errors.Refused(
                "tag", name, f"begins with {OURS!r}, which is the platform's to write", "choose another name for it"
            )


async def check_made(asked: Asked, match: re.Match[str], door: Door) -> None:
    """Let a new run or version carry tags of ours that are true, and say in them who made it."""
    values = decode(await asked.body(MOST_BYTES))
    tags = _tags(values)
    ours = {name.removeprefix(OURS): value for name, value in tags if _ours(name)}
    if not ours:
        return
    if len(ours) < sum(_ours(name) for name, _ in tags):
        raise Malformed("tags", OURS, "are given twice", "give each once")
    project = str(values.get("name", "")).partition(".")[0] if "model-versions" in asked.path else ""
    await anyio.to_thread.run_sync(_check, ours, project, door)
    others = [{"key": name, "value": value} for name, value in tags if not _ours(name)]
    said = {**ours, "user": door.principal.name}
    asked.rewrite({**values, "tags": others + [{"key": OURS + name, "value": said[name]} for name in said]})


def _check(ours: dict[str, str], project: str, door: Door) -> None:
    """Raise for the first of these tags (without their prefix) that is not true; `project` is the model's, if it is a version."""
    if "digest" in ours and not re.fullmatch(r"[0-9a-f]{64}", ours["digest"]):
        raise _untrue("digest", ours["digest"], "is no SHA-256 of a model folder")
    if "dataset" in ours:
        _check_dataset(ours, project, door)
    if "run" in ours:
        try:
            owner = door.services.jobs.run(ours["run"]).principal
        except (errors.NotFound, errors.BadInput):
            raise _untrue("run", ours["run"], "is no run of this platform") from None
        if owner != door.principal.name:
            raise _untrue("run", ours["run"], f"is a run of {owner!r}")


def _check_dataset(ours: dict[str, str], project: str, door: Door) -> None:
    try:
        found = door.services.datasets.get(ours["dataset"])
    except (errors.NotFound, errors.BadInput):
        raise _untrue("dataset", ours["dataset"], "is no dataset of this platform") from None
    if project and found.project != project:
        raise _untrue("dataset", found.id, f"is of project {found.project!r}, the model of {project!r}")
    for name, value in versions.about(found).items():
        if ours.get(name, value) != value:
            raise _untrue(name, ours[name][:100], f"is not what dataset {found.id} says ({value[:100]})")


def _untrue(name: str, value: str, verdict: str) -> errors.Refused:
    return errors.Refused(
        f"tag {OURS}{name}", value, verdict, "register with cellwork.models.registry.register, which writes it"
    )


def _tags(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Return name and value of each tag in a body; raises Malformed if they are not such."""
    tags = values.get("tags") or []
    whole = isinstance(tags, list) and all(isinstance(tag, dict) and isinstance(tag.get("key"), str) for tag in tags)
    if not whole or not all(isinstance(tag.get("value", ""), str) for tag in tags):
        raise Malformed("tags", "", "are not a list of keys and values", "use MLflow's client")
    return [(tag["key"], tag.get("value", "")) for tag in tags]


def _ours(name: str) -> bool:
    return name.strip().lower().startswith(OURS)
