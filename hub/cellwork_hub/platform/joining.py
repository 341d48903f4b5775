"""The one place where the platform joins point in time: in its own process, or on the Dask cluster of `join_scheduler`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import polars as pl

from cellwork.features import cluster, history
from cellwork.features.history import JoinView, Progress
from cellwork.training import cluster as workers
from cellwork.wire.datasets import Coverage
from cellwork_hub.platform.state import State


def lazily(state: State, memory: int | None) -> bool:
    """Whether feature rows are to be left unread: partition by partition within a limit of memory, or by the workers."""
    return memory is not None or bool(state.context.settings.join_scheduler)


def join(
    state: State,
    observations: pl.DataFrame,
    *,
    at: str,
    views: Sequence[JoinView],
    arrival: bool = True,
    memory: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[pl.DataFrame, list[Coverage]]:
    """Return what `history.join` does. On a cluster `memory` is the workers' own, and the partitions are smaller than it asks for."""
    address = state.context.settings.join_scheduler
    if not address:
        return history.join(observations, at=at, views=views, arrival=arrival, memory=memory, progress=progress)
    with workers(address) as there:
        return cluster.join(observations, at=at, views=views, client=there.client, arrival=arrival, progress=progress)
