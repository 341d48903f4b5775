"""Score a built dataset through its endpoint: the same door, the same log, each row with the values it was built with.

A row's key is its observation, its values and the version that serves when scoring starts, with its model and its digest: scoring again
writes nothing twice, and neither a new version nor a corrected row gets an old score. While a canary takes its part, or somebody deploys,
a row may be answered by another version than its key names; the log and the frame say by which.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cellwork import origin
from cellwork.client import Client, connect
from cellwork.errors import BadInput, near_miss
from cellwork.serving import stamp
from cellwork.wire.datasets import Dataset
from cellwork.wire.endpoints import Output, Request, Row
from cellwork.wire.evaluations import VersionRef

if TYPE_CHECKING:
    import polars as pl

    from cellwork.data.dataset import Rows

CHUNK = 1000


def score_batch(
    dataset: Rows,
    endpoint: str,
    *,
    run: str = "",
    progress: Callable[[int, int], None] | None = None,
    client: Client | None = None,
) -> pl.DataFrame:
    """Score every row of `dataset` and return one row each: observation, prediction, score, repeated, version.

    Parameters
    ----------
    dataset : a dataset, or a part of one.
    endpoint : full name ``project/name``.
    run : the run that scores; default the one this process is.
    progress : is told how many rows are done, and of how many.

    Raises
    ------
    NotFound
        There is no such endpoint.
    BadInput
        The live version takes columns that the dataset lacks.
    """
    import polars as pl

    client = client or connect()
    status = client.endpoints.get(endpoint)
    live, columns = status.routes.live, _columns(dataset.record, status.columns, endpoint)
    frame, parts = dataset.frame(), []
    for start in range(0, frame.height, CHUNK):
        part = frame.slice(start, CHUNK)
        texts = stamp.texts(part, columns)
        rows = [
            _row(dataset.record, columns, values, live, text)
            for values, text in zip(part.iter_rows(named=True), texts, strict=True)
        ]
        answer = client.endpoints.predict(endpoint, Request(rows=rows, batch_run=run or origin.gather().run))
        parts.append(_scored(rows, answer.outputs, answer.model.version))
        if progress:
            progress(min(start + CHUNK, frame.height), frame.height)
    return pl.concat(parts) if parts else _scored([], [], live.version)


def _columns(record: Dataset, taken: list[str], endpoint: str) -> list[str]:
    there = [*record.inputs, *record.features]
    missing = [name for name in taken if name not in there]
    if missing:
        raise BadInput(
            f"column of dataset {record.name!r}",
            missing[0],
            f"is missing, and {endpoint} takes it",
            near_miss(missing[0], there),
        )
    return taken


def _row(record: Dataset, columns: list[str], values: dict[str, Any], live: VersionRef, text: str) -> Row:
    observation = str(values[record.id_column])
    views = dict.fromkeys(column.split("__", 1)[0] for column in columns if column in record.features)
    events = {view: values.get(f"{view}__event_timestamp") for view in views}
    batches = {view: values.get(f"{view}___batch") for view in views}
    at: datetime = values[record.time_column]
    return Row(
        features={column: values[column] for column in columns},
        observation=observation,
        at=at,
        feature_events=events,
        feature_batches={view: batch for view, batch in batches.items() if batch},
        key=stamp.key(observation, live, text),
    )


def _scored(rows: list[Row], outputs: list[Output], version: int) -> pl.DataFrame:
    import polars as pl

    return pl.DataFrame(
        {
            "observation": [row.observation for row in rows],
            "prediction": [output.id for output in outputs],
            "score": [output.score for output in outputs],
            "repeated": [output.repeated for output in outputs],
            "version": [version] * len(rows),
        },
        schema={
            "observation": pl.String, "prediction": pl.String, "score": pl.Float64, "repeated": pl.Boolean, "version": pl.Int64,
        },
    )  # fmt: skip
