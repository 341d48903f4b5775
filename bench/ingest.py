"""Seconds to ingest 10M rows with statistics, beside polars writing the same frame into a Delta table without.

Ours is the whole way inside the platform service, from the frame to the published batch: schema, content id over the canonical rows, key,
quarantine, sketches of every column, Delta table, database, event and audit. Run: python bench/ingest.py [ROWS]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path += [str(TESTS / "hub"), str(TESTS)]
ROUNDS = 3


def table(rows: int, seed: int) -> pl.DataFrame:
    dice = np.random.default_rng(seed)
    start = np.datetime64("2013-01-01", "us")
    return pl.DataFrame(
        {
            "id": np.arange(rows),
            "at": pl.Series(start + np.arange(rows) * np.timedelta64(1, "s")).dt.replace_time_zone("UTC"),
            "value": dice.normal(size=rows),
            "amount": dice.gamma(2.0, 10.0, rows).round(2),
            "count": dice.integers(0, 1000, rows),
            "shop": pl.Series([f"shop {k}" for k in range(200)]).gather(dice.integers(0, 200, rows)),
            "paid": dice.random(rows) < 0.9,
        }
    )


def by_polars(frame: pl.DataFrame, folder: Path, turn: int) -> float:
    started = time.perf_counter()
    frame.write_delta(folder / f"table{turn}")
    return time.perf_counter() - started


def by_us(frame: pl.DataFrame, folder: Path, turn: int) -> float:
    from raw_platform import call, state_in

    from cellwork_hub.platform import batches

    state = state_in(folder / f"home{turn}", [batches])
    started = time.perf_counter()
    batches.ingest(state, call(), "bench", "draws", "all", frame)
    return time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as name:  # imports are not what is measured
        by_us(table(10, 0), Path(name), 0)
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    found: dict[str, list[float]] = {"polars writing Delta": [], "ingest with statistics": []}
    for turn in range(ROUNDS):
        frame = table(rows, turn)
        with tempfile.TemporaryDirectory() as name:
            found["polars writing Delta"].append(by_polars(frame, Path(name), turn))
            found["ingest with statistics"].append(by_us(frame, Path(name), turn))
    print(f"| {rows:,} rows x 7 columns | median s | rows/s | speed |\n| --- | --- | --- | --- |")
    peer = sorted(found["polars writing Delta"])[ROUNDS // 2]
    for name, seconds in found.items():
        middle = sorted(seconds)[ROUNDS // 2]
        print(f"| {name} | {middle:.2f} | {rows / middle:,.0f} | {peer / middle:.2f} |")


if __name__ == "__main__":
    main()
