"""Scores of a registered model, computed in a child process that holds no secret and can hurt nobody for long.

The child gets features and a folder; it inherits no variable, no descriptor and no session of the parent, and runs under limits of
time, memory and file size. What comes back is checked here: as many finite numbers as rows, or an error that says what came instead.
(The network is not closed to it: a named type of a trusted package is all that it can run.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from cellwork.errors import BadInput, Refused
from cellwork.models import package
from cellwork.wire import Problem
from cellwork.wire.evaluations import Latency

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

MOST_WORDS = 64 * 1024
CALLS = 20
"""One row at a time, to know how long a row takes."""


def score(folder: Path, frame: pl.DataFrame, *, timeout: float = 300, memory_mb: int = 4096) -> np.ndarray[Any, Any]:
    """Return one score a row of `frame`, shape (n,), float64: the second class's probability, or the prediction.

    Parameters
    ----------
    folder : a model folder that was downloaded and checked.
    frame : at least the model's columns.
    timeout : seconds until the child is killed.
    memory_mb : the child's address space, in MiB.

    Raises
    ------
    BadInput
        The model can't be read, raised, ended its process, took too long or too much memory, or its scores are not usable.
    Refused
        It holds a type that may not be loaded.
    """
    return _scored(folder, frame, 0, timeout, memory_mb)[0]


@dataclass(frozen=True)
class Probe:
    """Scores, and how the last row was answered when it was asked alone. The times are the child's word: the model's own code runs there."""

    scores: np.ndarray[Any, Any]
    latency: Latency
    alone: float
    """The last row's score without any other beside it."""


def probe(
    folder: Path, frame: pl.DataFrame, *, calls: int = CALLS, timeout: float = 300, memory_mb: int = 4096
) -> Probe:
    """Score `frame` as `score` does, and then its last row alone, `calls` times. Errors are those of `score`."""
    scores, more = _scored(folder, frame, calls, timeout, memory_mb)
    return Probe(scores, _latency(more), float(more[1]))


def _scored(
    folder: Path, frame: pl.DataFrame, calls: int, timeout: float, memory_mb: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the scores, and what the child says after them."""
    manifest = package.read(folder)
    columns = [column.name for column in manifest.columns]
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise BadInput(
            "model column",
            missing[0],
            "is not in the frame to score",
            "build the frame with the features the model was trained on",
        )
    with tempfile.TemporaryDirectory(prefix="cellwork-score-") as temporary:
        features = Path(temporary) / "features.arrow"
        frame.select(columns).write_ipc(features, compat_level=_oldest())
        most = 8 * (frame.height + calls + 2) + MOST_WORDS
        limits = [memory_mb, int(timeout) + 1, most, calls]
        raw = _run([str(folder.absolute()), str(features), *map(str, limits)], timeout, memory_mb, most, temporary)
    extra = calls + 2 if calls else 0
    values = _checked(raw, frame.height, extra)
    return _scores(values[: frame.height], manifest.kind), values[frame.height :]


def _oldest() -> Any:
    import polars as pl

    return pl.CompatLevel.oldest()


def _run(arguments: list[str], timeout: float, memory_mb: int, most_bytes: int, home: str) -> bytes:
    command = [sys.executable, "-I", "-m", "cellwork.models.child", *arguments]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=words, env=environment(home), cwd=home, start_new_session=True
        )  # fmt: skip
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise _failed(f"did not answer within {timeout:.0f} s", "make it smaller, or allow more time") from None
        finally:
            end(process)
        if code != 0:
            raise _verdict(code, _tail(words), memory_mb)
        output.seek(0)
        return output.read(most_bytes)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the child's process group, and collect it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def environment(home: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ") if name in os.environ}
    threads = str(min(4, os.cpu_count() or 1))
    openmp = {
        "OMP_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "passive",
    }  # one that spins waits long where others compute too
    return {**kept, "HOME": home, "TMPDIR": home, "OPENBLAS_NUM_THREADS": "1", **openmp}


def _tail(words: IO[bytes]) -> str:
    size = words.seek(0, os.SEEK_END)
    words.seek(max(0, size - MOST_WORDS))
    lines = words.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:2000] if lines else ""


def _verdict(code: int, last: str, memory_mb: int) -> BadInput | Refused:
    with contextlib.suppress(msgspec.MsgspecError):
        problem = msgspec.json.decode(last, type=Problem)
        kind = Refused if problem.type == "Refused" else BadInput
        return kind(problem.subject, problem.value, problem.verdict, problem.way_out)
    if "MemoryError" in last:
        return _failed(f"needs more than {memory_mb} MB of memory", "make it smaller, or allow more memory")
    if code < 0:
        return _failed(f"was ended by {signal.Signals(-code).name}", "score it in a notebook to see why")
    return _failed(f"ended with exit code {code}" + (f": {last}" if last else ""), "score it in a notebook to see why")


def _checked(raw: bytes, rows: int, extra: int) -> np.ndarray[Any, Any]:
    import numpy as np

    if len(raw) != 8 * (rows + extra):
        raise _failed(f"gave {len(raw) / 8 - extra:g} scores for {rows} rows", "predict one number a row")
    return np.frombuffer(raw, dtype=np.float64)


def _scores(values: np.ndarray[Any, Any], kind: str) -> np.ndarray[Any, Any]:
    import numpy as np

    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise _failed(f"gave {wrong} scores that are not finite", "impute missing values in the pipeline")
    if kind == "classifier" and values.size and not (values.min() >= 0 and values.max() <= 1):
        raise _failed(f"gave probabilities from {values.min():g} to {values.max():g}", "predict between 0 and 1")
    return values


def _latency(more: np.ndarray[Any, Any]) -> Latency:
    import numpy as np

    calls = np.nan_to_num(more[2:], nan=np.inf)
    one, late = np.percentile(calls, [50, 95]) * 1e3
    return Latency(
        load_s=round(float(more[0]), 3), one_ms=round(float(one), 3), p95_ms=round(float(late), 3), calls=len(calls)
    )


def _failed(verdict: str, way_out: str) -> BadInput:
    return BadInput("model in its child process", "", verdict, way_out)
