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
from pathlib import Path

import numpy as np

COLUMNS, GROUP = 20, 250_000


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

    rng = np.random.default_rng(1)
    X = pd.DataFrame(rng.normal(size=(20_000, COLUMNS)), columns=[f"x{k}" for k in range(COLUMNS)])
    y = (X.x0 + X.x1 * X.x2 > 0).astype(int)
    for name, model in (
        ("linear", make_pipeline(StandardScaler(), LogisticRegression())),
        ("boosted", GradientBoostingClassifier(n_estimators=100)),
    ):
        (folder / name).write_bytes(pickle.dumps(model.fit(X, y)))


def one(way: str, name: str, folder: Path) -> dict[str, float]:
    """Score the table in one way and return seconds (imports aside) and peak megabytes."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    model, source = pickle.loads((folder / name).read_bytes()), folder / "rows.parquet"
    names = [f"x{k}" for k in range(COLUMNS)]
    if way == "scikit-learn":
        started = time.perf_counter()
        writer = None
        for batch in pq.ParquetFile(source).iter_batches(100_000):
            table = pa.table({"score": model.predict_proba(batch.to_pandas())[:, 1]})
            writer = writer or pq.ParquetWriter(
                folder / f"{name}.sklearn.parquet", table.schema, compression="zstd", use_dictionary=False
            )
            writer.write_table(table)
        writer.close()
    else:
        from cellwork.models import columns
        from cellwork.models.compiled import Machine
        from cellwork.models.compiled.extract import extract
        from cellwork.serving.parquet import score_parquet

        machine = Machine(extract(model, columns.kinds(pd.DataFrame(columns=names, dtype=float))), folder)
        if way == "in memory":
            batch = next(pq.ParquetFile(source).iter_batches(200_000))
            values = [column.to_numpy() for column in batch.columns]
            started, rows = time.perf_counter(), pq.read_metadata(source).num_rows
            machine.of_columns(values)
            return {
                "seconds": (time.perf_counter() - started) * rows / 200_000 / (os.cpu_count() or 1),
                "megabytes": 0.0,
            }
        started = time.perf_counter()
        score_parquet(source, folder / f"{name}.ours", machine)
    return {
        "seconds": time.perf_counter() - started,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


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
            theirs, ours, memory = (found[way]["seconds"] for way in ("scikit-learn", "ours", "in memory"))
            print(
                f"{model}: scikit-learn {theirs:.1f} s ({found['scikit-learn']['megabytes']:.0f} MB), ours {ours:.1f} s ({found['ours']['megabytes']:.0f} MB): "
                f"{theirs / ours:.1f}x; {memory / ours:.0%} of the compiled model in memory on every core ({memory:.1f} s)",
                flush=True,
            )


if __name__ == "__main__":
    main()
