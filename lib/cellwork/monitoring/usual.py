"""How far the weeks of a reference are from all of it: a single day has one weather, whatever the year has.

A window without all weekdays is compared with the same hours of the reference (`season`); of these, no single week is like all of them
together. Only what is farther than any of them is news.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellwork.data import sketches
from cellwork.monitoring.drift import compare
from cellwork.wire.drift import Usual

if TYPE_CHECKING:
    import polars as pl

    from cellwork.data.sketches import Sketch

LEAST_WEEKS = 8
"""With fewer weeks nothing is known of what is usual."""


def of(frame: pl.DataFrame, time: str, reference: Sketch) -> dict[str, Usual]:
    """Return what is usual of the columns of `reference`, the sketch of `frame`, week by week of `time`; nothing for too few weeks."""
    import polars as pl

    weeks = frame.with_columns(pl.col(time).dt.truncate("1w").alias("_week")).partition_by("_week")
    if len(weeks) < LEAST_WEEKS:
        return {}
    found = {name: Usual() for name in reference.columns}
    for week in weeks:
        for column in compare(reference, sketches.of(week.select(list(reference.columns)), count_distinct=False)):
            known = found[column.column]
            known.psi = max(known.psi, column.psi or 0.0)
            known.missing = max(known.missing, abs(column.missing_window - column.missing_reference))
    return found
