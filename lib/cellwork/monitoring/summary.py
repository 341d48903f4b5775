"""Quality of predictions per day and version, over the outcomes that arrived so far. Pure: rows in, `Quality` out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cellwork.monitoring.ranking import auc
from cellwork.wire.outcomes import Quality, QualityPoint

Scored = tuple[datetime, int, float, float | None]
"""(time the prediction is for, version, score, outcome or None)."""


def quality(endpoint: str, rows: Sequence[Scored]) -> Quality:
    """Return the quality of `rows`; each observation and version is in it once."""
    groups: dict[tuple[str, int], list[Scored]] = {}
    for row in rows:
        groups.setdefault((row[0].date().isoformat(), row[1]), []).append(row)
    known = _known(rows)
    return Quality(
        endpoint=endpoint,
        predictions=len(rows),
        outcomes=len(known),
        auc=auc([truth for truth, _ in known], [score for _, score in known]),
        points=[_point(day, version, group) for (day, version), group in sorted(groups.items())],
    )


def _known(rows: Sequence[Scored]) -> list[tuple[float, float]]:
    return [(outcome, score) for _, _, score, outcome in rows if outcome is not None]


def _point(day: str, version: int, rows: list[Scored]) -> QualityPoint:
    known = _known(rows)
    area = auc([truth for truth, _ in known], [score for _, score in known])
    return QualityPoint(
        day=day, version=version, predictions=len(rows), outcomes=len(known),
        mean_score=sum(row[2] for row in rows) / len(rows),
        rate=sum(truth for truth, _ in known) / len(known) if known else None,
        auc=area.value if area else None,
    )  # fmt: skip
