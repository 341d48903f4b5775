"""How a search ends: what is likely to be the answer is fitted on all rows while the search still runs.

Where nothing is left to try, the best so far is fitted beside the last candidates, on workers that would be idle. Of a search with a budget: shortly before the time is up the finalists are fitted, before anything else that waits; what becomes a finalist after that
is too, if there is time for it. At the end the answer is one of those, so that the budget is used to its end and hardly exceeded. Where nothing
was ready (one candidate took all the time) the best is fitted afterwards, and the search ends as much earlier as that will take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from cellwork.training.candidates import Candidate

SAFE = 1.3
"""How much longer than it took on the folds a fit may take."""
SOON = 0.3
"""Seconds that a result needs to be here."""

Finalists = Callable[[Sequence[Candidate]], list[Candidate]]


class Ending:
    """The finalists of a race and their models, fitted on all rows.

    Parameters
    ----------
    budget : seconds on the monotonic clock's scale from `started`; None: the race is not bound, and nothing is fitted ahead.
    grows : by how much more rows there are in all than in a fold's training part; 0: candidates are measured by models of all rows.
    last : seconds to choose among the finalists.
    submit : starts the fit of a candidate on all rows.
    """

    def __init__(
        self, budget: float | None, started: float, *, grows: float, folds: int, slots: int, last: float, finalists: Finalists,
        submit: Callable[[Candidate], Any],
    ) -> None:  # fmt: skip
        self._budget, self._started, self._grows, self._folds = budget, started, grows, folds
        self._slots, self._last, self._finalists, self._submit = slots, last, finalists, submit
        self._flying: dict[Any, Candidate] = {}
        self._asked: set[int] = set()
        self._begun = False
        self.models: dict[int, Any] = {}
        """`id` of a candidate -> its model."""

    @property
    def left(self) -> float:
        return float("inf") if self._budget is None else self._budget - (time.monotonic() - self._started)

    def is_due(self, complete: Sequence[Candidate]) -> bool:
        """Return whether the search has to end now for the answer to be there in time."""
        if self._budget is None:
            return False
        if not self._grows or self.models or self._flying:
            return self.left < self._last
        finalists = self._finalists(complete)
        return self.left < (1.2 * self.estimate(finalists[0]) if finalists else 0.0)

    def more(self, complete: Sequence[Candidate]) -> set[Any]:
        """Start what is to be fitted on all rows now, and return the futures."""
        if self._budget is None or not self._grows:
            return set()
        wanted = [c for c in self._finalists(complete) if id(c) not in self._asked]
        if not wanted or not (self._begun or self.left < self._needed(wanted, complete)):
            return set()
        self._begun = True
        return {self._begin(c) for c in wanted if SAFE * self.estimate(c) + SOON + self._last < self.left}

    def beside(self, complete: Sequence[Candidate], idle: int) -> set[Any]:
        """Start the likeliest answers on workers that have nothing left to do, and return the futures."""
        if self._budget is not None or not self._grows or idle < 1:
            return set()
        wanted = [c for c in self._finalists(complete) if id(c) not in self._asked and c.fraction == 1]
        return {self._begin(candidate) for candidate in wanted[:idle]}

    def _begin(self, candidate: Candidate) -> Any:
        self._asked.add(id(candidate))
        future = self._submit(candidate)
        self._flying[future] = candidate
        return future

    def begun(self, candidates: Sequence[Candidate]) -> dict[int, Any]:
        """Return `id` of a candidate -> the future of its model, of those of `candidates` that are being fitted."""
        return {id(each): future for future, each in self._flying.items() if each in candidates}

    def _needed(self, wanted: Sequence[Candidate], complete: Sequence[Candidate]) -> float:
        """Return from how many seconds before the end on nothing else should be begun: what runs now has to end first."""
        fits = [SAFE * self.estimate(candidate) for candidate in wanted]
        running = max(candidate.seconds / self._folds for candidate in complete)
        return max(sum(fits) / self._slots, *fits) + running + SOON + self._last

    def estimate(self, candidate: Candidate) -> float:
        """Return how many seconds a fit on all rows will take."""
        return self._grows / candidate.fraction * candidate.seconds / self._folds

    def take(self, future: Any, value: Any) -> None:
        """Keep what came of a future of `more`; None where it failed."""
        candidate = self._flying.pop(future)
        if value is not None:
            self.models[id(candidate)] = value[0]

    def __contains__(self, future: Any) -> bool:
        return future in self._flying
