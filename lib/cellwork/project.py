"""A project: the folder with `cellwork.toml`; its name is the namespace of everything made in it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from cellwork import ids
from cellwork.errors import BadInput, NotFound

FILE = "cellwork.toml"


@dataclass(frozen=True)
class Project:
    name: str
    folder: Path
    owner: str = ""
    contact: str = ""
    definitions: tuple[Path, ...] = ()
    """Python files with raw data sets, Feast objects and pipelines (`[features] paths`)."""

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
    return Project(ids.name(about["name"], "project"), folder, about.get("owner", ""), about.get("contact", ""), paths)
