"""XGBoost on several workers at once: each grows the same trees on the rows of its own files.

The workers find each other through a tracker, a child of one of the workers. XGBoost's own Dask interface runs it in the scheduler,
which for a local cluster is the notebook's kernel: what aborts in there (a worker killed while it boosts is enough) ends the kernel.
Here it ends with its worker at the latest: its input is closed then.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cellwork.errors import BadInput, Unavailable

if TYPE_CHECKING:
    import pandas as pd

START_SECONDS = 60
SILENT_SECONDS = 300
"""How long one worker waits for the others: they may still read their files."""
_TRACKERS: dict[int, subprocess.Popen[str]] = {}


def read(path: Path, names: Sequence[str], truth: str) -> pd.DataFrame:
    """Return the numbers of a file whose label is known."""
    import pandas as pd

    frame = pd.read_parquet(path, columns=[*names, truth]).astype(float)
    return frame[frame[truth].notna()]


def fit(
    kind: Literal["classifier", "regressor"],
    client: Any,
    paths: Sequence[Path],
    names: Sequence[str],
    label: str,
    parameters: dict[str, Any],
) -> Any:
    """Return XGBoost's scikit-learn estimator fitted on all files, spread over as many workers as there are files for."""
    import xgboost

    model = (xgboost.XGBClassifier if kind == "classifier" else xgboost.XGBRegressor)(tree_method="hist", **parameters)
    terms = model.get_xgb_params()
    if kind == "classifier":
        found = client.gather(client.map(_classes, list(paths), label=label, pure=False))
        terms.update(_objective({each for part in found for each in part}))
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])[: len(paths)]
    first = {"workers": workers[:1], "allow_other_workers": False, "pure": False}
    tracker, about = client.submit(_start_tracker, len(workers), _host(workers[0]), **first).result(START_SECONDS)
    parts = [
        client.submit(
            _fit, list(paths[k :: len(workers)]), list(names), label, terms, model.get_num_boosting_rounds(), about,
            str(k), workers=[worker], allow_other_workers=False, pure=False,
        )
        for k, worker in enumerate(workers)
    ]  # fmt: skip
    model.load_model(bytearray(next(raw for raw in client.gather(parts) if raw)))
    client.submit(_end_tracker, tracker, **first).result(START_SECONDS)
    return model


def _host(address: str) -> str:
    return address.partition("://")[2].rpartition(":")[0].strip("[]")


def _classes(path: Path, label: str) -> list[int]:
    values = read(path, [], label)[label]
    return [int(value) for value in values.unique()]


def _objective(classes: set[int]) -> dict[str, Any]:
    """Return XGBoost's objective for the classes of all files: one worker's files may not have each.

    Raises
    ------
    BadInput
        There are not two classes, or they are not 0, 1, 2, ...
    """
    if len(classes) < 2:
        raise BadInput("labels", sorted(classes), "are not two classes", "take rows with other outcomes too")
    if sorted(classes) != list(range(len(classes))):
        raise BadInput("labels", sorted(classes)[:5], "are not 0, 1, 2 and so on", "number the classes from 0")
    if len(classes) == 2:
        return {"objective": "binary:logistic"}
    return {"objective": "multi:softprob", "num_class": len(classes)}


def _fit(
    paths: Sequence[Path], names: Sequence[str], label: str, terms: dict[str, Any], rounds: int, about: str, task: str
) -> bytes | None:
    """Grow the trees together with the other workers; the first of them returns the booster."""
    import pandas as pd
    import xgboost
    from xgboost import collective

    rows = pd.concat([read(path, names, label) for path in paths])
    with collective.CommunicatorContext(**json.loads(about), dmlc_task_id=task, dmlc_timeout=SILENT_SECONDS):
        matrix = xgboost.QuantileDMatrix(rows[list(names)], rows[label])
        booster = xgboost.train(terms, matrix, num_boost_round=rounds)
        return bytes(booster.save_raw("ubj")) if collective.get_rank() == 0 else None


def _start_tracker(workers: int, host: str) -> tuple[int, str]:
    """Start a tracker beside this worker; return its process id and what the workers need to know of it."""
    child = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import track; track({workers}, {host!r})"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    about = child.stdout.readline()
    if not about:
        raise Unavailable("XGBoost's tracker", host, "did not start", "look at the worker's log")
    _TRACKERS[child.pid] = child
    return child.pid, about


def _end_tracker(pid: int) -> None:
    child = _TRACKERS.pop(pid, None)
    if child is not None:
        child.kill()
        child.wait()


def track(workers: int, host: str) -> None:
    """Be the tracker until the input is closed."""
    from xgboost.tracker import RabitTracker

    tracker = RabitTracker(n_workers=workers, host_ip=host, sortby="task")
    tracker.start()
    print(json.dumps(tracker.worker_args()), flush=True)
    sys.stdin.read()
