"""Seconds to join predictions with their outcomes, kept and on disk, beside a merge in memory that keeps nothing.

The store has the predictions (mirrored as they are made, before the clock runs). Then all outcomes arrive as frames of a
million rows, shuffled; then an increment; then quality per day is asked. pandas and polars merge the same frames in memory, without
looking for repeats and corrections and without writing anything. Run: python bench/outcomes.py [ROWS] [INCREMENT]
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cellwork_hub.platform import outcomes
from cellwork_hub.platform.outcome_store import OutcomeStore

PART = 1_000_000
ENDPOINT = "shop/churn"


def numbered(prefix: str, numbers: np.ndarray[Any, Any]) -> pl.Series:
    return pl.select(pl.concat_str([pl.lit(prefix), pl.Series(numbers).cast(pl.String)])).to_series()


def predictions(numbers: np.ndarray[Any, Any]) -> pl.DataFrame:
    dice = np.random.default_rng(int(numbers[0]))
    return pl.DataFrame(
        {
            "project": pl.repeat("shop", len(numbers), eager=True), "endpoint": pl.repeat(ENDPOINT, len(numbers), eager=True),
            "observation": numbered("visit-", numbers), "id": numbered("pred_01JD8ZZZZZZZZZZZZ", numbers),
            "model": pl.repeat(ENDPOINT, len(numbers), eager=True), "version": pl.repeat(1, len(numbers), eager=True),
            "ts": numbers * 500_000, "seq": numbers + 1, "score": dice.random(len(numbers)),
        },
    ).cast(outcomes.SCORED)  # type: ignore[arg-type]  # fmt: skip


def arriving(numbers: np.ndarray[Any, Any], value: float | None = None) -> pl.DataFrame:
    dice = np.random.default_rng(int(numbers[0]))
    values = dice.integers(0, 2, len(numbers)) if value is None else np.full(len(numbers), value)
    frame = pl.DataFrame({"observation": numbered("visit-", numbers), "value": values, "at": numbers * 500_000})
    return frame.select("observation", "value", observed_at=pl.from_epoch("at", "us").dt.replace_time_zone("UTC"))


def seconds(work: Callable[[], Any]) -> float:
    gc.collect()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(rows: int = 10_000_000, increment: int = 100_000) -> None:
    order = np.random.default_rng(0).permutation(rows)
    with tempfile.TemporaryDirectory(prefix="cellwork-bench-") as folder:
        store = OutcomeStore(Path(folder) / "outcomes.duckdb")

        def take(frame: pl.DataFrame) -> None:
            store.take(outcomes.of_frame(frame, "shop", ENDPOINT), "user:bench", "req")

        kept = joined = 0.0
        for at in range(0, rows, PART):
            page = predictions(np.arange(at, min(at + PART, rows)))
            kept += seconds(partial(store.keep, page, "log", at))
        for at in range(0, rows, PART):
            joined += seconds(partial(take, arriving(order[at : at + PART])))
        corrected = seconds(partial(take, arriving(order[:increment], value=0.5)))
        new = np.arange(rows, rows + increment)
        store.keep(predictions(new), "log", rows + increment)
        added = seconds(partial(take, arriving(new)))
        told = seconds(lambda: outcomes.quality_of(store, ENDPOINT))
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        assert store.rows("SELECT count(*) FROM joined").item() == rows + increment
        store.close()
    left = predictions(np.arange(rows)).select("observation", "score")
    right = arriving(order).select("observation", "value")
    polars = seconds(partial(left.join, right, on="observation"))
    pandas = seconds(partial(left.to_pandas().merge, right.to_pandas(), on="observation"))
    print(f"{rows:,} predictions, {rows:,} outcomes, {size / 1e6:,.0f} MB on disk\n")
    print("| case | seconds | pandas' seconds / these |\n| --- | --- | --- |")
    for name, took in (
        (f"all outcomes taken and joined, {PART:,} a delivery", joined), (f"{increment:,} new outcomes", added),
        (f"{increment:,} corrections", corrected), ("quality per day and over all, computed anew", told),
        (f"the predictions kept, {PART:,} a page", kept), ("pandas merges both in memory", pandas), ("polars joins both in memory", polars),
    ):  # fmt: skip
        print(f"| {name} | {took:.2f} | {pandas / took:.1f} |")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]))
