"""The walk over records and edges, depth first, each id once. A record that can't be read leaves a step that says so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from cellwork.client import Client
from cellwork.errors import CellworkError
from cellwork.lineage import say
from cellwork.models import versions
from cellwork.wire.endpoints import Deployment, Prediction
from cellwork.wire.evaluations import Evaluation
from cellwork.wire.records import Edge, Step

BACK_OUT = frozenset({"built_from", "trained_on", "made_by", "supersedes"})
"""Relations whose edge leads from a thing to its origin."""
BACK_IN = frozenset({"registered_as", "deployed_as"})
"""Relations whose edge leads from the origin to the thing."""
FORWARD = {"built_from": "used_by", "trained_on": "trained", "made_by": "made", "supersedes": "superseded_by"}
"""How the relations that lead back are named when they are walked the other way."""
MOST_STEPS = 500
LATEST = 5
"""How many of a deployment's predictions are shown."""
KINDS = {
    "pred": "prediction", "dep": "deployment", "eval": "evaluation", "ds": "dataset", "bat": "batch", "fset": "feature set",
    "run": "run", "job": "job",
}  # fmt: skip


def kind_of(subject: str) -> str:
    head, line, _ = subject.partition("_")
    if line and head in KINDS and "/" not in subject:
        return KINDS[head]
    for kind, form in (
        ("job", r"[^/@#:]+/[^/@#:]+"),
        ("version", r"[^/@#:]+/[^/@#]+@\d+"), ("observation", r"[^/@#]+/[^/@#]+#.+"), ("training run", r"[0-9a-f]{32}"),
        ("feature view", r"view:.+"), ("holdout", r"holdout:.+"), ("event", r"evt_.+"),
    ):  # fmt: skip
        if re.fullmatch(form, subject):
            return kind
    return ""


