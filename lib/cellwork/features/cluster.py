"""The point-in-time join past one machine: `history.join` of partitions by the hash of the entity, on the workers of a Dask cluster.

Each stretch of a view's rows is read by one worker and split by the hash of its entity; each partition then goes to a worker with
the questions of its entities, which answers as one process would (`history.answered`), so that the frame is equal cell by cell and does not
depend on workers, partitions or their order. Only answers come back. Views are joined one after the other.

Failures: what a dead worker held is made again by another, as often as Dask allows (`distributed.scheduler.allowed-failures`); with no
worker for `PATIENCE` seconds, or a lost scheduler, the join ends with Unavailable. An exception of `progress` (a cancel) is heard at
least every second and ends what runs. Nothing is written, and nothing of a join stays on the cluster. Workers need this library in
the same version of polars, and to reach the tables: lazy frames are read by them, eager ones are sent.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cellwork.errors import Conflict, Unavailable
from cellwork.features import history
from cellwork.features.asked import Asked
from cellwork.features.history import JoinView, Part, Progress
from cellwork.features.row import require_time
from cellwork.wire.datasets import Coverage

if TYPE_CHECKING:
    import polars as pl

ROWS_AT_ONCE = 2_000_000
"""Feature rows that a worker reads and splits at a time."""
PARTITION_ROWS = 1_000_000
"""Feature rows in a partition, about."""
LEAST_PARTITIONS = 4
PATIENCE = 60.0
"""Seconds without a worker after which a join gives up."""
LOOK = 0.5


@dataclass(frozen=True)
class Spread:
    """One view's join on the cluster."""

    client: Any
    view: JoinView
    arrival: bool
    partitions: int

    def submit(self, asked: Asked) -> list[Any]:
        """Return a future of each partition's `Part`."""
        keys, count = list(self.view.keys), self.partitions
        whole = self.view.rows.lazy()
        stretches = [
            self.client.submit(_split, _stretch(self.view.rows, start), keys, count, _version(), pure=False)
            for start in range(0, max(_height(whole), 1), ROWS_AT_ONCE)
        ]
        plain = replace(self.view, rows=whole.clear().collect())
        answers = []
        for number, own in enumerate(asked.buckets(bucket(asked.groups, keys, count), count)):
            pieces = [self.client.submit(operator.getitem, each, number, pure=False) for each in stretches]
            answers.append(self.client.submit(_answer, plain, own, self.arrival, *pieces, pure=False))
        return answers


def join(
    observations: pl.DataFrame,
    *,
    at: str,
    views: Sequence[JoinView],
    client: Any,
    arrival: bool = True,
    partitions: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[pl.DataFrame, list[Coverage]]:
    """Return what `history.join` of the same returns, made on the cluster of `client` (a ``distributed.Client``).

    Parameters
    ----------
    partitions : of each view; default one a million rows.
    progress : called before and after each partition, and while none is done; what it raises ends the join.

    Raises
    ------
    BadInput
        As in `history.join`.
    Unavailable
        The cluster has no worker, or lost its scheduler.
    Conflict
        A partition ended its worker again and again, or the workers have another version of polars.
    """
    require_time("observations", observations, at)
    counts = [partitions or max(LEAST_PARTITIONS, -(-_height(v.rows.lazy()) // PARTITION_ROWS)) for v in views]
    joined, coverage, questions = observations, [], history.Questions(observations, at)
    for number, (view, count) in enumerate(zip(views, counts, strict=True)):
        asked, before = questions.of(view), sum(counts[:number])

        def tell(done: int, before: int = before, name: str = view.view.name) -> None:
            if progress:
                progress(Progress(before + done, sum(counts), name))

        parts = _waited(client, Spread(client, view, arrival, count).submit(asked), tell)
        columns, found = history.gathered(observations.get_column(at), view, asked, parts)
        coverage.append(found)
        joined = joined.hstack(columns)
    if progress:
        progress(Progress(sum(counts), sum(counts), ""))
    return joined, coverage


def bucket(rows: pl.DataFrame, keys: Sequence[str], count: int) -> Any:
    """Return the partition of each row by the hash of its keys, shape (n,)."""
    import polars as pl

    words = pl.struct(pl.col(key).cast(pl.String) for key in keys)
    return rows.select((words.hash(seed=4) % count).cast(pl.Int64)).to_series().to_numpy()


def _waited(client: Any, futures: list[Any], tell: Callable[[int], None]) -> list[Part]:
    """Return the results of `futures` in their order; whatever ends this earlier cancels them."""
    from dask.distributed import KilledWorker, TimeoutError, wait
    from distributed.client import FutureCancelledError
    from distributed.comm import CommClosedError

    seen = time.monotonic()
    try:
        left = list(futures)
        while left:
            tell(len(futures) - len(left))
            with suppress(TimeoutError):
                left = list(wait(left, timeout=LOOK, return_when="FIRST_COMPLETED").not_done)
            if client.scheduler_info(n_workers=1)["workers"]:
                seen = time.monotonic()
            elif time.monotonic() - seen > PATIENCE:
                raise _lost(client, f"has had no worker for {PATIENCE:.0f} s")
        tell(len(futures))
        return list(client.gather(futures))
    except KilledWorker as error:
        raise Conflict("join", error.task, "ended its worker again and again", "give workers more memory, or more partitions") from None  # fmt: skip
    except (CommClosedError, FutureCancelledError) as error:
        raise _lost(client, f"lost its scheduler ({type(error).__name__})") from None
    finally:
        if client.status == "running":
            client.cancel(futures, force=True)


def _lost(client: Any, why: str) -> Unavailable:
    address = getattr(client.scheduler, "address", "") if client.scheduler else ""
    return Unavailable("Dask cluster", address, why, "look at its workers, then ask again")


def _height(rows: pl.LazyFrame) -> int:
    import polars as pl

    return int(rows.select(pl.len()).collect().item())


def _stretch(rows: pl.DataFrame | pl.LazyFrame, start: int) -> pl.DataFrame | pl.LazyFrame:
    return rows.slice(start, ROWS_AT_ONCE)


def _version() -> str:
    import polars as pl

    return pl.__version__


# On the workers


def _split(rows: pl.DataFrame | pl.LazyFrame, keys: Sequence[str], count: int, version: str) -> Mapping[int, Any]:
    """Return the rows of each partition, in their order."""
    import polars as pl

    if version != pl.__version__:
        raise Conflict(
            "polars of a worker", pl.__version__, f"is not {version}, and would split otherwise", "install the same one"
        )
    frame = rows.lazy().collect()
    number = bucket(frame, keys, count)
    return {each: frame.filter(pl.Series(number == each)) for each in range(count)}


def _answer(view: JoinView, asked: Asked, arrival: bool, *pieces: pl.DataFrame) -> Part:
    import polars as pl

    rows = pl.concat(pieces, how="vertical_relaxed")
    return history.answered(replace(view, rows=rows), asked, arrival=arrival, whole=False)
