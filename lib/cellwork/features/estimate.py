"""What a point-in-time join will take: rows, bytes, seconds; and how many partitions keep it within a memory limit."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cellwork.errors import TooLarge
from cellwork.features.row import BATCH, CREATED, EVENT
from cellwork.wire.datasets import Estimate

if TYPE_CHECKING:
    import polars as pl

    from cellwork.features.history import JoinView

ROW_BYTES, ASKED_BYTES = 96, 112
"""What the search takes a feature row and an observation: group, times, packed time, order, and what sorting them needs."""
WORD_BYTES = 32
"""A text: its view, and what most are long."""
ROW_UNITS, ASKED_UNITS = 4.0, 8.0
"""Seconds a feature row and an observation, in `_unit`s; measured with bench/history.py."""


def estimate(observations: pl.DataFrame, views: Sequence[JoinView], *, memory: int | None = None) -> Estimate:
    """Return what `history.join` of the same will take; reads no feature values.

    Raises
    ------
    TooLarge
        It can't be done in `memory` bytes.
    """
    counts = [parts(view, observations, views, memory) for view in views]
    rows = [_rows(view) for view in views]
    work = [rows_there * _row_bytes(view) // count for view, rows_there, count in zip(views, rows, counts, strict=True)]
    # every partition of a lazy frame reads the whole of it again
    read = sum(there * (1 + 0.3 * (count - 1)) for there, count in zip(rows, counts, strict=True))
    asked = observations.height
    return Estimate(
        observations=asked,
        feature_rows=sum(rows),
        result_bytes=int(observations.estimated_size()) + _result_bytes(observations, views),
        work_bytes=max(work, default=0) + asked * ASKED_BYTES,
        partitions=sum(counts),
        seconds=_unit() * (read * ROW_UNITS + asked * len(views) * ASKED_UNITS),
    )


def parts(view: JoinView, observations: pl.DataFrame, views: Sequence[JoinView], memory: int | None) -> int:
    """Return in how many partitions `view` is to be joined so that the whole join stays within `memory` bytes.

    Raises
    ------
    TooLarge
        The result and the questions alone take more.
    """
    if memory is None:
        return 1
    fixed = _result_bytes(observations, views) + observations.height * ASKED_BYTES
    if fixed >= memory:
        raise TooLarge(
            "join", f"{observations.height} observations", f"takes {_mb(fixed)} MB at least, and {_mb(memory)} MB are allowed",
            "ask for fewer features or observations at a time, or allow more memory",
        )  # fmt: skip
    return min(-(-_rows(view) * _row_bytes(view) // (memory - fixed)), max(observations.height, 1)) or 1


def _rows(view: JoinView) -> int:
    import polars as pl

    return int(view.rows.lazy().select(pl.len()).collect().item())


def _row_bytes(view: JoinView) -> int:
    return ROW_BYTES + _width(view, [*view.keys, *view.fields, EVENT, CREATED, BATCH])


def _result_bytes(observations: pl.DataFrame, views: Iterable[JoinView]) -> int:
    return observations.height * sum(_width(view, [*view.fields, EVENT, BATCH]) for view in views)


def _width(view: JoinView, columns: Iterable[str]) -> int:
    import polars as pl

    types = view.rows.collect_schema()
    widths = {pl.Boolean: 1, pl.Int8: 1, pl.Int16: 2, pl.Int32: 4, pl.Float32: 4, pl.String: WORD_BYTES}
    return sum(widths.get(types[name].base_type(), 8) for name in set(columns) if name in types)


def _mb(size: int) -> int:
    return -(-size // 1_000_000)


@functools.cache
def _unit() -> float:
    """Return how long this machine sorts one number of a million, in seconds: what the times above are counted in."""
    import numpy as np

    numbers = np.random.default_rng(0).integers(0, 2**62, 200_000)
    started = time.perf_counter()
    np.argsort(numbers)
    return (time.perf_counter() - started) / len(numbers)
