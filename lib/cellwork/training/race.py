"""Candidates on the workers: the data is there once, a fit and its score are tasks, the models stay there until one is the best.

States of a candidate: asked for, in flight (one task a fold), then scored, failed or, when its worker died, suspected. A
worker that dies is replaced by its nanny. What died with it runs once more alone when nothing else is in flight, so that only
the candidate that ends its workers is blamed for it. Every wait ends: at the deadline with an error, at the end of the budget
or when it is cancelled with what is done, and when the cluster has no worker for a minute. A score is in the journal before the
strategy hears of it, so a search that is killed loses what was in flight and no more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from typing import Any

from cellwork.errors import BadInput, Unavailable
from cellwork.training import blend, tasks
from cellwork.training.candidates import Candidate, Step, best_of
from cellwork.training.ending import Ending
from cellwork.training.fit import hold
from cellwork.training.journal import Journal
from cellwork.training.prefix import key_of, steps_of
from cellwork.training.strategies import Strategy
from cellwork.training.tasks import Data
from cellwork.training.terms import Terms

EMPTY_SECONDS = 60
"""How long a cluster may be without any worker."""
RESULT_SECONDS = 60
"""How long a finished result may take from its worker to here."""
TRIES = 3
"""How often the best model is fitted when its worker dies."""
PREPARED = 8
"""How many shared preparations the workers hold at a time."""
KILLER = "ended its worker again and again (out of memory?)"

Pair = tuple[Candidate, int]
"""Candidate and fold."""


class Race:
    """One search on one cluster. `ended` says why it is over: ``done``, ``budget`` or ``cancelled``."""

    def __init__(
        self,
        client: Any,
        data: Data,
        strategy: Strategy,
        make: Callable[[Candidate], Any],
        terms: Terms,
        journal: Journal,
    ) -> None:
        self.client, self.data, self.strategy, self.make, self.terms, self.journal = (
            client,
            data,
            strategy,
            make,
            terms,
            journal,
        )
        self.started, self.ended, self.done = time.monotonic(), "done", 0
        self._held: Any = None
        self._models: dict[int, Any] = {}
        self._kept: dict[int, Any] = {}
        self._prepared: dict[tuple[str, int], Any] = {}
        self._measured: dict[Any, Pair] = {}
        self._suspects: list[Pair] = []
        self._trying = False
        self._slots = max(1, sum(client.nthreads().values()))
        grows = 0.0 if data.validation is not None else len(data.y) / len(data.splits[0][0])
        self._ending = Ending(
            terms.budget, self.started, grows=grows, folds=data.folds, slots=self._slots, finalists=self._finalists,
            last=min(1.5, 0.02 * (terms.budget or 0)) if terms.answers else 0.0, submit=self._fit_whole,
        )  # fmt: skip

    def run(self) -> tuple[Candidate, Any]:
        """Try what the strategy asks for; return the best candidate and its model, fitted.

        Raises
        ------
        BadInput
            Every candidate failed.
        Unavailable
            The deadline passed, the cluster went away, or it ended before a candidate was done.
        """
        try:
            self._held = hold(self.client, self.data)
            self._try_all()
            best = self._best()
            return best, self._model(best)
        except KeyboardInterrupt:
            raise Unavailable("search", "", "was interrupted twice", "interrupt once to get what is done") from None
        finally:
            self._drop()

    def _try_all(self) -> None:
        pending: set[Any] = set()
        self._trying = True
        try:
            while not self._over():
                pending |= self._ending.more(self._complete())
                measured = pending & self._measured.keys()
                measured |= self._submit_more(len({id(self._measured[future][0]) for future in measured}))
                pending |= measured
                if not measured and not self._suspects and (self.strategy.over or not self.strategy.candidates):
                    return
                if self.strategy.over and not self._suspects:
                    pending |= self._ending.beside(self._complete(), self._slots - len(pending))
                if not pending and self._suspects:
                    pending |= self._alone(self._suspects.pop(0))
                if not pending:
                    continue
                for future in self._wait(pending):
                    pending.discard(future)
                    again = self._take(future)
                    pending |= {again} if again is not None else set()
        except KeyboardInterrupt:
            self.ended = "cancelled"
        finally:
            self._trying = False
            pending -= set(self._likely().values())
            if pending:
                self.client.cancel(list(pending), force=True)

    def _over(self) -> bool:
        if self.terms.stop.is_set():
            self.ended = "cancelled"
        elif self._ending.is_due(self._complete()):
            self.ended = "budget"
        else:
            return False
        return True

    def _complete(self) -> list[Candidate]:
        return [c for c in self.strategy.candidates if len(c.scores) == self.data.folds and not c.error]

    def _finalists(self, complete: Sequence[Candidate]) -> list[Candidate]:
        if self.terms.finalists is not None:
            return self.terms.finalists(complete)
        best = best_of(complete, self.terms.metric)
        return [best] if best else []

    def _likely(self) -> dict[int, Any]:
        """Return the fits on all rows that are still running, of what a search that came to its end will give back."""
        return self._ending.begun(self._finalists(self._complete())) if self.ended == "done" else {}

    def _fit_whole(self, candidate: Candidate) -> Any:
        """Return the future of a candidate's fit on all rows, which comes before what waits."""
        return self.client.submit(tasks.fit, self.make(candidate), self._held, None, pure=False, priority=10)

    def _submit_more(self, flying: int) -> set[Any]:
        """Ask for candidates until enough are in flight and return the futures of their scores."""
        made: set[Any] = set()
        while flying < self._slots * self.strategy.ahead:
            candidate = self.strategy.ask()
            if candidate is None:
                break
            futures = self._start(candidate)
            flying += bool(futures)
            made |= futures
        return made

    def _start(self, candidate: Candidate) -> set[Any]:
        try:
            self._models[id(candidate)] = self.make(candidate)
        except (BadInput, Unavailable, ValueError, TypeError) as error:
            self._end(candidate, str(error))
            return set()
        futures = set()
        for fold in range(self.data.folds):
            known = self.journal.known(candidate, self._models[id(candidate)], fold)
            if known is None:
                futures.add(self._submit(candidate, fold))
            elif known.score is None:
                self._end(candidate, known.error)
                break
            else:
                self._scored(candidate, fold, known.score, known.seconds)
        return futures

    def _submit(self, candidate: Candidate, fold: int) -> Any:
        """Return the future of a candidate's score on a fold; where there are no folds its model stays on the worker."""
        model, metric = self._models[id(candidate)], self.terms.metric
        parts = steps_of(model) if self.terms.share else None
        keep = self.data.validation is not None
        submit = self.client.submit
        if parts is None:
            about = (self._held, fold, candidate.fraction)
            if keep:
                self._kept[id(candidate)] = submit(tasks.fit, model, *about, pure=False)
                future = submit(tasks.score, self._kept[id(candidate)], *about, metric, self.terms.answers, pure=False)
            else:
                future = submit(tasks.fit_and_score, model, *about, metric, self.terms.answers, pure=False)
        else:
            first, last = parts
            prepared = self._preparation(first, last[0], candidate, fold)
            if keep:
                self._kept[id(candidate)] = submit(tasks.fit_last, last, prepared, pure=False)
                future = submit(tasks.score_last, self._kept[id(candidate)], prepared, metric, pure=False)
            else:
                future = submit(tasks.fit_and_score_last, last, prepared, metric, pure=False)
        self._measured[future] = candidate, fold
        return future

    def _preparation(self, first: list[Any], last: str, candidate: Candidate, fold: int) -> Any:
        key = key_of(candidate, last), fold
        found = self._prepared.pop(key, None)
        if found is None or found.status in ("error", "cancelled", "lost"):
            found = self.client.submit(tasks.prepare, first, self._held, fold, candidate.fraction, pure=False)
        self._prepared[key] = found
        while len(self._prepared) > PREPARED * self.data.folds:
            del self._prepared[next(iter(self._prepared))]
        return found

    def _alone(self, pair: Pair) -> set[Any]:
        """Try a suspect again while nothing else runs: only what ends its worker now is to blame."""
        candidate, fold = pair
        if candidate.error:
            return set()
        self._held = hold(self.client, self.data)
        self._prepared.clear()
        future = self._submit(candidate, fold)
        while True:
            if not self._wait({future}):
                return {future}
            value, error = self._outcome(future)
            if type(error).__name__ == "KilledWorker":
                self._failed(candidate, fold, KILLER)
            elif error is not None:
                self._failed(candidate, fold, f"{type(error).__name__}: {error}")
            elif value is None:
                continue
            else:
                self._scored(candidate, fold, *value, write=True)
            return set()

    def _take(self, future: Any) -> Any:
        """Take what came of a future; return it if its result died with its worker and is made again."""
        value, error = self._outcome(future)
        if value is None and error is None:
            return future
        if future in self._ending:
            self._ending.take(future, value)
            return None
        candidate, fold = self._measured.pop(future)
        if candidate.error:  # on another fold: that one counts
            return None
        if type(error).__name__ == "KilledWorker":
            self._suspects.append((candidate, fold))
        elif error is not None:
            self._failed(candidate, fold, f"{type(error).__name__}: {error}")
        else:
            self._scored(candidate, fold, *value, write=True)
        return None

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

    def _scored(
        self, candidate: Candidate, fold: int, score: float, seconds: float, answers: Any = None, *, write: bool = False
    ) -> None:
        if write:
            self.journal.write(candidate, self._models[id(candidate)], fold, score, seconds)
        candidate.scores[fold] = score
        candidate.seconds += seconds
        if answers is not None:
            candidate.answers[fold] = answers
        if len(candidate.scores) == self.data.folds:
            self._end(candidate)

    def _failed(self, candidate: Candidate, fold: int, error: str) -> None:
        self.journal.write(candidate, self._models[id(candidate)], fold, None, 0.0, error)
        self._end(candidate, error)

    def _end(self, candidate: Candidate, error: str = "") -> None:
        """The candidate is done, with its scores or with an error (its first one counts)."""
        if candidate.error:
            return
        candidate.error = error
        self.done += 1
        self.strategy.tell(candidate)
        complete = self._complete()
        best, kept = best_of(complete, self.terms.metric), {id(each) for each in self._finalists(complete)}
        over = {
            id(c)
            for c in self.strategy.candidates
            if id(c) not in kept and (c.error or len(c.scores) == self.data.folds)
        }
        for each in self.strategy.candidates if self.terms.answers else ():
            if id(each) in over:
                each.answers.clear()
        self._kept = {key: future for key, future in self._kept.items() if key not in over}
        self._models = {key: model for key, model in self._models.items() if key not in over}
        elapsed = time.monotonic() - self.started
        left = elapsed / self.done * max(0, self.strategy.of - self.done)
        if self.terms.budget is not None:
            left = min(left, max(0.0, self.terms.budget - elapsed))
        of = max(self.strategy.of, self.done)
        link = self.client.dashboard_link or ""
        self.terms.progress(Step(self.done, of, self.terms.metric, candidate, best, elapsed, left, link))

    def _best(self) -> Candidate:
        complete = self._complete()
        if self.terms.choose is None:
            ready = [c for c in complete if id(c) in self._ending.models] if self.ended == "budget" else []
            best = best_of(ready or complete, self.terms.metric)
        else:
            best = self.terms.choose(complete, [c for c in complete if self._is_ready(c)])
        if best is not None:
            return best
        if self.ended != "done":
            way_out = "give it more time" if self.ended == "budget" else "let one candidate finish"
            what = "its budget was spent" if self.ended == "budget" else "was cancelled"
            raise Unavailable("search", "", f"{what} before a candidate was done", way_out)
        tried = self.strategy.candidates
        verdict = f"failed, the first with {tried[0].error}"
        raise BadInput("candidates", f"all {len(tried)}", verdict, "mend the pipeline or the parameters")

    def _is_ready(self, candidate: Candidate) -> bool:
        """Return whether its model of all rows is there; where there is time, it will be."""
        return self.ended == "done" or id(candidate) in self._ending.models or id(candidate) in self._kept

    def _model(self, best: Candidate) -> Any:
        if best.members:
            self.strategy.candidates.append(best)
            fitted = [(each.model, self._fitted(each), weight) for each, weight in best.members]
            return blend.assemble(fitted, self.data.y)
        return self._fitted(best)

    def _fitted(self, best: Candidate) -> Any:
        """Return a candidate's model: the one that was measured, or with folds (or few rows) one of all rows."""
        if id(best) in self._ending.models:
            return self._ending.models[id(best)]
        measured = self.data.validation is not None and best.fraction == 1
        if self.ended != "done" and (not measured or id(best) not in self._kept):
            return tasks.fit(self.make(best), self.data, None)[
                0
            ]  # here: the workers may be at what was cancelled for a while
        future = self._kept.get(id(best)) if measured else self._likely().get(id(best))
        for _ in range(TRIES):
            future = future or self.client.submit(tasks.fit, self.make(best), self._held, None, pure=False)
            value, error = None, None
            while value is None and error is None:
                self._wait({future})
                value, error = self._outcome(future)
            if value is not None:
                return value[0]
            future, self._held = None, hold(self.client, self.data)
        raise Unavailable("best candidate", "", f"could not be fitted again: {error}", "give the workers more memory")

    def _wait(self, futures: set[Any]) -> set[Any]:
        """Return those that ended; none when the budget ends or it is cancelled; a passed deadline or an empty cluster is an error."""
        from dask.distributed import wait

        empty_since: float | None = None
        while True:
            try:
                patience = max(0.02, min(0.5, self._ending.left)) if self._trying else 0.5
                return set(wait(list(futures), timeout=patience, return_when="FIRST_COMPLETED").done)
            except TimeoutError:
                pass
            except CancelledError as error:
                raise _gone(str(error)) from None
            now = time.monotonic()
            if now > self.terms.deadline:
                raise Unavailable(
                    "search", "", "took longer than its timeout", "try fewer candidates, or give it more time"
                )
            empty_since = None if self.client.scheduler_info(n_workers=-1)["workers"] else empty_since or now
            if empty_since and now - empty_since > EMPTY_SECONDS:
                raise Unavailable(
                    "cluster", "", f"has had no worker for {EMPTY_SECONDS} s", "start workers, or open a new cluster"
                )
            if self._trying and self._over():
                return set()

    def _drop(self) -> None:
        for held in (self._models, self._kept, self._prepared, self._measured):
            held.clear()
        self._held = None


def _gone(status: str) -> Unavailable:
    return Unavailable("cluster", "", f"went away while it trained ({status})", "open a new cluster and search again")