class Walk:
    """Depth first, each id once."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.steps: list[Step] = []
        self.until: datetime | None = None
        """Evaluations made later than this do not explain what is asked about."""
        self._seen: set[str] = set()
        self._found: dict[str, Any] = {}

    def back(self, subject: str, depth: int) -> None:
        """Add the origins of `subject`. Feature sets are walked only when asked about: what they are built from is the dataset's too."""
        if subject in self._seen or len(self.steps) >= MOST_STEPS:
            return
        self._seen.add(subject)
        kind = kind_of(subject)
        special: dict[str, Callable[[str, int], None]] = {
            "prediction": self._prediction, "deployment": self._deployment, "version": self._version, "evaluation": self._evaluation,
        }  # fmt: skip
        if kind in special:
            special[kind](subject, depth)
            return
        origins: list[tuple[Step, bool]] = []
        for edge in self.edges(subject):
            if edge.from_ == subject and edge.relation in BACK_OUT:
                origin = self.describe(edge.to, edge.relation, depth)
                origins.append((origin, edge.relation != "supersedes" and (depth == 1 or origin.kind != "feature set")))
            elif edge.to == subject and edge.relation in (*BACK_IN, "observed_as"):
                origins.append((self.describe(edge.from_, edge.relation, depth), True))
        for step, follow in sorted(origins, key=lambda origin: (origin[0].relation, origin[0].kind, origin[0].text)):
            self.steps.append(step)
            if follow:
                self.back(step.id, depth + 1)

    def forward(self, subject: str, depth: int) -> None:
        if subject in self._seen or len(self.steps) >= MOST_STEPS:
            return
        self._seen.add(subject)
        for edge in self.edges(subject):
            out, into = edge.from_ == subject, edge.to == subject
            target = ""
            if into and edge.relation in BACK_OUT:
                target = edge.from_
            elif out and edge.relation in (*BACK_IN, "evaluated_on", "observed_as"):
                target = edge.to
            if target and target not in self._seen:
                self.steps.append(self.describe(target, FORWARD.get(edge.relation, edge.relation), depth))
                self.forward(target, depth + 1)
        if kind_of(subject) == "prediction":
            self._outcomes(subject, depth)
        if kind_of(subject) == "deployment":
            self._predictions(subject, depth)

    def edges(self, subject: str) -> Iterable[Edge]:
        try:
            return list(self.client.records.edges(subject))
        except CellworkError as error:
            self.steps.append(Step(relation="", kind="gap", id=subject, text=f"its edges can't be read: {error}"))
            return []

    def _add(self, relation: str, subject: str, depth: int) -> None:
        self.steps.append(self.describe(subject, relation, depth))
        self.back(subject, depth + 1)

    def _prediction(self, subject: str, depth: int) -> None:
        found = self.fetch(subject)
        if not isinstance(found, Prediction):
            return
        self.until = self.until or found.logged_at
        for view in sorted({**found.feature_events, **found.feature_batches}):
            event, batch = found.feature_events.get(view), found.feature_batches.get(view, "")
            values = {k.removeprefix(f"{view}__"): v for k, v in found.features.items() if k.startswith(f"{view}__")}
            said = ", ".join(f"{name}={say.short(value)}" for name, value in values.items())
            age = f", {say.span((found.at - event).total_seconds())} old" if event else ""
            text = f"{said}{age}" if event else f"no value was known ({said})"
            self.steps.append(Step(relation="looked_up", kind="features", id=view, text=text, at=event, depth=depth))
            if batch:
                self.steps.append(self.describe(batch, "built_from", depth + 1))
        self._outcomes(subject, depth)
        if found.batch_run:
            self._add("made_by", found.batch_run, depth)
        self._add("served_by", found.deployment, depth)

    def _predictions(self, deployment: str, depth: int) -> None:
        found = self.fetch(deployment)
        if not isinstance(found, Deployment):
            return
        try:
            newest = self.client.endpoints.predictions(found.endpoint, after=-LATEST, deployment=deployment)
        except CellworkError as error:
            self.steps.append(Step(relation="answered", kind="gap", id=deployment, text=str(error), depth=depth))
            return
        for prediction in newest:
            self._found[prediction.id] = prediction
            self.steps.append(self.describe(prediction.id, "answered", depth))

    def _outcomes(self, subject: str, depth: int) -> None:
        try:
            for outcome in self.client.outcomes.list("", prediction=subject):
                text = f"{outcome.value:g}, arrived {say.moment(outcome.arrived_at)}" + (
                    f" from {outcome.source}" if outcome.source else ""
                )
                name = outcome.observation or subject
                self.steps.append(
                    Step(
                        relation="observed_as", kind="outcome", id=name, text=text, at=outcome.observed_at, depth=depth
                    )
                )
        except CellworkError as error:
            self.steps.append(Step(relation="observed_as", kind="gap", id=subject, text=str(error), depth=depth))

    def _deployment(self, subject: str, depth: int) -> None:
        found = self.fetch(subject)
        if isinstance(found, Deployment):
            self.until = self.until or found.at
            self._add("deployed_as", versions.subject(found.version.name, found.version.version), depth)
            if found.origin.run:
                self._add("made_by", found.origin.run, depth)

    def _version(self, subject: str, depth: int) -> None:
        name, number = versions.parse(subject)
        found = self.fetch(subject)
        for evaluation in self._evaluations(name, number):
            self._found[evaluation.id] = evaluation
            self.steps.append(self.describe(evaluation.id, "evaluated_on", depth))
        if not isinstance(found, versions.Version):
            for edge in self.edges(subject):
                if edge.from_ == subject and edge.relation == "trained_on":
                    self._add(edge.relation, edge.to, depth)
            return
        if found.run:
            text = say.origin_text(say.origin_of(found.tags))
            self.steps.append(
                Step(relation="registered_as", kind="training run", id=found.run, text=text, at=found.at, depth=depth)
            )
        if found.tags.get("run"):
            self._add("made_by", found.tags["run"], depth + 1)
        if found.tags.get("dataset"):
            self._add("trained_on", found.tags["dataset"], depth)

    def _evaluations(self, name: str, number: int) -> Iterator[Evaluation]:
        try:
            for found in self.client.evaluations.list(name, number):
                if found.id not in self._seen and (self.until is None or found.at <= self.until):
                    yield found
        except CellworkError:
            return

    def _evaluation(self, subject: str, depth: int) -> None:
        found = self.fetch(subject)
        if isinstance(found, Evaluation):
            self._add("evaluated_on", versions.subject(found.version.name, found.version.version), depth)

    def fetch(self, subject: str) -> Any:
        """Return the record of `subject`, the error that stands in its place, or None if its kind has none."""
        if subject not in self._found:
            self._found[subject] = self._ask(subject)
        return self._found[subject]

    def _ask(self, subject: str) -> Any:
        client = self.client
        ask: dict[str, Callable[[str], Any]] = {
            "prediction": client.endpoints.prediction, "deployment": client.endpoints.deployment,
            "evaluation": client.evaluations.get, "dataset": client.datasets.get, "batch": client.batches.get, "run": client.jobs.run,
            "version": lambda text: versions.get(client, *versions.parse(text)),
        }  # fmt: skip
        try:
            return ask[kind_of(subject)](subject) if kind_of(subject) in ask else None
        except CellworkError as error:
            return error

    def describe(self, subject: str, relation: str, depth: int, *, strict: bool = False) -> Step:
        found = self.fetch(subject)
        if strict and isinstance(found, CellworkError):
            raise found
        text, at = say.sentence(found)
        return Step(relation=relation, kind=kind_of(subject) or "id", id=subject, text=text, at=at, depth=depth)
