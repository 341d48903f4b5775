"""Features, for authors: what a definitions file is made of, and the calls that apply and read it.

A definitions file holds Feast's own `Entity`, `FeatureView` and `FeatureService` beside the records here; a view's
source is `cellwork.features.feast.PipelineSource`. Importing this package stays light; Feast is loaded by `apply` only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cellwork import project as projects
from cellwork.client import Client, connect
from cellwork.project import Project
from cellwork.wire.batches import RawDataset, Seal
from cellwork.wire.features import (
    Aggregate,
    Applied,
    Label,
    Observations,
    OnlineAnswer,
    Prepared,
    Rolling,
    Select,
    View,
)
from cellwork.wire.search import Twin

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "Aggregate",
    "Label",
    "Observations",
    "Prepared",
    "RawDataset",
    "Rolling",
    "Seal",
    "Select",
    "apply",
    "labels",
    "near_duplicates",
    "read_online",
    "rows",
    "views",
    "wait",
]


def apply(project: Project | None = None, client: Client | None = None) -> Applied:
    """Send the project's raw data sets and definitions; what was applied before and is the same changes nothing.

    Parameters
    ----------
    project : default the project of the current folder.
    client : default the platform this process reaches.

    Raises
    ------
    BadInput, NotFound
        A definitions file fails, or names something that is not there; the message has the near miss.
    """
    from cellwork.features import define

    project, client = project or projects.find(), client or connect()
    datasets, definitions = define.load(project)
    for dataset in datasets:
        client.batches.declare(project.name, dataset)
    return client.features.apply(definitions)


def wait(
    project: str = "",
    *,
    timeout: float = 300,
    progress: Callable[[str], None] | None = print,
    client: Client | None = None,
) -> None:
    """Return when every pipeline run of `project` (default: the current folder's) is done.

    `progress` gets a line when the number of open runs has changed, at most one a second, and one at the end.

    Raises
    ------
    Unavailable
        They took longer than `timeout` seconds.
    Conflict
        A pipeline run failed.
    """
    shown, at = 0, 0.0

    def tell(pending: int) -> None:
        nonlocal shown, at
        if progress is None or pending == shown:
            return
        if pending == 0 or time.monotonic() - at >= 1:
            progress(f"feature pipelines: {pending} runs to go" if pending else "feature pipelines: done")
            shown, at = pending, time.monotonic()

    (client or connect()).features.wait(project or projects.find().name, timeout=timeout, progress=tell)


def near_duplicates(applied: Applied, *, client: Client | None = None) -> list[Twin]:
    """Return features elsewhere that those of the views just applied nearly repeat: by definition, and by values where there are rows."""
    client = client or connect()
    changed = [name.removeprefix("view:") for name in applied.changed if name.startswith("view:")]
    return [twin for view in changed for twin in client.search.twins(applied.project, view)]


def labels(project: str = "", *, client: Client | None = None) -> list[Label]:
    """Return the labels that are applied in `project`."""
    return (client or connect()).features.definitions(project or projects.find().name).labels


def views(project: str = "", *, client: Client | None = None) -> list[View]:
    """Return the feature views that are applied in `project`."""
    return (client or connect()).features.definitions(project or projects.find().name).views


def rows(view: str, project: str = "", *, batch: str = "", client: Client | None = None) -> pl.DataFrame:
    """Return the readable feature rows of `view`, all or those caused by one batch."""
    return (client or connect()).features.rows(project or projects.find().name, view, batch=batch)


def read_online(
    features: list[str], entities: dict[str, list[Any]], project: str = "", *, client: Client | None = None
) -> OnlineAnswer:
    """Return the newest values of `features` (services, ``view`` or ``view:feature``) for each entity row."""
    return (client or connect()).features.online(project or projects.find().name, features, entities)
