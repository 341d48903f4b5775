"""Send outcomes and ask for quality: what a notebook that learns the truth calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import msgspec

from cellwork import ids
from cellwork.client import connect
from cellwork.errors import BadInput
from cellwork.wire.outcomes import Outcome, OutcomesAnswer, Quality

if TYPE_CHECKING:
    import polars as pl

CHUNK = 5000
ROWS = 1_000_000
"""Rows of a frame in one delivery."""


def send(
    endpoint: str, outcomes: pl.DataFrame | Iterable[Outcome | Mapping[str, Any]], *, source: str = ""
) -> OutcomesAnswer:
    """Send the outcomes of `endpoint`; sending them again changes nothing, another value for one is a correction.

    Parameters
    ----------
    outcomes : a frame, or rows, of ``observation`` (or ``prediction``), ``value`` and ``observed_at``
        Optional: ``arrived_at``, not later than now (clocks may differ by five minutes). A frame's rows with a null ``value`` are not outcomes yet and
        stay out.

    Raises
    ------
    BadInput
        A column is missing or of the wrong type.
    """
    client = connect()
    if _is_frame(outcomes):
        return _together(client.outcomes.load(endpoint, part) for part in _parts(outcomes, source))
    project, rows = (
        ids.split_name(endpoint)[0],
        [_outcome(endpoint, row, source) for row in cast(Iterable[Outcome | Mapping[str, Any]], outcomes)],
    )
    parts = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    return _together(client.outcomes.send(project, part) for part in parts)


def _is_frame(outcomes: object) -> TypeGuard[pl.DataFrame]:
    return hasattr(outcomes, "iter_slices")


def _together(answers: Iterable[OutcomesAnswer]) -> OutcomesAnswer:
    total = OutcomesAnswer(taken=0, matched=0, repeated=0)
    for part in answers:
        total = OutcomesAnswer(
            taken=total.taken + part.taken,
            matched=total.matched + part.matched,
            repeated=total.repeated + part.repeated,
        )
    return total


def quality(endpoint: str) -> Quality:
    """Return the quality of `endpoint` per day and version, over the outcomes that arrived so far."""
    return connect().outcomes.quality(endpoint)


def _parts(frame: pl.DataFrame, source: str) -> Iterator[pl.DataFrame]:
    """Return the rows of `frame` that are outcomes, in parts that a delivery holds."""
    import polars as pl

    missing = {"value", "observed_at"} - set(frame.columns)
    if missing or not {"observation", "prediction"} & set(frame.columns):
        raise BadInput(
            "outcomes", ", ".join(frame.columns), "lack a column",
            "columns are: observation (or prediction), value, observed_at, and arrived_at if you know it",
        )  # fmt: skip
    if source and "source" not in frame.columns:
        frame = frame.with_columns(source=pl.lit(source))
    return frame.filter(pl.col("value").is_not_null()).iter_slices(ROWS)


def _outcome(endpoint: str, row: Outcome | Mapping[str, Any], source: str) -> Outcome:
    if isinstance(row, Outcome):
        return row
    values = {key: value for key, value in row.items() if value is not None}
    values["value"] = float(values["value"]) if isinstance(values.get("value"), bool | int) else values.get("value")
    try:
        return msgspec.convert({"source": source, **values, "endpoint": endpoint}, Outcome)
    except msgspec.ValidationError as error:
        raise BadInput(
            "outcome", dict(row), str(error), "send observation (or prediction), value, observed_at"
        ) from None
