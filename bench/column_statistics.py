"""Seconds for the statistics of 100 columns x 1M rows: our mergeable sketches beside what polars computes of them unmergeably.

The peer is one `select` of null count, distinct, least, greatest, mean, standard deviation and five quantiles of each column, which
can't be merged with another batch's. Run: python bench/column_statistics.py [ROWS]
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

ROUNDS = 3
COLUMNS = {"100 floats": (100, 0, 0, 0), "60 floats, 20 integers, 15 categories, 5 ids as text": (60, 20, 15, 5)}


def table(rows: int, kinds: tuple[int, int, int, int]) -> pl.DataFrame:
    dice = np.random.default_rng(0)
    floats, integers, categories, texts = kinds
    columns: dict[str, Any] = {f"f{k}": dice.normal(size=rows) for k in range(floats)}
    columns |= {f"i{k}": dice.integers(0, 10**6, rows) for k in range(integers)}
    names = pl.Series([f"category {k}" for k in range(50)])
    columns |= {f"c{k}": names.gather(dice.integers(0, 50, rows)) for k in range(categories)}
    columns |= {f"t{k}": "user-" + pl.Series(dice.integers(0, 10**9, rows)).cast(pl.String) for k in range(texts)}
    return pl.DataFrame(columns)


def by_polars(frame: pl.DataFrame) -> pl.DataFrame:
    asked = []
    for name, dtype in frame.schema.items():
        column = pl.col(name)
        found = [column.null_count(), column.n_unique(), column.min(), column.max()]
        if dtype.is_numeric():
            found += [column.mean(), column.std(), *(column.quantile(q) for q in (0.05, 0.25, 0.5, 0.75, 0.95))]
        asked += [expression.alias(f"{name}:{k}") for k, expression in enumerate(found)]
    return frame.select(asked)


def seconds(work: Callable[[Any], Any], given: Any) -> float:
    gc.collect()
    started = time.perf_counter()
    work(given)
    return time.perf_counter() - started


def main() -> None:
    from cellwork.data import sketches

    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    print(
        "| columns | polars s | sketches s | ratio | bytes a column | merge of 10 s |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name, kinds in COLUMNS.items():
        frame = table(rows, kinds)
        runs = [(seconds(by_polars, frame), seconds(sketches.of, frame)) for _ in range(ROUNDS)]
        peer, ours = (sorted(run[k] for run in runs)[ROUNDS // 2] for k in (0, 1))
        merging = seconds(sketches.merge, [sketches.of(part) for part in frame.iter_slices(rows // 10)])
        size = len(sketches.pack(sketches.of(frame))) / frame.width
        print(f"| {name} | {peer:.2f} | {ours:.2f} | {ours / peer:.2f} | {size:,.0f} | {merging:.2f} |")


if __name__ == "__main__":
    main()
