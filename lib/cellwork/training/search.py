"""Search for the best parameters on a cluster: each candidate is a task, and the best so far is told as it is found.

A candidate that raises stands in the leaderboard with its error; only when none succeeds is that an error of the search.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cellwork.evaluation import metrics
from cellwork.training.candidates import Parameters, Space, Step, expand, leaderboard, rank, short
from cellwork.training.cluster import Cluster
from cellwork.training.cluster import cluster as open_cluster
from cellwork.training.fit import configured
from cellwork.training.race import Data, Race

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Search:
    """The fitted best candidate and the leaderboard of all."""

    model: Any
    parameters: Parameters
    metric: str
    score: float
    leaderboard: pl.DataFrame
    """Best first: rank, the metric, one column a parameter, seconds of fitting, error."""
    seconds: float

    def __repr__(self) -> str:
        return f"best {self.metric} {self.score:.4f} with {short(self.parameters)}, of {self.leaderboard.height} candidates in {self.seconds:.1f} s"

    def _repr_html_(self) -> str:
        return str(self.leaderboard._repr_html_())


def search(
    pipeline: Any,
    candidates: Space,
    X: Any,
    y: Any,
    *,
    validation: tuple[Any, Any] | None = None,
    folds: Any = 3,
    metric: str = "roc_auc",
    draws: int = 10,
    seed: int = 0,
    cluster: Cluster | None = None,
    progress: Callable[[Step], None] = print,
    timeout: float = 3600,
) -> Search:
    """Fit every candidate and return the best, fitted, with the leaderboard.

    Parameters
    ----------
    pipeline : a scikit-learn estimator; it is cloned.
    candidates : a grid (name -> values), several grids, or distributions (name -> with `.rvs`), of which `draws` are drawn.
    X, y : shapes (n, columns) and (n,)
        Features and labels to fit on.
    validation : (X, y) to measure on; without it `folds` of the training rows, then one fit on all.
    folds : a number, or a splitter of scikit-learn such as ``TimeSeriesSplit(5)``.
    metric : a name of `cellwork.evaluation.metrics`.
    cluster : default: one of this machine's cores, for this search.
    progress : told a `Step` after each candidate; `print` shows it as a sentence.
    timeout : seconds for all of it.

    Raises
    ------
    BadInput
        An unknown metric or parameter; or every candidate failed: the first one's error.
    Unavailable
        It took longer than `timeout`, or workers died again and again.
    """
    started = time.monotonic()
    metrics.kind_of(metric)
    tried = expand(candidates, draws, seed)
    models = [configured(pipeline, candidate.parameters) for candidate in tried]
    data = Data.of(X, y, validation, folds)
    with open_cluster() if cluster is None else nullcontext(cluster) as workers:
        model = Race(workers.client, data, metric, started + timeout, progress).run(models, tried)
    best = rank(tried, metric)[0]
    return Search(model, best.parameters, metric, best.score, leaderboard(tried, metric), time.monotonic() - started)
