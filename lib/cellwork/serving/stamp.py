"""What makes a score a prediction: the columns of the prediction log (`cellwork.serving.log.COLUMNS`), for a batch of rows at a time.

The id is the one that the endpoint itself gives a row of the same observation and version, so that a row that was scored ahead
and one that was asked for are the same prediction. What is the same for all rows costs a dictionary, not a column.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cellwork import clock, ids
from cellwork.wire import Struct
from cellwork.wire.evaluations import VersionRef

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def log_columns(batch: Any, inputs: Sequence[str], observation: str, constants: dict[str, str | int]) -> dict[str, Any]:
    """Return the columns of the prediction log beside the score, for the rows of an Arrow `batch`; `inputs` are the model's columns."""
    import polars as pl
    import pyarrow as pa

    named = batch.column(observation).cast(pa.string())
    endpoint, version = str(constants["endpoint"]), constants["version"]
    keys = [ids.of_key("pred", endpoint, "row", f"{one}@{version}") for one in named.to_pylist()]
    features: Any = pl.from_arrow(batch.select(list(inputs))).select(pl.struct(inputs).struct.json_encode()).to_series()  # type: ignore[union-attr]
    now = pa.scalar(clock.now(), pa.timestamp("us", "UTC"))
    at = pa.repeat(now, len(named))
    same = {name: _constant(value, len(named)) for name, value in constants.items()}
    return {"id": keys, "at": at, "logged_at": at, "observation": named, "features": features.to_arrow(), **same}


def _constant(value: str | int, rows: int) -> Any:
    import numpy as np
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array([value]))
