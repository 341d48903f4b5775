"""The child of `sandbox`: limits itself before anything is loaded, scores, and writes the scores as raw float64.

Run as ``python -I -m cellwork.models.child FOLDER FEATURES MEMORY_MB SECONDS BYTES CALLS``. With CALLS there follow the scores:
seconds of loading, the last row's score when it is asked alone, and the seconds of as many calls with it. Whatever the model prints goes to stderr.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from cellwork.errors import CellworkError
from cellwork.wire import Problem


def limit(memory_mb: int, seconds: int, most_bytes: int) -> None:
    """Bound address space, processor time, files written and open, and core dumps of this process and its children."""
    cores = os.cpu_count() or 1
    for kind, value in (
        (resource.RLIMIT_AS, memory_mb * 1024**2),
        (resource.RLIMIT_CPU, seconds * cores),
        (resource.RLIMIT_FSIZE, most_bytes),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value, value) if hard == resource.RLIM_INFINITY else (min(value, hard),) * 2)


def main(folder: Path, features: Path, output: int, calls: int) -> None:
    import numpy as np
    from pyarrow import ipc

    from cellwork.models import package
    from cellwork.models.columns import to_pandas
    from cellwork.models.confine import confine

    with features.open("rb") as file:
        frame = ipc.open_file(file).read_all().to_pandas()
    began = time.perf_counter()
    model = package.load(folder)
    loaded = time.perf_counter() - began
    manifest = package.read(folder)
    if not manifest.wheels:
        confine(folder)
    rows = to_pandas(frame, manifest.columns)
    scores = package.scores(model, rows)
    more = [loaded, *_alone(model, rows.tail(1), calls)] if calls else []
    with os.fdopen(output, "wb") as file:
        file.write(np.concatenate([scores.ravel(), more]).astype("<f8").tobytes())


def _alone(model: Any, row: Any, calls: int) -> Iterator[float]:
    """Yield the row's score, then the seconds of each call but that first one, which may fill caches."""
    from cellwork.models import package

    yield float(package.scores(model, row)[0])
    for _ in range(calls):
        began = time.perf_counter()
        package.scores(model, row)
        yield time.perf_counter() - began


if __name__ == "__main__":
    limit(*map(int, sys.argv[3:6]))
    result = os.dup(1)
    os.dup2(2, 1)
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), result, int(sys.argv[6]))
    except CellworkError as error:
        problem = Problem(
            type=type(error).__name__,
            subject=error.subject,
            value=error.value,
            verdict=error.verdict,
            way_out=error.way_out,
        )
        sys.stderr.write(f"\n{msgspec.json.encode(problem).decode()}\n")
        sys.exit(1)
