"""A version's card: all that the platform knows of it, from records that nobody changes afterwards."""

from __future__ import annotations

from datetime import datetime

from cellwork.wire import Struct
from cellwork.wire.evaluations import Evaluation, VersionRef
from cellwork.wire.gate import Override, Promoted, Trusted


class Trained(Struct):
    """The dataset behind a version, and what is behind that."""

    id: str
    name: str
    rows: int
    labelled: int
    observations: str
    start: datetime
    end: datetime
    label: str
    inputs: list[str]
    features: list[str]
    batches: list[str]
    feature_sets: list[str]
    content_sha256: str
    revision: int


class Asked(Struct):
    """How often a sealed holdout was asked."""

    holdout: str
    by_this_version: int
    by_project: int


class Card(Struct):
    version: VersionRef
    registered: datetime
    description: str
    owner: str
    contact: str
    aliases: list[str]
    origin: dict[str, str]
    """Who, notebook, cell, source hash, run, commit, image, as far as they are known."""
    training_run: str
    """MLflow's."""
    parameters: dict[str, str]
    validation: dict[str, float]
    """Metrics that its author logged: on data they saw."""
    split: str
    """The recipe of the part it was trained on, as JSON."""
    dataset: Trained | None
    baseline: str
    """The input column of the baseline it was registered with."""
    kind: str
    columns: list[str]
    transformers: list[str]
    code: list[Trusted]
    """Whose word lets the code it brings run; `by` is empty for a wheel that nobody trusted."""
    python: str
    environment: list[str]
    size_bytes: int
    evaluations: list[Evaluation]
    """On sealed holdouts, newest first."""
    questions: list[Asked]
    overrides: list[Override]
    moves: list[Promoted]
    """Those that made it champion or ended that, newest first; a promotion has the gate's list of then."""
    gaps: list[str] = []
    """What could not be read, and why."""
