"""Where versions come from: the platform's gate, the registry's files, the project's definitions."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cellwork.client import Client
from cellwork.errors import NotFound, Refused
from cellwork.models import package, wheels
from cellwork.models.package import Manifest
from cellwork.wire.evaluations import VersionRef
from cellwork.wire.features import Definitions
from cellwork.wire.gate import Gate

_copying = threading.Lock()


@dataclass(frozen=True)
class Copy:
    """A version's files on this machine."""

    folder: Path
    manifest: Manifest


class Registry(Protocol):
    def gate(self, name: str, version: int, promoter: str) -> Gate:
        """Return the gate's list for a version, where `promoter` brings it to traffic, if named."""

    def fetch(self, ref: VersionRef, folder: Path) -> None:
        """Make `folder` the files of `ref`, checked against its digest."""

    def definitions(self, project: str) -> Definitions | None:
        """Return the project's feature definitions, or None if it has none."""


class PlatformRegistry:
    """The platform service and MLflow, asked with the inference service's own token."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def gate(self, name: str, version: int, promoter: str) -> Gate:
        return self.client.gate.check(name, version, promoter)

    def fetch(self, ref: VersionRef, folder: Path) -> None:
        package.download(self.client, ref.name, ref.version, folder)

    def definitions(self, project: str) -> Definitions | None:
        try:
            return self.client.features.definitions(project)
        except NotFound:
            return None


def copy(registry: Registry, ref: VersionRef, models: Path, *, passed: bool = True) -> Copy:
    """Return the copy of `ref`, which has `passed` the gate, under `models`, named by its digest; a copy that has changed is made again.

    The code it brings was trusted by somebody, as one of the gate's lines says: the word is laid beside the copy.

    Raises
    ------
    Refused
        It has no digest.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", ref.digest):
        raise Refused(f"version {ref.name}@{ref.version}", ref.digest, "has no content digest", "register it again")
    folder = models / ref.digest
    with _copying:
        if not folder.is_dir() or package.digest(folder) != ref.digest:
            registry.fetch(ref, folder)
    manifest = package.read(folder)
    if manifest.wheels and not passed:
        subject = f"version {ref.name}@{ref.version}"
        raise Refused(subject, "", "brings code of its own and has not passed the gate", "let somebody trust it first")
    if manifest.wheels:
        wheels.trust(folder, manifest.wheels, "the gate")
    return Copy(folder, manifest)
