"""What makes a score a prediction: the columns of the prediction log (`cellwork.serving.log.COLUMNS`), for a batch of rows at a time.

The id is the one that the endpoint itself gives a row of the same `key`, so that a row that was scored ahead and one that was asked for
are the same prediction. What is the same for all rows costs a dictionary, not a column.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from cellwork import clock, ids
from cellwork.wire import Struct
from cellwork.wire.evaluations import VersionRef

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

ROUTE = "precomputed"
EMPTY: dict[str, str | int] = {
    "reason": "", "entities": "{}", "feature_events": "{}", "feature_batches": "{}", "defaults": "[]", "latency_us": 0, "request_id": "", "unit": "",
    "tried": "", "erased": "",
}  # fmt: skip


class Stamp(Struct):
    """For which endpoint, by which of its versions, rows are scored ahead; `observation` is the table's column that names a row."""

    observation: str
    endpoint: str
    revision: int
    version: VersionRef
    deployment: str
    run: str = ""
    caller: str = ""

    def of_answers(self) -> dict[str, str | int]:
        """Return what is the same for all rows, whoever scores them."""
        version = self.version
        return {
            "endpoint": self.endpoint, "revision": self.revision, "name": version.name, "version": version.version, "digest": version.digest,
            "deployment": self.deployment, "route": ROUTE,
        }  # fmt: skip

    def constants(self) -> dict[str, str | int]:
        """Return the columns that have one value."""
        return {**self.of_answers(), **EMPTY, "caller": self.caller, "batch_run": self.run}


def key(observation: str, version: VersionRef, values: str) -> str:
    """Return the idempotency key of a batch's row: by another version, or of other values, it is another prediction.

    `values` are those of the columns that the version takes, as `texts` has them.
    """
    digest = hashlib.blake2b(values.encode(), digest_size=16).hexdigest()
    return f"{observation}@{version.name}@{version.version}@{version.digest}@{digest}"


def texts(frame: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """Return the values of `columns` in each row, as JSON that does not depend on their order."""
    import polars as pl

    return frame.select(pl.struct(sorted(columns)).struct.json_encode()).to_series()


def log_columns(batch: Any, inputs: Sequence[str], observation: str, constants: dict[str, str | int]) -> dict[str, Any]:
    """Return the columns of the prediction log beside the score, for the rows of an Arrow `batch`; `inputs` are the model's columns."""
    import polars as pl
    import pyarrow as pa

    named, endpoint = batch.column(observation).cast(pa.string()), str(constants["endpoint"])
    version = VersionRef(
        name=str(constants["name"]), version=int(constants["version"]), digest=str(constants["digest"])
    )
    frame = pl.from_arrow(batch.select(list(inputs)))
    assert isinstance(frame, pl.DataFrame)
    features = texts(frame, inputs)
    keys = [
        ids.of_key("pred", endpoint, "row", key(str(one), version, values))
        for one, values in zip(named.to_pylist(), features.to_list(), strict=True)
    ]
    now = pa.scalar(clock.now(), pa.timestamp("us", "UTC"))
    at = pa.repeat(now, len(named))
    same = {name: _constant(value, len(named)) for name, value in constants.items()}
    return {
        "id": keys,
        "at": at,
        "logged_at": at,
        "observation": named,
        "features": features.to_arrow().cast(pa.string()),
        **same,
    }


def _constant(value: str | int, rows: int) -> Any:
    import numpy as np
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array([value]))
