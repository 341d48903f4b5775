"""Batch scoring, Parquet to Parquet, beside a scikit-learn loop over pandas chunks, and beside the compiled model's own speed in memory.

Each way is a process of its own, so that its peak memory is its own. The same machine, one after another.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cellwork.models.compiled import Machine

COLUMNS, GROUP, IN_MEMORY = 20, 250_000, 200_000


def make(path: Path, rows: int) -> None:
    """Write `rows` x 20 float64 as Parquet, a row group at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    names = [f"x{k}" for k in range(COLUMNS)]
    with pq.ParquetWriter(path, pa.schema([(name, pa.float64()) for name in names])) as writer:
        for _ in range(0, rows, GROUP):
            writer.write_table(
                pa.table({name: rng.normal(size=GROUP).astype(np.float32).astype(np.float64) for name in names}),
                row_group_size=GROUP,
            )


def models(folder: Path) -> None:
    import pandas as pd
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from cellwork.models import columns
    from cellwork.models.compiled import program as programs
    from cellwork.models.compiled.extract import extract

    rng = np.random.default_rng(1)
    X = pd.DataFrame(rng.normal(size=(20_000, COLUMNS)), columns=[f"x{k}" for k in range(COLUMNS)])
    y = (X.x0 + X.x1 * X.x2 > 0).astype(int)
    for name, model in (
        ("linear", make_pipeline(StandardScaler(), LogisticRegression())),
        ("boosted", GradientBoostingClassifier(n_estimators=100)),
    ):
        (folder / name).write_bytes(pickle.dumps(model.fit(X, y)))
        programs.write(folder / f"{name}.program", extract(model, columns.kinds(X)))


def one(way: str, name: str, folder: Path) -> dict[str, float]:
    """Score the table in one way and return seconds (imports aside), of them on a processor, and peak megabytes."""
    score = {"scikit-learn": peer, "ours": ours, "in memory": memory}[way](name, folder)
    before, started = time.process_time(), time.perf_counter()
    factor = score()
    return {
        "seconds": (time.perf_counter() - started) * factor, "processor": (time.process_time() - before) * factor,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }  # fmt: skip


def peer(name: str, folder: Path) -> Callable[[], float]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    model = pickle.loads((folder / name).read_bytes())

    def score() -> float:
        writer = None
        for batch in pq.ParquetFile(folder / "rows.parquet").iter_batches(100_000):
            table = pa.table({"score": model.predict_proba(batch.to_pandas())[:, 1]})
            writer = writer or pq.ParquetWriter(
                folder / f"{name}.sklearn.parquet", table.schema, compression="zstd", use_dictionary=False
            )
            writer.write_table(table)
        writer.close()
        return 1.0

    return score


def ours(name: str, folder: Path) -> Callable[[], float]:
    from cellwork.serving.parquet import score_parquet

    computing = machine(name, folder)

    def score() -> float:
        score_parquet(folder / "rows.parquet", folder / f"{name}.ours", computing)
        return 1.0

    return score


def memory(name: str, folder: Path) -> Callable[[], float]:
    """One thread, rows that are there as columns; as if every core did as much."""
    import pyarrow.parquet as pq

    computing, source = machine(name, folder), folder / "rows.parquet"
    batch = next(pq.ParquetFile(source).iter_batches(IN_MEMORY))
    values = [column.to_numpy() for column in batch.columns]
    factor = pq.read_metadata(source).num_rows / len(values[0])

    def score() -> float:
        computing.of_columns(values)
        return factor / (os.cpu_count() or 1)

    return score


def machine(name: str, folder: Path) -> Machine:
    """Return what computes, without scikit-learn in this process."""
    from cellwork.models.compiled import Machine
    from cellwork.models.compiled import program as programs

    return Machine(programs.read(folder / f"{name}.program"), folder)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=10_000_000)
    arguments.add_argument("--one", nargs=3, metavar=("WAY", "MODEL", "FOLDER"))
    asked = arguments.parse_args()
    if asked.one:
        print(json.dumps(one(asked.one[0], asked.one[1], Path(asked.one[2]))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "rows.parquet", asked.rows)
        models(folder)
        print(f"{asked.rows} rows x {COLUMNS}; load of the machine: {os.getloadavg()[0]:.1f}")
        for model in ("linear", "boosted"):
            found = {}
            for way in ("scikit-learn", "ours", "in memory"):
                command = [sys.executable, __file__, "--one", way, model, name]
                found[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            theirs, mine, pure = (found[way] for way in ("scikit-learn", "ours", "in memory"))
            print(
                f"{model}: scikit-learn {theirs['seconds']:.1f} s ({theirs['megabytes']:.0f} MB), ours {mine['seconds']:.1f} s ({mine['megabytes']:.0f} MB): "
                f"{theirs['seconds'] / mine['seconds']:.1f}x; {pure['seconds'] / mine['seconds']:.0%} of the compiled model in memory on every core "
                f"({pure['seconds']:.1f} s); processor: {theirs['processor']:.1f} s, {mine['processor']:.1f} s, "
                f"{pure['processor'] * (os.cpu_count() or 1):.1f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
