"""Where nbs/, scheduled/, images/ and constraints.txt are: in the checkout when there is one, else in the installed package."""

from __future__ import annotations

from pathlib import Path

from cellwork.errors import NotFound


def folder(name: str) -> Path:
    """Return the folder `name` ('nbs', 'scheduled' or 'images')."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "_assets" / name, package.parents[1] / name):
        if candidate.is_dir():
            return candidate
    raise NotFound("asset folder", name, "is neither in the package nor in a checkout", "install cellwork again")


def file(name: str) -> Path:
    """Return the file `name` ('constraints.txt')."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "_assets" / name, package.parents[1] / name):
        if candidate.is_file():
            return candidate
    raise NotFound("asset file", name, "is neither in the package nor in a checkout", "install cellwork again")
