"""Candidates on the workers: the data is there once, a fit and its score are tasks, the models stay there until one is the best.

A worker that dies is replaced by its nanny and its tasks run elsewhere; data that died with its last worker is sent again, a bounded
number of times. Every wait ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cellwork.errors import BadInput, Unavailable
from cellwork.evaluation import metrics
from cellwork.models.package import scores
from cellwork.training.candidates import Candidate, Step, best_of
from cellwork.training.fit import features, truth

SENDS = 3
"""How often the data is sent when all workers that held it died."""
EMPTY_SECONDS = 60
"""How long a cluster may be without any worker."""


@dataclass(frozen=True)
class Data:
    """What a worker holds: rows to fit on, and the rows of each measurement."""

    X: Any
    y: Any
    validation: tuple[Any, Any] | None
    splits: list[tuple[Any, Any]]

    @classmethod
    def of(cls, X: Any, y: Any, validation: tuple[Any, Any] | None, folds: Any) -> Data:
        from sklearn.model_selection import check_cv

        frame, labels = features(X), truth(y)
        if validation is not None:
            return cls(frame, labels, (features(validation[0]), truth(validation[1])), [])
        splitter = check_cv(folds, labels, classifier=len(set(labels.tolist())) == 2)
        return cls(frame, labels, None, list(splitter.split(frame, labels)))

    @property
    def folds(self) -> int:
        return max(1, len(self.splits))


class Lost(Exception):
    """The data on the workers is gone with them."""


class Race:
    def __init__(self, client: Any, data: Data, metric: str, deadline: float) -> None:
        self.client, self.data, self.metric, self.deadline = client, data, metric, deadline

    def run(self, models: Sequence[Any], candidates: Sequence[Candidate], progress: Callable[[Step], None]) -> Any:
        """Fill in what came of each candidate and return the best one's fitted model."""
        for _ in range(SENDS):
            try:
                return self._once(models, candidates, progress)
            except Lost:
                continue
        raise Unavailable(
            "workers", "", f"died with the data {SENDS} times", "give them more memory, or train on fewer rows"
        )

    def _once(self, models: Sequence[Any], candidates: Sequence[Candidate], progress: Callable[[Step], None]) -> Any:
        held = self.client.scatter(self.data, broadcast=True, hash=False)
        fitted: dict[tuple[int, int], Any] = {}
        measured: dict[Any, tuple[int, int]] = {}
        for k, candidate in enumerate(candidates):
            for fold in range(self.data.folds):
                if fold in candidate.scores or candidate.error:
                    continue
                fitted[k, fold] = self.client.submit(_fit, models[k], held, fold, pure=False)
                measured[self.client.submit(_score, fitted[k, fold], held, fold, self.metric, pure=False)] = k, fold
        try:
            self._follow(measured, fitted, candidates, progress)
            best = best_of(candidates, self.metric)
            if best is None:
                raise BadInput(
                    "candidates",
                    f"all {len(candidates)}",
                    f"failed, the first with {candidates[0].error}",
                    "mend the pipeline or the parameters",
                )
            return self._model(candidates.index(best), models, fitted, held)
        finally:
            self.client.cancel([*measured, *fitted.values()])

    def _follow(
        self,
        measured: dict[Any, tuple[int, int]],
        fitted: dict[tuple[int, int], Any],
        candidates: Sequence[Candidate],
        progress: Callable[[Step], None],
    ) -> None:
        pending = set(measured)
        while pending:
            done = self._wait(pending)
            pending -= done
            for future in done:
                k, fold = measured[future]
                self._take(future, candidates[k], fold)
                if all(measured[other][0] != k for other in pending):
                    best = best_of(candidates, self.metric)
                    finished = len(candidates) - len({measured[other][0] for other in pending})
                    progress(Step(finished, len(candidates), self.metric, candidates[k], best))
                    self._forget(fitted, candidates, best)

    def _take(self, future: Any, candidate: Candidate, fold: int) -> None:
        """Note a measurement or its error."""
        if future.status == "finished":
            candidate.scores[fold], seconds = future.result()
            candidate.seconds += seconds
        elif future.status == "error":
            error = future.exception()
            killed = type(error).__name__ == "KilledWorker"
            candidate.error = (
                "ended its worker again and again (out of memory?)" if killed else f"{type(error).__name__}: {error}"
            )
        else:
            raise Lost

    def _forget(
        self, fitted: dict[tuple[int, int], Any], candidates: Sequence[Candidate], best: Candidate | None
    ) -> None:
        """Let the workers drop the models that are done and not the best."""
        for k, fold in list(fitted):
            if candidates[k] is not best and (fold in candidates[k].scores or candidates[k].error):
                del fitted[k, fold]

    def _model(self, k: int, models: Sequence[Any], fitted: dict[tuple[int, int], Any], held: Any) -> Any:
        """Return the best candidate's model: the one that was measured, or with folds a new one on all rows."""
        future = fitted.get((k, 0)) if self.data.validation is not None else None
        if future is None:
            future = self.client.submit(_fit, models[k], held, None, pure=False)
        while not self._wait({future}):
            continue
        if future.status not in ("finished", "error"):
            raise Lost
        return future.result()[0]

    def _wait(self, futures: set[Any]) -> set[Any]:
        """Return those that ended; at least one, unless the deadline or a cluster without workers ends the search."""
        from dask.distributed import wait

        empty_since: float | None = None
        while True:
            try:
                return set(wait(list(futures), timeout=1, return_when="FIRST_COMPLETED").done)
            except TimeoutError:
                pass
            except _cancelled():
                raise Lost from None
            now = time.monotonic()
            if now > self.deadline:
                raise Unavailable(
                    "search", "", "took longer than its timeout", "try fewer candidates, or give it more time"
                )
            empty_since = None if self.client.scheduler_info(n_workers=-1)["workers"] else empty_since or now
            if empty_since and now - empty_since > EMPTY_SECONDS:
                raise Unavailable(
                    "cluster", "", f"has had no worker for {EMPTY_SECONDS} s", "start workers, or open a new cluster"
                )


def _cancelled() -> tuple[type[BaseException], ...]:
    from concurrent.futures import CancelledError

    return (CancelledError,)


def _fit(model: Any, data: Data, fold: int | None) -> tuple[Any, float]:
    """Return the fitted model and its seconds."""
    started = time.perf_counter()
    rows = data.splits[fold][0] if data.splits and fold is not None else None
    model.fit(_rows(data.X, rows), data.y if rows is None else data.y[rows])
    return model, time.perf_counter() - started


def _score(fitted: tuple[Any, float], data: Data, fold: int, metric: str) -> tuple[float, float]:
    """Return the metric on the fold's rows, and the seconds of the fit."""
    model, seconds = fitted
    if data.validation is not None:
        X, y = data.validation
    else:
        rows = data.splits[fold][1]
        X, y = _rows(data.X, rows), data.y[rows]
    return metrics.value(metric, y, scores(model, X)), seconds


def _rows(X: Any, rows: Any) -> Any:
    if rows is None:
        return X
    return X.iloc[rows] if hasattr(X, "iloc") else X[rows]
