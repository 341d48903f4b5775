"""Where versions come from: the platform's gate, the registry's files, the project's definitions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import polars as pl
from cellwork.client import Client
from cellwork.errors import BadInput, NotFound, Refused
from cellwork.models import package, sandbox
from cellwork.models.package import Manifest
from cellwork.wire.evaluations import Gate, VersionRef
from cellwork.wire.features import Definitions

TYPES: dict[str, pl.DataType] = {"number": pl.Float64(), "flag": pl.Boolean(), "text": pl.String()}


@dataclass(frozen=True)
class Copy:
    """A version's files on this machine, and its example rows' scores in a clean process."""

    folder: Path
    manifest: Manifest
    expected: list[float]


class Registry(Protocol):
    def gate(self, name: str, version: int) -> Gate:
        """Return the gate's list for a version."""

    def fetch(self, ref: VersionRef, folder: Path) -> None:
        """Make `folder` the files of `ref`, checked against its digest."""

    def definitions(self, project: str) -> Definitions | None:
        """Return the project's feature definitions, or None if it has none."""


class PlatformRegistry:
    """The platform service and MLflow, asked with the inference service's own token."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def gate(self, name: str, version: int) -> Gate:
        return self.client.evaluations.gate(name, version)

    def fetch(self, ref: VersionRef, folder: Path) -> None:
        package.download(self.client, ref.name, ref.version, folder)

    def definitions(self, project: str) -> Definitions | None:
        try:
            return self.client.features.definitions(project)
        except NotFound:
            return None


def copy(registry: Registry, ref: VersionRef, models: Path) -> Copy:
    """Return the copy of `ref` under `models`, named by its digest; a copy that has changed is made again.

    Raises
    ------
    Refused
        It has no digest, or does not score its own example.
    """
    if not re.fullmatch(r"[0-9a-f]{64}", ref.digest):
        raise Refused(f"version {ref.name}@{ref.version}", ref.digest, "has no content digest", "register it again")
    folder = models / ref.digest
    if not folder.is_dir() or package.digest(folder) != ref.digest:
        registry.fetch(ref, folder)
    manifest = package.read(folder)
    example = pl.DataFrame(manifest.example, schema={c.name: TYPES[c.kind] for c in manifest.columns}, strict=False)
    try:
        return Copy(folder, manifest, sandbox.score(folder, example, timeout=60).tolist())
    except BadInput as error:
        raise Refused(f"version {ref.name}@{ref.version}", error.value, error.verdict, error.way_out) from None
