"""A model beside its baseline and the champion, in one table that reads well as text and in a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cellwork.evaluation import metrics as measures
from cellwork.wire.evaluations import Evaluation, EvaluationRequest, Metric

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Metrics = Mapping[str, Metric]


@dataclass(frozen=True)
class Report:
    """Metrics of a model and of what it is compared with; prints as a table, renders as one in a notebook."""

    title: str
    metrics: dict[str, Metric]
    others: dict[str, dict[str, Metric]] = field(default_factory=dict)
    """Name (``baseline``, ``champion``) -> its metrics on the same rows."""
    notes: str = ""
    evaluation: Evaluation | None = None
    """The platform's record, if the holdout was asked."""

    def rows(self) -> list[list[str]]:
        """Return one row a metric: name, the model, each other."""
        shown = [self.metrics, *self.others.values()]
        return [[name, *(_text(part.get(name)) for part in shown)] for name in self.metrics]

    def head(self) -> list[str]:
        return ["metric", "model", *self.others]

    def __getitem__(self, metric: str) -> Metric:
        return self.metrics[metric]

    def __repr__(self) -> str:
        lines = [self.head(), *self.rows()]
        widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
        table = (
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )
        return "\n".join([self.title, *table, *([self.notes] if self.notes else [])])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.head())
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows()
        )
        notes = f"<p>{html.escape(self.notes)}</p>" if self.notes else ""
        return f"<table><caption>{html.escape(self.title)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"


def _text(metric: Metric | None) -> str:
    return f"{metric.value:.4f} [{metric.low:.4f}, {metric.high:.4f}]" if metric else "-"


def validation(
    y: ArrayLike, scores: ArrayLike, *, baseline: ArrayLike | None = None, kind: measures.Kind = "classifier"
) -> Report:
    """Measure scores on data the author sees, beside the baseline's scores of the same rows.

    Parameters
    ----------
    y, scores, baseline : shape (n,)
        Labels; the model's scores; the baseline's scores, e.g. ``RateBy("hour").fit(X, y).predict_proba(X_val)[:, 1]``.
    """
    found = measures.measure(y, scores, kind=kind)
    others = {"baseline": measures.measure(y, baseline, kind=kind)} if baseline is not None else {}
    return Report(f"validation on {len(list(y)):,} rows", found, others, _margin(kind, found, others))  # type: ignore[arg-type]


def evaluate(name: str, version: int, holdout: str, *, baseline: str = "", also: str = "") -> Report:
    """Ask the platform to score a registered version on the sealed holdout; only the numbers come back.

    Each question is counted: a holdout that is asked too often is no secret any more. With `also`, the id of a dataset, its
    labelled rows are measured together with the holdout's; that is a report, and no evaluation in the gate's sense.
    """
    from cellwork.client import connect

    request = EvaluationRequest(name=name, version=version, holdout=holdout, baseline=baseline, also=also)
    return report(connect().evaluations.evaluate(request))


def report(evaluation: Evaluation) -> Report:
    """Return the platform's record of an evaluation as a report."""
    others = {"baseline": evaluation.baseline, "champion": evaluation.champion}
    kept = {name: metrics for name, metrics in others.items() if metrics}
    kind: measures.Kind = "classifier" if "roc_auc" in evaluation.metrics else "regressor"
    together = f" and dataset {evaluation.also}" if evaluation.also else ""
    title = f"{evaluation.version.name} version {evaluation.version.version} on sealed holdout {evaluation.holdout!r}{together}: {evaluation.rows:,} rows, question {evaluation.question_no}"
    return Report(title, evaluation.metrics, kept, _margin(kind, evaluation.metrics, kept), evaluation)


def _margin(kind: measures.Kind, found: Metrics, others: Mapping[str, Metrics]) -> str:
    metric = measures.primary(kind)
    parts = [f"{found[metric].value - other[metric].value:+.4f} against the {name}" for name, other in others.items()]
    return f"{metric}: {', '.join(parts)}" if parts else ""
