"""What a record says in one sentence, and how a trail is printed: indented, long rows of like steps shortened."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from cellwork.errors import CellworkError
from cellwork.models import versions
from cellwork.wire.batches import Batch
from cellwork.wire.datasets import Dataset
from cellwork.wire.endpoints import Deployment, Prediction
from cellwork.wire.evaluations import Evaluation, Metric
from cellwork.wire.jobs import Run
from cellwork.wire.origin import Origin
from cellwork.wire.records import Step

SHOWN_AT_ONCE = 5
"""Of more like steps in a row the printed trail shows the first and the last, and how many lie between."""


def sentence(found: Any) -> tuple[str, datetime | None]:
    """Return the sentence about a record, and when it was true."""
    if isinstance(found, CellworkError):
        return f"can't be read: {found}", None
    if isinstance(found, Prediction) and found.score is None:
        return f"erased ({found.erased}), as of {moment(found.at)}; {found.route} route of {found.endpoint}, for {found.caller}", found.logged_at  # fmt: skip
    if isinstance(found, Prediction):
        about = (
            found.observation or ", ".join(f"{k}={v}" for k, v in found.entities.items()) or "a request's own features"
        )
        reason = f" because the live version {found.reason}" if found.reason else ""
        text = f"{found.score:.4g} for {about}, as of {moment(found.at)}; {found.route} route of {found.endpoint}{reason}, for {found.caller}"
        return text, found.logged_at
    if isinstance(found, Deployment):
        return f"revision {found.revision} of {found.endpoint}, by {found.by}{_in(found.origin)}", found.at
    if isinstance(found, versions.Version):
        return f"digest {found.digest[:12] or 'unknown'}" + (
            f", {found.description}" if found.description else ""
        ), found.at
    if isinstance(found, Evaluation):
        return f"{_metrics(found)} on {found.holdout}, question {found.question_no}, by {found.by}", found.at
    if isinstance(found, Batch):
        since = f"; corrected since by {found.superseded_by}" if found.superseded_by else ""
        return (
            f"{found.dataset} {found.partition}, {found.rows:,} rows, by {found.origin.user or 'unknown'}{since}",
            found.at,
        )
    return _more(found)


def _more(found: Any) -> tuple[str, datetime | None]:
    if isinstance(found, Dataset):
        period = f"{found.start:%Y-%m-%d} to {found.end:%Y-%m-%d}"
        return (
            f"{found.name}: {found.rows:,} {found.observations}, {period}, definitions revision {found.revision}{_in(found.origin)}",
            found.at,
        )
    if isinstance(found, Run):
        return f"{found.notebook}, {found.state}, for {found.principal}" + (
            f", job {found.job}" if found.job else ""
        ), found.created
    return "", None


def _metrics(evaluation: Evaluation) -> str:
    def text(name: str, metric: Metric) -> str:
        baseline = evaluation.baseline.get(name)
        return f"{name} {metric.value:.3f}" + (f" (baseline {baseline.value:.3f})" if baseline else "")

    return next((text(name, metric) for name, metric in evaluation.metrics.items()), "no metric")


def origin_of(tags: dict[str, str]) -> Origin:
    names = ("user", "project", "notebook", "cell_id", "source_sha256", "run", "git_commit", "image_digest", "env")
    return msgspec.convert({name: tags.get(name, "") for name in names}, Origin)


def origin_text(origin: Origin) -> str:
    parts = [
        f"notebook {origin.notebook}" if origin.notebook else "",
        f"cell {origin.cell_id}" if origin.cell_id else "",
        f"by {origin.user}" if origin.user else "",
        f"source {origin.source_sha256[:12]}" if origin.source_sha256 else "",
        f"commit {origin.git_commit[:12]}" if origin.git_commit else "",
    ]
    return ", ".join(part for part in parts if part) or "its origin is unknown"


def _in(origin: Origin) -> str:
    return f" in {origin.notebook}" + (f" cell {origin.cell_id}" if origin.cell_id else "") if origin.notebook else ""


def lines(steps: list[Step]) -> Iterator[str]:
    """Yield the trail's lines; long rows of like steps are shortened in the middle."""
    start = 0
    while start < len(steps):
        end = start + 1
        while end < len(steps) and _alike(steps[start], steps[end]):
            end += 1
        part = steps[start:end]
        if len(part) > SHOWN_AT_ONCE:
            yield _line(part[0])
            yield _line(part[1])
            yield f"{'   ' * part[0].depth}… {len(part) - 3} more"
            yield _line(part[-1])
        else:
            yield from map(_line, part)
        start = end


def _alike(a: Step, b: Step) -> bool:
    """Return whether two steps say the same of like things; of batches, those of one data set."""
    same = (a.relation, a.kind, a.depth) == (b.relation, b.kind, b.depth)
    return same and (a.kind != "batch" or a.text.partition(" ")[0] == b.text.partition(" ")[0])


def _line(step: Step) -> str:
    relation = f"{step.relation.replace('_', ' ')} " if step.relation else ""
    name = "" if step.id.startswith("view:") or step.relation == "looked_up" else f"{step.kind} "
    at = f"  [{moment(step.at)}]" if step.at else ""
    text = f": {step.text}" if step.text else ""
    return f"{_indent(step)}{relation}{name}{step.id}{text}{at}"


def _indent(step: Step) -> str:
    return "   " * (step.depth - 1) + "└─ " if step.depth else ""


def moment(at: datetime | None) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ") if at else "at an unknown time"


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)


def span(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
