"""How good a registered version is on a sealed holdout. The author's model sees features, in a child process; the labels stay here.

Nothing in this module hands out a row, a score or a label: only metrics leave it, rounded as `coarse` says.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
import threading
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from cellwork import files
from cellwork.client import Client
from cellwork.errors import BadInput, NotFound, Refused, near_miss
from cellwork.evaluation import baseline, metrics, paired
from cellwork.models import package, sandbox
from cellwork.models.columns import to_pandas
from cellwork.models.versions import Version
from cellwork.wire.datasets import Dataset
from cellwork.wire.evaluations import Difference, Latency, Metric
from cellwork_hub.platform import coarse, code_trust, datasets
from cellwork_hub.platform.coarse import Rounding
from cellwork_hub.platform.state import State

Metrics = dict[str, Metric]


@dataclass(frozen=True)
class Sane:
    """What was seen when a version scored its own example in a clean process."""

    text: str
    latency: Latency
    company: float
    """By how much, relatively, a row's score changes where it is asked alone; serving asks rows in any company."""


_sane: dict[str, Sane] = {}
REMEMBERED = 16
_scored: dict[tuple[str, str], Scored] = {}
_answered: dict[tuple[str, bytes], list[float]] = {}
_copying: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


@dataclass(frozen=True)
class Sealed:
    """The holdout as one version sees it: its features, and the labels of the same rows."""

    features: pl.DataFrame
    labels: pl.Series
    rounding: Rounding
    ids: pl.Series | None = None
    """What tells the rows apart, where two versions are compared row by row; None where rows of several sources are together."""


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
        code_trust.lay(state, version.name.partition("/")[0], folder)
    return folder


def unchanged(client: Client, version: Version) -> None:
    """Raise Refused if what MLflow keeps for the version is not what was registered."""
    with tempfile.TemporaryDirectory(prefix="cellwork-check-") as temporary:
        package.download(client, version.name, version.version, Path(temporary) / "model")


def sealed(state: State, holdout: str, trained: Dataset) -> Sealed:
    """Return the labelled rows of the holdout with the features of dataset `trained`.

    Raises
    ------
    NotFound
        There is no such holdout, or no row of it has the label (by name: one that is sealed for it).
    Refused
        The dataset has no label, or a column that its observations do not have any more.
    """
    if not trained.label:
        raise Refused(
            "dataset", trained.id, "has no label to evaluate with", "train on a dataset built with labels=True"
        )
    frame = datasets.holdout_frame(
        state, trained.project, holdout, trained.observations, references(trained), label=trained.label_name
    )
    columns = [*trained.inputs, *trained.features]
    _refuse_gone(frame, trained, [trained.id_column, trained.label, *columns])
    frame = frame.filter(pl.col(trained.label).is_not_null())
    if not frame.height:
        raise _unlabelled(holdout, trained.label_name)
    labels = frame.get_column(trained.label).cast(pl.Float64)
    rounding = Rounding(_secret(state), f"{trained.project}/{holdout}", frame.height, float(np.std(labels.to_numpy())))
    return Sealed(frame.select(columns), labels, rounding, frame.get_column(trained.id_column))


def _refuse_gone(frame: pl.DataFrame, trained: Dataset, columns: list[str]) -> None:
    if gone := [name for name in columns if name not in frame.columns]:
        raise Refused(
            f"column of observations {trained.observations!r}",
            gone[0],
            f"is not there any more, and dataset {trained.id} has it",
            "define it again, or train on a dataset built now",
        )


def _unlabelled(holdout: str, label: str) -> NotFound:
    if not label:
        return NotFound("holdout", holdout, "has no row with a label", "look at: cellwork batch list")
    verdict = f"has no row whose label {label!r} is sealed for it: what can be read by everybody is no holdout"
    return NotFound("holdout", holdout, verdict, "seal the label's column in the batches of its rows before they come")


