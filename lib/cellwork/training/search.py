"""Search for the best parameters on a cluster: each candidate is a task, and the best so far is told as it is found.

A candidate that raises stands in the leaderboard with its error; only when none succeeds is that an error of the search. First
steps of pipelines that candidates share are computed once. An interrupt (or `stop`) keeps what is done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cellwork.errors import BadInput
from cellwork.training import measure
from cellwork.training.candidates import Candidate, Parameters, Space, Step, leaderboard, parts_of, short
from cellwork.training.catalogue.model import kind_of
from cellwork.training.cluster import Cluster
from cellwork.training.cluster import cluster as open_cluster
from cellwork.training.ending import Finalists
from cellwork.training.fit import configured
from cellwork.training.journal import Journal
from cellwork.training.prefix import first_parameters, key_of, steps_of, worth_sharing
from cellwork.training.race import Race
from cellwork.training.strategies import Listed, Strategy, strategy
from cellwork.training.tasks import Data
from cellwork.training.terms import Choose, Terms

if TYPE_CHECKING:
    import polars as pl

Method = Literal["auto", "grid", "random", "halving", "hyperband", "bayes"]


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
    ended: str = "done"
    """``done``, ``budget`` or ``cancelled``."""
    candidates: list[Candidate] = field(default_factory=list, repr=False)

    def __repr__(self) -> str:
        why = (
            "" if self.ended == "done" else f" ({'cancelled' if self.ended == 'cancelled' else 'its budget is spent'})"
        )
        return f"best {self.metric} {self.score:.4f} with {short(self.parameters)}, of {self.leaderboard.height} candidates in {self.seconds:.1f} s{why}"

    def _repr_html_(self) -> str:
        return str(self.leaderboard._repr_html_())


def search(
    pipeline: Any,
    candidates: Space,
    X: Any,
    y: Any,
    *,
    method: Method = "auto",
    validation: tuple[Any, Any] | None = None,
    folds: Any = 3,
    metric: str = "",
    draws: int = 10,
    seed: int = 0,
    cluster: Cluster | None = None,
    progress: Callable[[Step], None] = print,
    budget: float | None = None,
    resume: Path | str | None = None,
    stop: threading.Event | None = None,
    timeout: float = 3600,
) -> Search:
    """Fit every candidate and return the best, fitted, with the leaderboard.

    Parameters
    ----------
    pipeline : a scikit-learn estimator; it is cloned.
    candidates : a grid (name -> values), several grids, or distributions (name -> `catalogue.Number`, `catalogue.Choice` or one
        with `.rvs`), of which `draws` are drawn.
    X, y : shapes (n, columns) and (n,)
        Features and labels to fit on.
    method : ``grid``, ``random``, ``halving`` (all on few rows, a third of them on more), ``hyperband`` (halvings of several
        sizes), ``bayes`` (Optuna: where others did well); ``auto`` is random where there is a distribution, else the grid.
    validation : (X, y) to measure on; without it `folds` of the training rows, then one fit on all.
    folds : a number, folds of `cellwork.data.split`, or a splitter of scikit-learn such as ``TimeSeriesSplit(5)``.
    metric : a name of `cellwork.evaluation.metrics`, or ``accuracy``; default: what suits the labels.
    cluster : default: one of this machine's cores, for this search.
    progress : told a `Step` after each candidate; `print` shows it as a sentence.
    budget : seconds after which the best so far is the answer, its last fit included.
    resume : a file of results: what is in it is not tried again, what is tried is added.
    stop : set it from another thread to end the search with what is done; so does an interrupt.
    timeout : seconds for all of it; an error.

    Raises
    ------
    BadInput
        An unknown metric or parameter; or every candidate failed: the first one's error.
    Unavailable
        It took longer than `timeout`, workers died again and again, or nothing was done when it ended.
    """
    data = Data.of(X, y, validation, folds)
    chosen = measure.check(metric, data.y, kind_of(data.y))
    greater = chosen in measure.GREATER_IS_BETTER
    plan = strategy(method, candidates, metric=chosen, greater=greater, rows=len(data.y), draws=draws, seed=seed)
    _known(pipeline, candidates)
    share = _ordered(pipeline, candidates, plan)
    return run(
        plan, lambda candidate: configured(pipeline, candidate.parameters), data, chosen, share=share, cluster=cluster,
        progress=progress, budget=budget, resume=resume, stop=stop, timeout=timeout,
    )  # fmt: skip


def run(
    plan: Strategy, make: Callable[[Candidate], Any], data: Data, metric: str, *, share: bool, cluster: Cluster | None,
    progress: Callable[[Step], None], budget: float | None, resume: Path | str | None, stop: threading.Event | None, timeout: float,
    finalists: Finalists | None = None, choose: Choose | None = None,
) -> Search:  # fmt: skip
    """Try what `plan` asks for, made by `make`; see `search`."""
    started = time.monotonic()
    if budget is not None and budget <= 0:
        raise BadInput("budget", f"{budget:g} s", "is no time", "give it seconds enough for one fit")
    journal = Journal(resume, (data.X, data.y, data.validation, data.splits), metric)
    with open_cluster() if cluster is None else nullcontext(cluster) as workers:
        left = None if budget is None else budget - (time.monotonic() - started)
        terms = Terms(
            metric,
            started + timeout,
            left,
            stop or threading.Event(),
            progress,
            share,
            choose is not None,
            finalists,
            choose,
        )
        race = Race(workers.client, data, plan, make, terms, journal)
        best, model = race.run()
    tried = [c for c in plan.candidates if c.error or len(c.scores) == data.folds]
    board = leaderboard(tried, metric)
    return Search(model, best.parameters, metric, best.score, board, time.monotonic() - started, race.ended, tried)


def _known(pipeline: Any, candidates: Space) -> None:
    """Raise BadInput with the near miss for a parameter that the pipeline does not have, before anything runs."""
    for part in parts_of(candidates):
        configured(pipeline, {name: _first(values) for name, values in part.items()})


def _first(values: Any) -> Any:
    if hasattr(values, "rvs"):
        return values.rvs(random_state=0)
    return next(iter(values), None)


def _ordered(pipeline: Any, candidates: Space, plan: Strategy) -> bool:
    """Return whether candidates share first steps; a list is put in the order in which they do."""
    parts = steps_of(pipeline)
    if parts is None:
        return False
    last = parts[1][0]
    if not isinstance(plan, Listed):
        return not any(first_parameters(part, last) for part in parts_of(candidates))
    if not worth_sharing(plan.listed, last):
        return False
    places: dict[str, int] = {}
    for candidate in plan.listed:
        places.setdefault(key_of(candidate, last), len(places))
    plan.listed.sort(key=lambda candidate: places[key_of(candidate, last)])
    return True
