"""Versions and aliases of registered models, over MLflow's REST API: no MLflow import, a handful of milliseconds each.

MLflow forbids '/' in a model's name: `project/name` is `project.name` there, and only there. Aliases that carry traffic are set
by the platform service alone; MLflow's door refuses them to everybody else. Tags named `cellwork.*` are written when a version is made,
checked by that door, and never changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from cellwork import ids
from cellwork.client import Client
from cellwork.errors import BadInput, NotFound
from cellwork.models import tracking
from cellwork.wire import Struct
from cellwork.wire.datasets import Dataset
from cellwork.wire.evaluations import VersionRef

TAG = "cellwork."
MOST_VERSIONS = 2**31
"""What a database keeps as a version's number."""


class Version(Struct):
    """A registered version with its tags (`cellwork.` taken off their names)."""

    name: str
    version: int
    run: str
    """MLflow's id of the training run."""
    source: str
    at: datetime
    description: str = ""
    aliases: list[str] = []
    tags: dict[str, str] = {}

    @property
    def digest(self) -> str:
        return self.tags.get("digest", "")

    @property
    def ref(self) -> VersionRef:
        return VersionRef(name=self.name, version=self.version, digest=self.digest)

    @property
    def subject(self) -> str:
        """The version's id in lineage, events and audit."""
        return subject(self.name, self.version)


def about(dataset: Dataset) -> dict[str, str]:
    """Return the tags that say what a model was trained on; MLflow's door checks them against the dataset."""
    return {
        "dataset": dataset.id, "dataset_sha256": dataset.content_sha256, "observations": dataset.observations, "label": dataset.label,
        "features": msgspec.json.encode(dataset.features).decode(), "inputs": msgspec.json.encode(dataset.inputs).decode(),
    }  # fmt: skip


def subject(name: str, version: int) -> str:
    return f"{name}@{version}"


def mlflow_name(name: str) -> str:
    """Return ``project.name`` of the full name ``project/name``."""
    return ".".join(ids.split_name(name))


def parse(text: str) -> tuple[str, int]:
    """Return (full name, version) of ``project/name@3``."""
    name, at, number = text.partition("@")
    if not at or not number.isdecimal():
        raise BadInput("version", text, "is not written as a version", "write project/name@3")
    ids.split_name(name)
    return name, int(number)


def get(client: Client, name: str, version: int) -> Version:
    """Return one version; raises NotFound."""
    unknown = NotFound("model version", subject(name, version), "is not registered", "look at: cellwork model list")
    if version >= MOST_VERSIONS:
        raise unknown
    try:
        answer = tracking.get(client, "/model-versions/get", name=mlflow_name(name), version=version)
    except NotFound:
        raise unknown from None
    return _version(answer["model_version"])


def of_project(client: Client, project: str) -> list[Version]:
    """Return every version of every model of `project`, newest first."""
    found = [_version(row) for row in _search(client, "/model-versions/search", "model_versions", project)]
    named = aliases_of_project(client, project)
    for version in found:
        version.aliases = sorted(
            alias for alias, number in named.get(version.name, {}).items() if number == version.version
        )
    return sorted(found, key=lambda version: version.at, reverse=True)


def aliases_of_project(client: Client, project: str) -> dict[str, dict[str, int]]:
    """Return full name -> alias -> version, for the models of `project`."""
    rows = _search(client, "/registered-models/search", "registered_models", project)
    return {row["name"].replace(".", "/", 1): _aliases(row) for row in rows}


def _search(client: Client, path: str, key: str, project: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of `project`. MLflow's LIKE can't escape the '_' of a project's name, which is any character there."""
    start = f"{ids.name(project, 'project')}."
    rows = tracking.pages(client, path, key, filter=f"name LIKE '{start}%'", max_results=1000)
    return (row for row in rows if row["name"].startswith(start))


def aliases(client: Client, name: str) -> dict[str, int]:
    """Return alias -> version of the model `name`; raises NotFound."""
    try:
        return _aliases(tracking.get(client, "/registered-models/get", name=mlflow_name(name))["registered_model"])
    except NotFound:
        raise NotFound("model", name, "is not registered", "look at: cellwork model list") from None


def set_alias(client: Client, name: str, alias: str, version: int) -> None:
    body = {"name": mlflow_name(name), "alias": alias, "version": str(version)}
    tracking.send(client, "/registered-models/alias", body)


def delete_alias(client: Client, name: str, alias: str) -> None:
    """Take the alias away; raises NotFound if there is none."""
    tracking.send(client, "/registered-models/alias", {"name": mlflow_name(name), "alias": alias}, method="DELETE")


def create(client: Client, name: str, *, source: str, run: str, tags: Mapping[str, str], description: str = "") -> int:
    """Register a logged model (`source` is ``models:/<id>``) as the next version of `name` and return its number."""
    tracking.ensure_model(client, mlflow_name(name))
    body = {
        "name": mlflow_name(name), "source": source, "run_id": run, "model_id": source.removeprefix("models:/"),
        "tags": tracking.pairs(tags), "description": description,
    }  # fmt: skip
    return int(tracking.send(client, "/model-versions/create", body)["model_version"]["version"])


def artifact_path(client: Client, name: str, version: int) -> str:
    """Return the path of the version's folder in MLflow's artifact service."""
    query = {"name": mlflow_name(name), "version": version}
    return tracking.artifact_path(tracking.get(client, "/model-versions/get-download-uri", **query)["artifact_uri"])


def _aliases(row: dict[str, Any]) -> dict[str, int]:
    return {entry["alias"]: int(entry["version"]) for entry in row.get("aliases", [])}


def _version(row: dict[str, Any]) -> Version:
    tags = {tag["key"]: tag.get("value", "") for tag in row.get("tags", [])}
    return Version(
        name=row["name"].replace(".", "/", 1),
        version=int(row["version"]),
        run=row.get("run_id", ""),
        source=row.get("source", ""),
        at=datetime.fromtimestamp(row["creation_timestamp"] / 1000, UTC),
        description=row.get("description", ""),
        aliases=sorted(row.get("aliases", [])),
        tags={key.removeprefix(TAG): value for key, value in tags.items() if key.startswith(TAG)},
    )