def _secret(state: State) -> bytes:
    """Return what keys the rounding of all holdouts; it is made once, and only the platform can read it."""
    path = state.home.secret("holdout-rounding")
    if not path.exists():
        files.write_once(path, secrets.token_hex(32), mode=0o600)
    return files.read_secret(path).encode()


def together(state: State, holdout: Sealed, dataset: str, trained: Dataset) -> Sealed:
    """Return the holdout's rows and the labelled ones of `dataset`, which must have the columns of `trained`."""
    also, columns = datasets.get(state, dataset), [*trained.inputs, *trained.features]
    if _truth(also) != _truth(trained):
        raise BadInput(
            "dataset",
            dataset,
            f"is not of observations {trained.observations!r} with their label",
            "build it like the training dataset",
        )
    missing = [name for name in columns if name not in (*also.inputs, *also.features)]
    if missing:
        raise BadInput(
            f"column of dataset {dataset}",
            missing[0],
            "is missing",
            near_miss(missing[0], [*also.inputs, *also.features]),
        )
    rows = pl.read_parquet(state.home.dataset(also.id) / "data.parquet").filter(pl.col(also.label).is_not_null())
    labels = pl.concat([holdout.labels, rows.get_column(also.label).cast(pl.Float64)])
    # A row of the holdout weighs no less in the answer than it does alone: the step is that of the holdout's rows.
    return Sealed(pl.concat([holdout.features, rows.select(columns)], how="vertical_relaxed"), labels, holdout.rounding)


def _truth(dataset: Dataset) -> tuple[str, str, str, str]:
    return dataset.project, dataset.observations, dataset.label, dataset.label_name


def references(trained: Dataset) -> list[str]:
    """Return ``view:feature`` of the dataset's feature columns."""
    views = sorted((each.view for each in trained.coverage), key=len, reverse=True)
    found = []
    for column in trained.features:
        view = next(view for view in views if column.startswith(f"{view}__"))
        found.append(f"{view}:{column.removeprefix(f'{view}__')}")
    return found


@dataclass(frozen=True)
class Scored:
    """A model's scores of the holdout's rows, in their order, and what they are worth. The scores stay in this process."""

    kind: metrics.Kind
    scores: np.ndarray[Any, Any]
    metrics: Metrics


def of_model(folder: Path, holdout: Sealed) -> Scored:
    """Score the holdout with the model in `folder`, in a child process together with its own example."""
    manifest = package.read(folder)
    example = example_rows(manifest, holdout.features)
    rows = holdout.features.height
    probe = sandbox.probe(folder, pl.concat([holdout.features.select(example.columns), example]))
    _sane[folder.name] = _seen(probe, probe.scores[rows:])
    found = Scored(manifest.kind, probe.scores[:rows], _told(holdout, probe.scores[:rows], manifest.kind))
    _scored[_key(folder, holdout)] = found
    while len(_scored) > REMEMBERED:
        _scored.pop(next(iter(_scored)), None)
    return found


def of_champion(folder: Path, holdout: Sealed) -> Scored:
    """Return what `of_model` does, from memory where the same content scored the same rows before: a champion is asked again and again."""
    return _scored.get(_key(folder, holdout)) or of_model(folder, holdout)


def _key(folder: Path, holdout: Sealed) -> tuple[str, str]:
    rows = holdout.features.with_columns(holdout.labels.alias("_label")).hash_rows(seed=1)
    return folder.name, hashlib.sha256(rows.to_numpy().tobytes()).hexdigest()


def difference(metric: str, one: tuple[Sealed, Scored], other: tuple[Sealed, Scored]) -> Difference | None:
    """Return how much better `one` scored than `other` on the rows that both have; None if they are not the same rows."""
    sides = []
    for rows, scored in (one, other):
        if rows.ids is None or metric not in scored.metrics:
            return None
        sides.append(pl.DataFrame({"id": rows.ids, "label": rows.labels, "score": scored.scores}).sort("id"))
    if not same_truth(one[0], other[0]):
        return None
    mine, theirs = sides
    found = paired.difference(mine["label"], mine["score"], theirs["score"], metric=metric)
    told = one[1].metrics[metric]
    asked = coarse.question(mine["score"]), coarse.question(theirs["score"])
    rounding = one[0].rounding
    return rounding.difference(found, coarse.step(metric, told, mine.height, rounding.spread), *asked)


