"""Candidates on the workers: the data is there once, a fit and its score are tasks, the models stay there until one is the best.

A worker that dies is replaced by its nanny and its tasks run again. What died with it runs once more alone, so that only the candidate that ends its
workers is blamed for it. Every wait ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

from cellwork.errors import BadInput, Unavailable
from cellwork.evaluation import metrics
from cellwork.models.package import scores
from cellwork.training.candidates import Candidate, Step, best_of
from cellwork.training.fit import hold
from cellwork.training.rows import checked, features, truth

EMPTY_SECONDS = 60
"""How long a cluster may be without any worker."""
RESULT_SECONDS = 60
"""How long a finished result may take from its worker to here."""
TRIES = 3
"""How often the best model is fitted when its worker dies."""


Pair = tuple[int, int]
"""Candidate and fold."""


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

        frame, labels = checked(X, y)
        if validation is not None:
            return cls(frame, labels, (features(validation[0]), truth(validation[1])), [])
        splitter = check_cv(folds, labels, classifier=len(set(labels.tolist())) == 2)
        return cls(frame, labels, None, list(splitter.split(frame, labels)))

    @property
    def folds(self) -> int:
        return max(1, len(self.splits))


class Race:
    """One search's candidates; `self.fitted` holds the models that may still be the best, by (candidate, fold)."""

    def __init__(self, client: Any, data: Data, metric: str, deadline: float, progress: Callable[[Step], None]) -> None:
        self.client, self.data, self.metric, self.deadline, self.progress = client, data, metric, deadline, progress
        self.fitted: dict[Pair, Any] = {}
        self.done = 0

    def run(self, models: Sequence[Any], candidates: Sequence[Candidate]) -> Any:
        """Fill in what came of each candidate and return the best one's fitted model.

        Raises
        ------
        BadInput
            Every candidate failed.
        Unavailable
            The deadline passed, or the cluster went away.
        """
        pairs = [(k, fold) for k in range(len(models)) for fold in range(self.data.folds)]
        try:
            for pair in self._round(pairs, models, candidates):
                if self._round([pair], models, candidates):
                    self._end(candidates, pair[0], "ended its worker again and again (out of memory?)")
            best = best_of(candidates, self.metric)
            if best is None:
                verdict = f"failed, the first with {candidates[0].error}"
                raise BadInput("candidates", f"all {len(candidates)}", verdict, "mend the pipeline or the parameters")
            return self._model(candidates.index(best), models)
        finally:
            self.fitted.clear()

    def _round(self, pairs: Sequence[Pair], models: Sequence[Any], candidates: Sequence[Candidate]) -> list[Pair]:
        """Measure `pairs` and return those whose worker died: one of them did it, so each gets a round alone."""
        held = hold(self.client, self.data)
        measured: dict[Any, Pair] = {}
        for k, fold in pairs:
            self.fitted[k, fold] = self.client.submit(_fit, models[k], held, fold, pure=False)
            future = self.client.submit(_score, self.fitted[k, fold], held, fold, self.metric, pure=False)
            measured[future] = k, fold
        suspects, pending = [], set(measured)
        while pending:
            for future in self._wait(pending):
                pending.discard(future)
                k, fold = measured[future]
                value, error = self._outcome(future)
                if type(error).__name__ == "KilledWorker":
                    suspects.append((k, fold))
                elif error is not None:
                    self._end(candidates, k, f"{type(error).__name__}: {error}")
                elif value is None:
                    pending.add(future)  # its result died with its worker and is made again
                else:
                    self._take(candidates, k, fold, *value)
        return suspects

    def _outcome(self, future: Any) -> tuple[Any, BaseException | None]:
        """Return the result or the error of a future that ended; neither if its result is lost again."""
        from distributed import KilledWorker

        try:
            error = future.exception(timeout=RESULT_SECONDS)
            return (None if error else future.result(timeout=RESULT_SECONDS)), error
        except KilledWorker as error:  # lost and killed since it ended
            return None, error
        except TimeoutError:
            return None, None
        except CancelledError as error:
            raise _gone(str(error)) from None

    def _take(self, candidates: Sequence[Candidate], k: int, fold: int, score: float, seconds: float) -> None:
        candidates[k].scores[fold] = score
        candidates[k].seconds += seconds
        if len(candidates[k].scores) == self.data.folds:
            self._end(candidates, k)

    def _end(self, candidates: Sequence[Candidate], k: int, error: str = "") -> None:
        """Candidate `k` is done, with its scores or with an error (its first one counts)."""
        if candidates[k].error:
            return
        candidates[k].error = error
        self.done += 1
        best = best_of([c for c in candidates if len(c.scores) == self.data.folds], self.metric)
        self.progress(Step(self.done, len(candidates), self.metric, candidates[k], best))
        over = {j for j, c in enumerate(candidates) if c is not best and (c.error or len(c.scores) == self.data.folds)}
        self.fitted = {pair: future for pair, future in self.fitted.items() if pair[0] not in over}

    def _model(self, k: int, models: Sequence[Any]) -> Any:
        """Return the best candidate's model: the one that was measured, or with folds a new one on all rows."""
        future = self.fitted.get((k, 0)) if self.data.validation is not None else None
        for _ in range(TRIES):
            future = future or self.client.submit(_fit, models[k], hold(self.client, self.data), None, pure=False)
            value, error = None, None
            while value is None and error is None:
                self._wait({future})
                value, error = self._outcome(future)
            if value is not None:
                return value[0]
            future = None
        raise Unavailable("best candidate", "", f"could not be fitted again: {error}", "give the workers more memory")

    def _wait(self, futures: set[Any]) -> set[Any]:
        """Return those that ended; at least one, unless the deadline or a cluster without workers ends the search."""
        from dask.distributed import wait

        empty_since: float | None = None
        while True:
            try:
                return set(wait(list(futures), timeout=1, return_when="FIRST_COMPLETED").done)
            except TimeoutError:
                pass
            except CancelledError as error:
                raise _gone(str(error)) from None
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


def _gone(status: str) -> Unavailable:
    return Unavailable("cluster", "", f"went away while it trained ({status})", "open a new cluster and search again")


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
