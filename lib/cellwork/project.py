"""A project: the folder with `cellwork.toml`; its name is the namespace of everything made in it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from cellwork import ids
from cellwork.errors import BadInput, NotFound, near_miss
from cellwork.wire.gate import Rules

FILE = "cellwork.toml"


@dataclass(frozen=True)
class Project:
    name: str
    folder: Path
    owner: str = ""
    contact: str = ""
    definitions: tuple[Path, ...] = ()
    """Python files with raw data sets, Feast objects and pipelines (`[features] paths`)."""
    gate: Rules = field(default_factory=Rules)
    """`[gate]`: what a version has to show before it may be champion."""

    def full_name(self, name: str) -> str:
        return f"{self.name}/{ids.name(name)}"


def find(start: Path | None = None) -> Project:
    """Return the project of the folder `start` (default: the current one) or of the nearest folder above it.

    Raises
    ------
    NotFound
        No folder on the way up holds a cellwork.toml with a `[project]`.
    BadInput
        It is not TOML or has no valid name.
    """
    start = (start or Path.cwd()).absolute()
    for folder in (start, *start.parents):
        if (folder / FILE).is_file():
            return read(folder)
    raise NotFound("project", start, f"has no {FILE} in it or above it", 'write one with: [project] name = "…"')


def read(folder: Path) -> Project:
    file = folder / FILE
    try:
        content = tomllib.loads(file.read_text())
    except tomllib.TOMLDecodeError as error:
        raise BadInput("project file", file, f"is not TOML: {error}", "mend it") from None
    about = content.get("project", {})
    if not about.get("name"):
        raise BadInput("project file", file, "has no name", 'add [project] name = "…"')
    paths = tuple(folder / path for path in content.get("features", {}).get("paths", ["definitions.py"]))
    owner, contact = about.get("owner", ""), about.get("contact", "")
    return Project(
        ids.name(about["name"], "project"), folder, owner, contact, paths, _rules(file, content.get("gate", {}))
    )


def _rules(file: Path, said: dict[str, Any]) -> Rules:
    """Return `[gate]`; raises BadInput for a word it does not have, or a value of the wrong kind."""
    for name in said:
        if name not in Rules.__struct_fields__:
            raise BadInput(f"[gate] of {file}", name, "is not known", near_miss(name, Rules.__struct_fields__))
    try:
        return msgspec.convert(said, Rules)
    except msgspec.ValidationError as error:
        raise BadInput("[gate] of", file, str(error), "mend it") from None
