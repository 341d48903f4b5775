"""Business metrics: a function of one's own over each day's predictions and outcomes, kept with the endpoint and watched like its quality.

    def saved(rows):  # columns: prediction, observation, model, version, at, score, outcome, arrived_at
        warned = rows.filter(pl.col("score") > 0.6)
        return 40.0 * warned["outcome"].sum() - 5.0 * warned.height

    business.measure("flights/delay", saved, unit="EUR")

The function runs here, as its author, in a notebook or a scheduled run of it. A monitor of kind ``metric`` looks at what it sent.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from cellwork.client import connect
from cellwork.errors import BadInput
from cellwork.wire.business import BusinessMetric, MetricPoint, MetricRequest

if TYPE_CHECKING:
    import polars as pl


def measure(
    endpoint: str, function: Callable[[pl.DataFrame], float | None], *, name: str = "", unit: str = "",
    start: datetime | None = None, end: datetime | None = None, by_version: bool = False,
) -> BusinessMetric:  # fmt: skip
    """Compute `function` of each day (UTC) whose outcomes are known and keep what it returns; None leaves a day out.

    Parameters
    ----------
    function
        Of a frame with a row a prediction: ``prediction``, ``observation``, ``model``, ``version``, ``at``, ``score``, ``outcome``,
        ``arrived_at``. Its name, and the first line of its docstring, are the metric's unless `name` says otherwise.
    by_version
        One number for each version that answered on a day, instead of one for all.

    Raises
    ------
    BadInput
        The function raised, or returned what is no number.
    """
    import polars as pl

    client, called = connect(), name or getattr(function, "__name__", "").replace("<lambda>", "")
    rows = client.outcomes.joined(endpoint, start=start, end=end)
    by = ["_day", "version"] if by_version else ["_day"]
    days = rows.with_columns(pl.col("at").dt.date().alias("_day")).partition_by(by, as_dict=True, maintain_order=True)
    points = []
    for (day, *version), part in sorted(days.items()):
        value = _value(function, part.drop("_day"), called, str(day))
        if value is not None:
            points.append(
                MetricPoint(day=str(day), value=value, rows=part.height, version=int(version[0]) if version else 0)
            )
    words = (function.__doc__ or "").strip().partition("\n")[0]
    return client.outcomes.keep_metric(endpoint, called, MetricRequest(points=points, unit=unit, words=words))


def _value(function: Callable[[pl.DataFrame], float | None], rows: pl.DataFrame, name: str, day: str) -> float | None:
    try:
        found = function(rows)
        return None if found is None else float(found)
    except Exception as error:  # a function of the user's may raise anything
        raise BadInput(
            f"metric {name!r}",
            day,
            f"could not be computed: {type(error).__name__}: {error}",
            "mend its function, or let it return None",
        ) from error
