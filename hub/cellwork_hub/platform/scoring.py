"""How good a registered version is on a sealed holdout. The author's model sees features, in a child process; the labels stay here.

Nothing in this module hands out a row, a score or a label: only metrics leave it, rounded to `DIGITS` decimals.
"""

from __future__ import annotations

import tempfile
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from cellwork.client import Client
from cellwork.errors import BadInput, NotFound, Refused
from cellwork.evaluation import baseline, metrics
from cellwork.models import package, sandbox
from cellwork.models.columns import to_pandas
from cellwork.models.versions import Version
from cellwork.wire.datasets import Dataset
from cellwork.wire.evaluations import Metric
from cellwork_hub.platform import datasets
from cellwork_hub.platform.state import State

DIGITS = 4
Metrics = dict[str, Metric]
_copying: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


@dataclass(frozen=True)
class Sealed:
    """The holdout as one version sees it: its features, and the labels of the same rows."""

    features: pl.DataFrame
    labels: pl.Series


def trained_on(state: State, version: Version) -> Dataset:
    """Return the dataset the version says it was trained on; raises Refused if it names none of this project."""
    project = version.name.partition("/")[0]
    try:
        found = datasets.get(state, version.tags.get("dataset", ""))
    except (BadInput, NotFound):
        raise Refused(
            f"version {version.subject}",
            version.tags.get("dataset", ""),
            "names no dataset of this platform",
            "register it with cellwork.models.registry.register",
        ) from None
    if found.project != project:
        raise Refused(
            f"version {version.subject}",
            found.id,
            f"was trained on a dataset of project {found.project!r}",
            "train on a dataset of its own project",
        )
    return found


def copy(state: State, client: Client, version: Version) -> Path:
    """Return this machine's copy of the version's folder, by digest; it is fetched once and checked each time."""
    if not version.digest:
        raise Refused(
            f"version {version.subject}",
            "",
            "has no content digest",
            "register it with cellwork.models.registry.register",
        )
    folder = state.home.models() / version.digest
    with _copying[version.digest]:
        if not folder.is_dir() or package.digest(folder) != version.digest:
            package.download(client, version.name, version.version, folder)
    return folder


def unchanged(client: Client, version: Version) -> None:
    """Raise Refused if what MLflow keeps for the version is not what was registered."""
    with tempfile.TemporaryDirectory(prefix="cellwork-check-") as temporary:
        package.download(client, version.name, version.version, Path(temporary) / "model")


def sealed(state: State, holdout: str, trained: Dataset) -> Sealed:
    """Return the labelled rows of the holdout with the features of dataset `trained`."""
    if not trained.label:
        raise Refused(
            "dataset", trained.id, "has no label to evaluate with", "train on a dataset built with labels=True"
        )
    frame = datasets.holdout_frame(state, trained.project, holdout, trained.observations, references(trained))
    frame = frame.filter(pl.col(trained.label).is_not_null())
    if not frame.height:
        raise NotFound("holdout", holdout, "has no row with a label", "look at: cellwork batch list")
    return Sealed(frame.select([*trained.inputs, *trained.features]), frame.get_column(trained.label).cast(pl.Float64))


def references(trained: Dataset) -> list[str]:
    """Return ``view:feature`` of the dataset's feature columns."""
    views = sorted((each.view for each in trained.coverage), key=len, reverse=True)
    found = []
    for column in trained.features:
        view = next(view for view in views if column.startswith(f"{view}__"))
        found.append(f"{view}:{column.removeprefix(f'{view}__')}")
    return found


def of_model(folder: Path, holdout: Sealed) -> Metrics:
    """Return the metrics of the model in `folder`, scored in a child process."""
    scores = sandbox.score(folder, holdout.features)
    return rounded(metrics.measure(holdout.labels, scores, kind=package.read(folder).kind))


def of_baseline(state: State, column: str, kind: metrics.Kind, trained: Dataset, holdout: Sealed) -> Metrics:
    """Return the metrics of the label's rate by `column` (overall if empty), learned from the version's training rows."""
    rows = pl.read_parquet(state.home.dataset(trained.id) / "data.parquet").filter(pl.col(trained.label).is_not_null())
    names = [*trained.inputs, *trained.features]
    fitted = baseline.of(column).fit(to_pandas(rows.select(names)), rows.get_column(trained.label).cast(pl.Float64))
    scores = fitted.predict_proba(to_pandas(holdout.features))[:, 1]
    return rounded(metrics.measure(holdout.labels, scores, kind=kind))


def rounded(found: Metrics) -> Metrics:
    """Return metrics with `DIGITS` decimals: too coarse to read single labels from repeated questions."""
    return {
        name: Metric(value=round(metric.value, DIGITS), low=round(metric.low, DIGITS), high=round(metric.high, DIGITS))
        for name, metric in found.items()
    }
