"""Seconds to compare a window with a stored reference: PSI, KS and more of each column, beside SciPy and Evidently in one run.

The reference is sketched once, before the clock runs. `raw` reads the window's rows; `sketched` has the window's sketches, one an
hour, and merges them. SciPy gets both as arrays and does KS and PSI column by column. Evidently does PSI alone, in a virtual environment of its own
(its pandas and plotly are not ours): python -m venv /tmp/peer && /tmp/peer/bin/pip install 'evidently==0.7.*' 'pandas<3' pyarrow, then
EVIDENTLY_PYTHON=/tmp/peer/bin/python; as it needs more than a second a column, say how many. Run: python bench/drift.py [COLUMNS] [ROWS]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from cellwork.data import sketches
from cellwork.monitoring.drift import between, compare

HOURS = 24
EVIDENTLY = """
import importlib.metadata, json, sys, time
import pandas as pd
from evidently import Report
from evidently.metrics import ValueDrift
old, new = (pd.read_parquet(f"{sys.argv[1]}/{name}.parquet") for name in ("reference", "window"))
few = [frame.head(1000) for frame in (new, old)]
Report([ValueDrift(column=name, method="psi") for name in old.columns]).run(*few)  # what is imported once is no part of it
start = time.perf_counter()
found = Report([ValueDrift(column=name, method="psi") for name in old.columns]).run(new, old).dict()
took = time.perf_counter() - start
psi = {name: float(metric["value"]) for name, metric in zip(old.columns, found["metrics"], strict=True)}
print(json.dumps({"version": importlib.metadata.version("evidently"), "seconds": took, "psi": psi}))
"""


def frame(columns: int, rows: int, seed: int) -> pl.DataFrame:
    dice = np.random.default_rng(seed)
    numbers = {f"n{k}": dice.normal(loc=0.01 * k * seed, size=rows) for k in range(columns * 4 // 5)}
    texts = {f"t{k}": dice.choice([f"v{j}" for j in range(30)], rows) for k in range(columns - len(numbers))}
    return pl.DataFrame(numbers | texts)


def scipys(reference: pl.DataFrame, window: pl.DataFrame) -> dict[str, float]:
    from scipy import stats

    found = {}
    for name in reference.columns:
        old, new = reference[name], window[name]
        if old.dtype == pl.String:
            values = sorted(set(old.unique()) | set(new.unique()))
            table = [[dict(each.value_counts().iter_rows()).get(v, 0) for v in values] for each in (old, new)]
            found[name] = float(stats.chi2_contingency(table).statistic)
        else:
            a, b = old.to_numpy(), new.to_numpy()
            edges = np.quantile(a, np.linspace(0, 1, 11)[1:-1])
            np.histogram(a, [-np.inf, *edges, np.inf]), np.histogram(b, [-np.inf, *edges, np.inf])
            found[name] = float(stats.ks_2samp(a, b).statistic)
    return found


def evidentlys(python: str, reference: pl.DataFrame, window: pl.DataFrame) -> tuple[str, float, dict[str, float]]:
    """Return Evidently's version, its seconds for PSI of all columns, and the values; it runs in `python`, from files, the reading not counted."""
    with tempfile.TemporaryDirectory() as folder:
        for name, frame in (("reference", reference), ("window", window)):
            frame.write_parquet(f"{folder}/{name}.parquet")
        done = subprocess.run([python, "-c", EVIDENTLY, folder], capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    return said["version"], said["seconds"], said["psi"]


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    answer = work()
    return time.perf_counter() - start, answer


def main(columns: int = 100, rows: int = 1_000_000) -> None:
    reference, window = frame(columns, rows, 1), frame(columns, rows, 2)
    compare(sketches.of(reference[:1000]), sketches.of(window[:1000]))  # what is imported once is no part of it
    stored = sketches.of(reference)
    hours = [sketches.of(part) for part in window.iter_slices(-(-rows // HOURS))]
    raw, found = seconds(lambda: between(stored, window))
    merged, of_hours = seconds(lambda: compare(stored, sketches.merge(hours)))
    day = sketches.merge(hours)
    ready, _ = seconds(lambda: compare(stored, day))
    scipy, true = seconds(lambda: scipys(reference, window))
    rows_of = [
        ("cellwork, raw window", raw),
        (f"cellwork, {HOURS} sketches merged", merged),
        ("cellwork, one sketch", ready),
    ]
    rows_of.append(("SciPy, column by column", scipy))
    if python := os.environ.get("EVIDENTLY_PYTHON"):
        version, took, psi = evidentlys(python, reference, window)
        rows_of.append((f"Evidently {version}, PSI alone", took))
        apart = max(abs((c.psi or 0.0) - psi[c.column]) for c in found)
        print(f"PSI beside Evidently's, which bins otherwise: at most {apart:.1e} apart.\n")
    print(f"{columns} columns x {rows:,} rows\n\n| case | seconds | SciPy's seconds / these |\n| --- | --- | --- |")
    for name, took in rows_of:
        print(f"| {name} | {took:.3f} | {scipy / took:.1f} |")
    worst = max(abs((c.ks if c.ks is not None else 0.0) - true[c.column]) for c in found if c.kind == "number")
    merged_worst = max(abs((c.ks or 0.0) - true[c.column]) for c in of_hours if c.kind == "number")
    print(f"\nKS beside SciPy's: at most {worst:.1e} apart from raw rows, {merged_worst:.1e} from merged sketches.")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]))