def same_truth(one: Sealed, other: Sealed) -> bool:
    """Return whether both are the same rows with the same labels."""
    if one.ids is None or other.ids is None or one.ids.dtype != other.ids.dtype:
        return False
    mine, theirs = (pl.DataFrame({"id": each.ids, "label": each.labels}).sort("id") for each in (one, other))
    return mine.equals(theirs)


def example_rows(manifest: package.Manifest, like: pl.DataFrame | None = None) -> pl.DataFrame:
    """Return the manifest's example rows (in the types of the frame `like`); raises BadInput for a column it lacks."""
    frame = pl.DataFrame(
        {column.name: [row.get(column.name) for row in manifest.example] for column in manifest.columns}, strict=False
    )
    if like is None:
        return frame
    missing = [name for name in frame.columns if name not in like.columns]
    if missing:
        raise BadInput("model column", missing[0], "is not in the holdout", near_miss(missing[0], like.columns))
    return frame.cast({name: like.schema[name] for name in frame.columns})


def sanity(folder: Path) -> Sane:
    """Return what was seen when the model of a checked folder scored its example in a clean process.

    Content does not change under a digest, so each is tried once in this process's life.
    """
    if folder.name not in _sane:
        probe = sandbox.probe(folder, example_rows(package.read(folder)), timeout=120)
        _sane[folder.name] = _seen(probe, probe.scores)
    return _sane[folder.name]


def answers(folder: Path, requests: list[dict[str, Any]]) -> list[float]:
    """Return the model's scores of single requests, whose missing columns are missing values; each list once for a content."""
    key = folder.name, msgspec.json.encode(requests, order="sorted")
    if key not in _answered:
        _answered[key] = _answers(folder, requests)
    return _answered[key]


def _answers(folder: Path, requests: list[dict[str, Any]]) -> list[float]:
    types = {c.name: pl.String() if c.kind == "text" else pl.Float64() for c in package.read(folder).columns}
    for name in dict.fromkeys(name for row in requests for name in row):
        if name not in types:
            raise BadInput("column of a sanity request", name, "is not the model's", near_miss(name, types))
    frame = pl.DataFrame({name: [row.get(name) for row in requests] for name in types}, types, strict=False)
    scores: list[float] = sandbox.score(folder, frame, timeout=120).tolist()
    return scores


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _seen(probe: sandbox.Probe, scores: np.ndarray[Any, Any]) -> Sane:
    if not scores.size:
        raise BadInput("model", "", "has no example rows to try it on", "register it with an example")
    span = f"from {scores.min():.4f} to {scores.max():.4f}"
    text = f"loads in a clean process and scores its {scores.size} example rows {span}"
    return Sane(text, probe.latency, abs(probe.alone - float(scores[-1])) / max(1.0, abs(float(scores[-1]))))


def of_baseline(state: State, column: str, kind: metrics.Kind, trained: Dataset, holdout: Sealed) -> Metrics:
    """Return the metrics of the label's rate by `column` (overall if empty), learned from the version's training rows."""
    rows = pl.read_parquet(state.home.dataset(trained.id) / "data.parquet").filter(pl.col(trained.label).is_not_null())
    names = [*trained.inputs, *trained.features]
    fitted = baseline.of(column).fit(to_pandas(rows.select(names)), rows.get_column(trained.label).cast(pl.Float64))
    scores = fitted.predict_proba(to_pandas(holdout.features))[:, 1]
    return _told(holdout, scores, kind)


def _told(holdout: Sealed, scores: Any, kind: metrics.Kind) -> Metrics:
    """Return the metrics of scores as they may be told."""
    found = metrics.measure(holdout.labels, scores, kind=kind, clip=coarse.CLIP)
    return holdout.rounding.metrics(found, coarse.question(scores))
