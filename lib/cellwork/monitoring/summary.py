"""Quality of predictions per day, model and version, over the outcomes that arrived so far. Pure: frames in, `Quality` out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cellwork.monitoring.ranking import auc
from cellwork.wire.outcomes import Quality, QualityPoint

if TYPE_CHECKING:
    import polars as pl

GROUP = ["day", "model", "version"]


def quality(endpoint: str, traffic: pl.DataFrame, known: pl.DataFrame) -> Quality:
    """Return the quality of an endpoint.

    Parameters
    ----------
    traffic : columns ``day`` (date), ``model``, ``version``, ``predictions``, ``mean_score``, ``estimated_auc``; a row a group
        All predictions.
    known : columns ``day``, ``model``, ``version``, ``score``, ``outcome``
        Those with an outcome, each observation and version of a model once.
    """
    by_group = known.partition_by(GROUP, as_dict=True)
    return Quality(
        endpoint=endpoint,
        predictions=int(traffic.get_column("predictions").sum()),
        outcomes=known.height,
        auc=auc(known.get_column("outcome"), known.get_column("score")),
        points=[
            _point(row, by_group.get(tuple(row[name] for name in GROUP)))
            for row in traffic.sort(GROUP).iter_rows(named=True)
        ],
    )


def _point(row: dict[str, Any], known: pl.DataFrame | None) -> QualityPoint:
    area = None if known is None else auc(known.get_column("outcome"), known.get_column("score"))
    return QualityPoint(
        day=row["day"].isoformat(), model=row["model"], version=row["version"], predictions=row["predictions"], mean_score=row["mean_score"],
        outcomes=0 if known is None else known.height,
        rate=None if known is None else float(known.get_column("outcome").to_numpy().mean()),
        auc=area.value if area else None, auc_low=area.low if area else None, auc_high=area.high if area else None, estimated_auc=row["estimated_auc"],
    )  # fmt: skip
