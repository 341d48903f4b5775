"""Send outcomes and ask for quality: what a notebook that learns the truth calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from cellwork import ids
from cellwork.client import connect
from cellwork.errors import BadInput
from cellwork.wire.outcomes import Outcome, OutcomesAnswer, Quality

if TYPE_CHECKING:
    import polars as pl

CHUNK = 5000


def send(
    endpoint: str, outcomes: pl.DataFrame | Iterable[Outcome | Mapping[str, Any]], *, source: str = ""
) -> OutcomesAnswer:
    """Send the outcomes of `endpoint`; sending them again changes nothing, another value for one is a correction.

    Parameters
    ----------
    outcomes : a frame, or rows, of ``observation`` (or ``prediction``), ``value`` and ``observed_at``
        Optional: ``arrived_at``. A frame's rows with a null ``value`` are not outcomes yet and stay out.

    Raises
    ------
    BadInput
        A column is missing or of the wrong type.
    """
    rows = [_outcome(endpoint, row, source) for row in _rows(outcomes)]
    client, total = connect(), OutcomesAnswer(taken=0, matched=0, repeated=0)
    for start in range(0, len(rows), CHUNK):
        part = client.outcomes.send(ids.split_name(endpoint)[0], rows[start : start + CHUNK])
        total = OutcomesAnswer(
            taken=total.taken + part.taken,
            matched=total.matched + part.matched,
            repeated=total.repeated + part.repeated,
        )
    return total


def quality(endpoint: str) -> Quality:
    """Return the quality of `endpoint` per day and version, over the outcomes that arrived so far."""
    return connect().outcomes.quality(endpoint)


def _rows(outcomes: Any) -> list[Outcome | Mapping[str, Any]]:
    if not hasattr(outcomes, "to_dicts"):
        return list(outcomes)
    missing = {"value", "observed_at"} - set(outcomes.columns)
    if missing or not {"observation", "prediction"} & set(outcomes.columns):
        raise BadInput(
            "outcomes", ", ".join(outcomes.columns), "lack a column",
            "columns are: observation (or prediction), value, observed_at, and arrived_at if you know it",
        )  # fmt: skip
    return [row for row in outcomes.to_dicts() if row["value"] is not None]


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
