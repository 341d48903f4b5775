"""What to try next: a strategy is asked for candidates and told what came of them, whoever fits them and in whatever order.

`ask` gives None while it waits for answers; `over` is true when it will never give another. Nothing here knows of clusters.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from cellwork.errors import BadInput, Unavailable
from cellwork.training.candidates import Candidate, Parameters, Space, expand, parts_of, rank

ETA = 3
"""Of how many candidates one goes on to the next rung of a halving."""
LEAST_ROWS = 500
"""A rung has at least this many rows."""


class Strategy(Protocol):
    of: int
    """How many candidates there will be, as far as one knows."""
    ahead: int
    """How many candidates to have in flight for each that is being fitted."""
    candidates: list[Candidate]
    """What was asked for so far."""

    @property
    def over(self) -> bool: ...

    def ask(self) -> Candidate | None: ...

    def tell(self, candidate: Candidate) -> None: ...


class Listed:
    """All of a list, in its order: grids and random draws."""

    ahead = 2

    def __init__(self, listed: Sequence[Candidate]) -> None:
        self.listed, self.of = list(listed), len(listed)
        self.candidates: list[Candidate] = []

    @property
    def over(self) -> bool:
        return len(self.candidates) == self.of

    def ask(self) -> Candidate | None:
        if self.over:
            return None
        self.candidates.append(self.listed[len(self.candidates)])
        return self.candidates[-1]

    def tell(self, candidate: Candidate) -> None:
        """A list does not learn."""


class Halving:
    """Successive halving: all candidates on few rows, the best third of them on three times as many, until one rung has all rows.

    Jamieson and Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization, 2016.
    """

    ahead = 2

    def __init__(self, listed: Sequence[Candidate], metric: str, rows: int, rungs: int | None = None) -> None:
        most = _rungs(rows)
        wanted = 1 + math.floor(math.log(len(listed), ETA) + 1e-9) if rungs is None else rungs
        self._rungs = max(1, min(wanted, most))
        self._metric, self._rung = metric, 0
        self._waiting, self._told = list(listed), list[Candidate]()
        self._size = len(listed)
        self.of = sum(max(1, math.ceil(len(listed) / ETA**rung)) for rung in range(self._rungs))
        self.candidates: list[Candidate] = []
        self._set_fraction()

    def _set_fraction(self) -> None:
        for candidate in self._waiting:
            candidate.fraction = float(ETA) ** (self._rung + 1 - self._rungs)

    @property
    def over(self) -> bool:
        return not self._waiting and self._rung == self._rungs - 1

    def ask(self) -> Candidate | None:
        if not self._waiting:
            return None
        self.candidates.append(self._waiting.pop(0))
        return self.candidates[-1]

    def tell(self, candidate: Candidate) -> None:
        self._told.append(candidate)
        if len(self._told) < self._size or self._rung == self._rungs - 1:
            return
        good = [each for each in rank(self._told, self._metric) if not math.isnan(each.score)]
        kept = good[: max(1, math.ceil(len(self._told) / ETA))]
        self._rung += 1
        self._waiting = [Candidate(dict(each.parameters), each.model) for each in kept]
        self._told, self._size = [], len(kept)
        if not kept:
            self._rung = self._rungs - 1
        self._set_fraction()


def _rungs(rows: int) -> int:
    return max(1, 1 + math.floor(math.log(max(1.0, rows / LEAST_ROWS), ETA) + 1e-9))


class Hyperband:
    """Halvings from many candidates on few rows to few candidates on all rows, side by side, so that no one size is betted on; again
    until all draws are used.

    Li and others, Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization, 2018.
    """

    ahead = 2

    def __init__(self, draw: Callable[[int], list[Candidate]], metric: str, rows: int, draws: int) -> None:
        top = min(_rungs(rows), 1 + math.floor(math.log(max(draws, 1), ETA) + 1e-9))
        sizes = [math.ceil(top / rungs * ETA ** (rungs - 1)) for rungs in range(top, 0, -1)]
        drawn = draw(draws)
        self._brackets = []
        for rungs, size in itertools.cycle(zip(range(top, 0, -1), sizes, strict=True)):
            part, drawn = drawn[:size], drawn[size:]
            if not part:
                break
            self._brackets.append(Halving(part, metric, rows, rungs))
        self.of = sum(bracket.of for bracket in self._brackets)
        self._asked: dict[int, Halving] = {}
        self.candidates: list[Candidate] = []

    @property
    def over(self) -> bool:
        return all(bracket.over for bracket in self._brackets)

    def ask(self) -> Candidate | None:
        for bracket in self._brackets:
            found = bracket.ask()
            if found is not None:
                self._asked[id(found)] = bracket
                self.candidates.append(found)
                return found
        return None

    def tell(self, candidate: Candidate) -> None:
        self._asked[id(candidate)].tell(candidate)


class Bayes:
    """Optuna's tree-structured Parzen estimator: what did well is where the next ones are drawn, what is in flight counts as tried.

    Parameters
    ----------
    starts : settings of the first space to begin with; a parameter that one does not name is drawn.
    random : how many are drawn at random before it learns; default: a quarter of the draws, at least 3 and at most 10.
    """

    ahead = 1

    def __init__(
        self,
        space: Space,
        metric_up: bool,
        draws: int,
        seed: int,
        *,
        starts: Sequence[Parameters] = (),
        random: int | None = None,
    ) -> None:
        try:
            import optuna
        except ImportError:
            raise Unavailable("search", "bayes", "needs optuna", "pip install 'cellwork[tune]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._spaces = [{name: _range(name, values) for name, values in part.items()} for part in parts_of(space)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            first = min(10, max(3, draws // 4)) if random is None else random
            sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True, n_startup_trials=first)
        self._study = optuna.create_study(direction="maximize" if metric_up else "minimize", sampler=sampler)
        for start in starts:
            self._study.enqueue_trial(
                {f"0:{name}": _placed(values, start[name]) for name, values in self._spaces[0].items() if name in start}
            )
        self._trials: dict[int, Any] = {}
        self.of = draws
        self.candidates: list[Candidate] = []

    @property
    def over(self) -> bool:
        return len(self.candidates) >= self.of

    def ask(self) -> Candidate | None:
        if self.over:
            return None
        trial = self._study.ask()
        part = trial.suggest_categorical("space", list(range(len(self._spaces)))) if len(self._spaces) > 1 else 0
        # names of several spaces are told apart, for one name may have another range in each
        values = {name: values.suggest(trial, f"{part}:{name}") for name, values in self._spaces[part].items()}
        found = Candidate(values)
        self._trials[id(found)] = trial
        self.candidates.append(found)
        return found

    def tell(self, candidate: Candidate) -> None:
        from optuna.trial import TrialState

        trial = self._trials.pop(id(candidate))
        if math.isnan(candidate.score):
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, candidate.score)


def _placed(values: Any, value: Any) -> Any:
    """Return what Optuna knows a value by: its place, where it is one of some values."""
    return values.values.index(value) if hasattr(values, "values") else value


def _range(name: str, values: Any) -> Any:
    from cellwork.training.catalogue.model import Choice

    if hasattr(values, "suggest"):
        return values
    if isinstance(values, list | tuple):
        return Choice(tuple(values))
    raise BadInput("range of parameter", name, f"is {values!r}", "give values, or catalogue.Number(low, high)")


def strategy(method: str, space: Space, *, metric: str, greater: bool, rows: int, draws: int, seed: int) -> Strategy:
    """Return the strategy `method`: ``grid``, ``random``, ``halving``, ``hyperband``, ``bayes``, or ``auto`` (random where a
    parameter has a distribution, else the grid)."""
    if method == "bayes":
        return Bayes(space, greater, draws, seed)
    if method == "hyperband":
        return Hyperband(lambda count: expand(space, count, seed, random=True), metric, rows, draws)
    if method == "halving":
        return Halving(expand(space, draws, seed), metric, rows)
    if method not in ("auto", "grid", "random"):
        raise BadInput("method", method, "is not known", "use grid, random, halving, hyperband or bayes")
    return Listed(expand(space, draws, seed, random=None if method == "auto" else method == "random"))
