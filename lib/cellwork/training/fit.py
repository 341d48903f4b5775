"""Fit one estimator, here or on a worker. The given estimator is never changed: a clone is fitted."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cellwork.errors import BadInput, Unavailable, near_miss
from cellwork.training.rows import checked, finite

if TYPE_CHECKING:
    from cellwork.training.cluster import Cluster


def fit(
    pipeline: Any,
    X: Any,
    y: Any = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    cluster: Cluster | None = None,
    timeout: float = 3600,
) -> Any:
    """Return a fitted clone of `pipeline` with `parameters` set.

    Parameters
    ----------
    X : shape (n, columns); a polars or pandas frame goes in as scikit-learn's pandas, an array as it is.
    y : shape (n,), no value missing; clusters need none.
    cluster : where to fit; default: in this process.
    timeout : seconds to wait for a cluster.

    Raises
    ------
    BadInput
        Rows or labels that nothing can be learned from; more clusters or neighbours asked for than there are rows.
    Unavailable
        It took longer than `timeout`.
    """
    chosen = configured(pipeline, parameters or {})
    frame, labels = (finite(X), None) if y is None else checked(X, y)
    _refuse_more_than_rows(chosen, frame.shape[0])
    if cluster is None:
        return chosen.fit(frame, labels)
    future = cluster.client.submit(_fitted, chosen, hold(cluster.client, (frame, labels)), pure=False)
    try:
        return future.result(timeout)
    except TimeoutError:
        raise Unavailable(
            "fit", "", f"took longer than {timeout:.0f} s", "fit on fewer rows, or give it more time"
        ) from None
    finally:
        future.release()


def _refuse_more_than_rows(pipeline: Any, rows: int) -> None:
    for name, value in pipeline.get_params().items():
        if name.rpartition("__")[2] in ("n_clusters", "n_neighbors") and isinstance(value, int) and value > rows:
            raise BadInput(f"parameter {name!r}", value, f"is more than the {rows:,} rows", "ask for fewer")


def _fitted(pipeline: Any, data: tuple[Any, Any]) -> Any:
    return pipeline.fit(*data)


def hold(client: Any, data: Any) -> Any:
    """Return a future of `data` on the workers.

    It is the result of a task, not scattered: the scheduler can make it again when every worker that held it has died.
    """
    import dask

    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):
        return client.submit(pickle.loads, pickle.dumps(data, protocol=5), pure=False)


def configured(pipeline: Any, parameters: Mapping[str, Any]) -> Any:
    """Return an unfitted clone with `parameters` set; raises BadInput for one it does not have."""
    from sklearn.base import clone

    known = pipeline.get_params()
    for name in parameters:
        if name not in known:
            raise BadInput("parameter", name, f"is not one of {type(pipeline).__name__}", near_miss(name, known))
    return clone(pipeline).set_params(**parameters)
