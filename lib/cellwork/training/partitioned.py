"""Boosted trees on rows that are spread over the workers: each reads its own files, none of them is read here.

Both libraries may wait for ever when a worker that holds rows leaves. So the whole fit is a job with an eye on the workers: when one is
gone, or the time is up, the workers are restarted and the fit begins again, three times at most; then it is an error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from cellwork.errors import BadInput, Unavailable
from cellwork.training import collective, parquet
from cellwork.training.cluster import Cluster

TRIES = 3
GRACE_SECONDS = 5.0
"""How long a fit may still end by itself after a worker is gone."""
RESTART_SECONDS = 60


def fit_partitioned(
    name: Literal["xgboost", "lightgbm"],
    source: Path | str,
    label: str,
    *,
    cluster: Cluster,
    kind: Literal["classifier", "regressor"] = "classifier",
    columns: Sequence[str] = (),
    timeout: float = 3600,
    progress: Callable[[str], None] = print,
    **parameters: Any,
) -> Any:
    """Return the fitted scikit-learn estimator of XGBoost or LightGBM, which needs no cluster any more.

    Parameters
    ----------
    source : Parquet files that every worker can read; a file is a partition.
    columns : numbers and flags to train on; default: all but the label.
    progress : told how it goes on, in sentences.
    timeout : seconds for all of it.

    Raises
    ------
    BadInput
        A column is missing or holds texts, or the library refuses the parameters.
    Unavailable
        Workers were lost again and again, or the time is up.
    """
    names = parquet.columns(source, label, columns)
    _refuse_texts(source, [*names, label])
    deadline = time.monotonic() + timeout
    for attempt in range(1, TRIES + 1):
        progress(
            f"fits {name} on {len(parquet.files(source))} files with {cluster.workers} workers"
            + (f", try {attempt}" if attempt > 1 else "")
        )
        fitting = _Fit(lambda: _fit(name, kind, cluster.client, source, names, label, parameters))
        if fitting.watched(cluster, deadline):
            return fitting.model
        progress("a worker is gone; the workers are restarted")
        _restart(cluster, deadline)
    raise Unavailable(
        "training", name, f"lost a worker {TRIES} times", "give the workers more memory, or take fewer rows"
    )


class _Fit:
    """One try, in a thread that is left behind if it hangs."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.model: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self.model = work()
        except BaseException as error:
            # whatever a library raises in there is judged by the watcher, who knows whether a worker is gone
            self.error = error

    def watched(self, cluster: Cluster, deadline: float) -> bool:
        """Return True when it is fitted, False when a worker is gone; raises what else went wrong."""
        there, gone_at = _workers(cluster), None
        while self._thread.is_alive():
            self._thread.join(0.25)
            now = time.monotonic()
            if now > deadline:
                raise Unavailable("training", "", "took longer than its timeout", "give it more time or fewer rows")
            if gone_at is None and there - _workers(cluster):
                gone_at = now
            if gone_at is not None and now - gone_at > GRACE_SECONDS:
                return False
        if self.error is None:
            return True
        if there - _workers(cluster) or type(self.error).__name__ in (
            "KilledWorker",
            "CommClosedError",
            "FutureCancelledError",
        ):
            return False
        if isinstance(self.error, BadInput | Unavailable):
            raise self.error
        raise BadInput(
            "training", "", f"{type(self.error).__name__}: {self.error}", "mend the parameters or the rows"
        ) from None


def _workers(cluster: Cluster) -> set[str]:
    return set(cluster.client.scheduler_info(n_workers=-1)["workers"])


def _restart(cluster: Cluster, deadline: float) -> None:
    left = max(1.0, min(RESTART_SECONDS, deadline - time.monotonic()))
    before, end = _workers(cluster), time.monotonic() + left
    try:
        cluster.client.restart(timeout=left, wait_for_workers=False)
        while before & _workers(cluster) and time.monotonic() < end:  # on its way out, it would look lost again
            time.sleep(0.25)
        cluster.client.wait_for_workers(1, timeout=left)
    except (TimeoutError, OSError) as error:
        raise Unavailable("cluster", "", f"did not come back ({error})", "open a new cluster") from None


def _refuse_texts(source: Path | str, names: Sequence[str]) -> None:
    import pyarrow.parquet
    import pyarrow.types as types

    schema = pyarrow.parquet.read_schema(parquet.files(source)[0])
    for name in names:
        kind = schema.field(name).type
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
            raise BadInput("column", name, f"holds {kind}", "name the columns that are numbers, or make numbers of it")


def _fit(
    name: str,
    kind: Literal["classifier", "regressor"],
    client: Any,
    source: Path | str,
    names: Sequence[str],
    label: str,
    parameters: dict[str, Any],
) -> Any:
    paths = parquet.files(source)
    if name == "xgboost":
        return collective.fit(kind, client, paths, names, label, parameters)
    import dask.dataframe as dd

    rows = dd.from_map(collective.read, paths, names=list(names), truth=label)
    X, y = rows[list(names)], rows[label].astype(int) if kind == "classifier" else rows[label]
    return _lightgbm(kind, client, X, y, parameters)


def _lightgbm(kind: str, client: Any, X: Any, y: Any, parameters: dict[str, Any]) -> Any:
    import lightgbm

    there = (lightgbm.DaskLGBMClassifier if kind == "classifier" else lightgbm.DaskLGBMRegressor)(
        client=client, tree_learner="data", verbose=-1, **parameters
    )
    return there.fit(X, y).to_local()
