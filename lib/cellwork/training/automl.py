"""The best model in a time budget: preparation, selection of columns, models and their parameters, with an account of what was tried.

First every model of the catalogue with its defaults, the quick ones first; then, until the time is up, the models that did best
get new parameters from an estimator of their own (`strategies.Bayes`), which begins with settings that do well on many tables; the better a
model the more of the time: what is slow gets fewer of them, and cannot take the time of what is better. Shortly before the end the finalists are fitted on all rows (`ending`), and the answer is one of them or a
blend of them (`blend`). What is not clearly better than the best default, fold by fold, is luck: the default is taken. Where there is one
measurement, such as of rows of validation, blocks of its rows take the place of the folds.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellwork.errors import BadInput
from cellwork.training import blend, catalogue, measure
from cellwork.training.candidates import Candidate, Step, best_of, rank
from cellwork.training.catalogue import Choice
from cellwork.training.cluster import Cluster
from cellwork.training.search import Search, run
from cellwork.training.strategies import Bayes
from cellwork.training.tasks import Data

QUICK = (
    "constant", "linear", "logistic", "ridge", "decision_tree", "lightgbm", "hist_gradient_boosting", "xgboost", "lasso", "random_forest",
    "linear_svm",
)  # fmt: skip
"""The order in which defaults are tried; others follow."""
NOT_TABULAR = frozenset({"arima", "neural_network"})
"""Not tried unless they are named."""
SHARES = (8, 4, 2, 1)
"""Of the time for new settings, the best model's part first."""
CLEARLY = 1.0
"""Standard errors by which a setting has to beat the best default over the folds."""
BLOCKS = 20
"""Of the rows of one measurement; fewer where a class has fewer rows."""
SURE = 0.975
"""Of Student's distribution: the standard errors by which a setting has to beat the best default over the blocks, for there is no other
measurement than the one it was chosen by."""
FINALISTS = 5
"""Candidates that may be part of the answer; of one model at most `OF_ONE`, for twins have nothing to add to each other."""
OF_ONE = 2
RANDOM = 4
"""Settings of a model that are drawn, besides those to begin with, before its estimator learns."""
SMALL = 5000
"""Rows below which there are five folds instead of three."""


@dataclass(frozen=True)
class Best(Search):
    """What the search found, and in words how."""

    account: str = ""

    def __str__(self) -> str:
        return self.account


class Automl:
    """The strategy; see the module."""

    ahead = 1

    def __init__(
        self, names: Sequence[str], kind: catalogue.Kind, metric: str, seed: int, extra: dict[str, Any]
    ) -> None:
        self._metric, self._kind, self._seed, self._extra = metric, kind, seed, extra
        self._defaults = [Candidate({}, name) for name in names]
        self._bayes: dict[str, Bayes] = {}
        self._owner: dict[int, Bayes] = {}
        self._told = 0
        self.of = len(self._defaults)
        self.candidates: list[Candidate] = []

    @property
    def over(self) -> bool:
        """Whether all that was asked for is answered and no model that did well has parameters."""
        return not self._defaults and self._told == len(self.candidates) and not self._worth_more()

    @property
    def defaults(self) -> list[Candidate]:
        return [candidate for candidate in self.candidates if not candidate.parameters]

    def ask(self) -> Candidate | None:
        if self._defaults:
            self.candidates.append(self._defaults.pop(0))
            return self.candidates[-1]
        name = self._next()
        if name is None:
            return None
        found = self._settings(name).ask()
        if found is not None:
            found.model = name
            self._owner[id(found)] = self._bayes[name]
            self.candidates.append(found)
            self.of = max(self.of, len(self.candidates))
        return found

    def tell(self, candidate: Candidate) -> None:
        self._told += 1
        owner = self._owner.pop(id(candidate), None)
        if owner is not None:
            owner.tell(candidate)

    def _next(self) -> str | None:
        """Return the model that has had the least of its part of the time, among those that did best and have parameters; None before."""
        shares = dict(zip(self._worth_more(), SHARES, strict=False))
        return min(shares, key=lambda name: self._taken(name) / shares[name], default=None)

    def _taken(self, name: str) -> float:
        """Return the seconds that a model's settings have taken; one that is being tried counts as long as they take on average."""
        mine = [candidate.seconds for candidate in self.candidates if candidate.model == name]
        done = [seconds for seconds in mine if seconds]
        return sum(done) / len(done) * len(mine) if done else 0.0

    def _worth_more(self) -> list[str]:
        order = [c.model for c in rank(self.candidates, self._metric) if not math.isnan(c.score)]
        return [name for name in dict.fromkeys(order) if catalogue.get(name).space][: len(SHARES)]

    def _settings(self, name: str) -> Bayes:
        if name not in self._bayes:
            space = {**catalogue.get(name).space, "select": Choice((None, None, 0.75, 0.5)), **self._extra}
            self._bayes[name] = Bayes(
                space, self._metric in measure.GREATER_IS_BETTER, 10**6, self._seed, random=RANDOM,
                starts=[{"select": None, **start} for start in catalogue.get(name).starts],
            )  # fmt: skip
        return self._bayes[name]

    def finalists(self, complete: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates that may be part of the answer, the likeliest first; the best default is among them."""
        single = self._single(complete)
        if single is None:
            return []
        default = best_of([c for c in complete if not c.parameters], self._metric)
        found = [single] if default in (None, single) else [single, default]
        for each in rank(complete, self._metric):
            alike = sum(other.model == each.model for other in found)
            if each not in found and alike < OF_ONE and each.model != "constant":
                found.append(each)
        return [each for each in found if each is not None][:FINALISTS]

    def choose(
        self,
        complete: Sequence[Candidate],
        ready: Sequence[Candidate] = (),
        data: Data | None = None,
        seconds: float = 60,
    ) -> Candidate | None:
        """Return the best candidate, or the best default where it is not clearly better than that; or a blend that is clearly better still.

        Parameters
        ----------
        ready : those that are fitted on all rows; without any the answer may be every one of `complete`, and no blend.
        data : the rows of the folds.
        seconds : to choose in.
        """
        single = self._single(ready or complete, data)
        if single is None or not ready or data is None:
            return single
        truths = [data.measuring(fold, 1.0)[1] for fold in range(data.folds)]
        found = blend.greedy(
            self.finalists(ready), truths, self._metric, classes=_classes(data, self._kind), seconds=seconds
        )
        return found if found is not None and self._clearly_better(found, single, data) else single

    def _single(self, complete: Sequence[Candidate], data: Data | None = None) -> Candidate | None:
        best = best_of(complete, self._metric)
        default = best_of([c for c in complete if not c.parameters], self._metric)
        if best is None or default is None or not best.parameters:
            return best
        return best if self._clearly_better(best, default, data) else default

    def _clearly_better(self, one: Candidate, other: Candidate, data: Data | None) -> bool:
        """Return whether `one` beats `other` by more than luck; of one measurement without answers, whether it beats it at all."""
        if data is None or data.folds > 1 or not comparable(one, other):
            return clearly_better(one, other, self._metric)
        return holds(one, other, self._metric, data.measuring(0, 1.0)[1], _classes(data, self._kind))


def clearly_better(one: Candidate, other: Candidate, metric: str) -> bool:
    """Return whether `one` beats `other` by more than a standard error of the difference over the folds; on one alone, by anything."""
    sign = 1 if metric in measure.GREATER_IS_BETTER else -1
    differences = [sign * (one.scores[fold] - other.scores[fold]) for fold in one.scores]
    if len(differences) == 1:
        return differences[0] > 0
    mean, error = _mean_and_error(differences)
    return mean > CLEARLY * error


def holds(one: Candidate, other: Candidate, metric: str, truth: Any, classes: Any) -> bool:
    """Return whether `one` surely beats `other` over blocks of the rows that both answered; False where they are too few to tell.

    Parameters
    ----------
    truth : the labels of those rows, shape (n,).
    classes : all classes in order, of a classifier.
    """
    from scipy import stats

    sign = 1 if metric in measure.GREATER_IS_BETTER else -1
    said = [(_answers(each), sign * weight) for each, weight in ((one, 1), (other, -1))]
    try:
        differences = [
            sum(weight * measure.of_answers(metric, answers[rows], truth[rows], classes) for answers, weight in said)
            for rows in _blocks(truth, metric, classes)
        ]
    except BadInput:  # the metric is not defined in a block
        return False
    if len(differences) < 2:
        return False
    mean, error = _mean_and_error(differences)
    return mean > float(stats.t.ppf(SURE, len(differences) - 1)) * error


def comparable(one: Candidate, other: Candidate) -> bool:
    """Return whether it is known what both answered; results of an earlier search (`resume`) are scores alone."""
    return all(0 in each.answers for found in (one, other) for each, _ in found.members or [(found, 1.0)])


def _answers(candidate: Candidate) -> Any:
    return sum(weight * each.answers[0] for each, weight in candidate.members or [(candidate, 1.0)])


def _blocks(truth: Any, metric: str, classes: Any) -> list[Any]:
    """Return the rows of each block, which are neighbours; each class is in each block where the metric is not defined without."""
    import numpy as np

    each_class = metric == "roc_auc" or (len(classes) == 2 and metric != "accuracy")
    groups = truth if each_class else np.zeros(len(truth))
    places = [np.flatnonzero(groups == value) for value in np.unique(groups)]
    blocks = min(BLOCKS, *map(len, places)) if each_class else min(BLOCKS, len(truth) // 2)
    parts = [np.array_split(rows, blocks) for rows in places] if blocks else []
    return [np.sort(np.concatenate(rows)) for rows in zip(*parts, strict=True)]


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((each - mean) ** 2 for each in values) / (len(values) - 1) / len(values))


def _classes(data: Data, kind: catalogue.Kind) -> Any:
    import numpy as np

    return np.unique(data.y) if kind == "classifier" else np.empty(0)


def best(
    X: Any,
    y: Any,
    *,
    budget: float,
    metric: str = "",
    models: Sequence[str] = (),
    kind: catalogue.Kind | None = None,
    validation: tuple[Any, Any] | None = None,
    folds: Any = None,
    seed: int = 0,
    cluster: Cluster | None = None,
    progress: Callable[[Step], None] = print,
    resume: Path | str | None = None,
    stop: threading.Event | None = None,
) -> Best:
    """Return the best pipeline that `budget` seconds find, fitted on all rows, with leaderboard and account.

    Parameters
    ----------
    X, y : shapes (n, columns) and (n,)
    budget : seconds for all of it, the last fit included; a cluster that is opened for it too.
    metric : default: what suits the labels.
    models : names of the catalogue; default: all for tables that are installed.
    kind : what it is, instead of what the labels say.
    validation : (X, y) to measure on instead of folds, such as the weeks after.
    folds : default: five, or three of many rows.
    resume : a file of results, as for `search`.

    Raises
    ------
    BadInput
        Rows or labels that nothing can be learned from, an unknown model or metric.
    Unavailable
        The budget did not suffice for one model.
    """
    started = time.monotonic()
    if budget <= 0:
        raise BadInput("budget", f"{budget:g} s", "is no time", "give it seconds enough for one fit of each model")
    data = Data.of(X, y, validation, folds or (5 if len(y) < SMALL else 3))
    chosen = kind or catalogue.kind_of(data.y)
    by = measure.check(metric, data.y, chosen)
    plan = Automl(_names(models, chosen), chosen, by, seed, _extra(data.y, chosen))

    def make(candidate: Candidate) -> Any:
        return catalogue.pipeline(candidate.model, data.X, data.y, kind=chosen, **candidate.parameters)

    found = run(
        plan, make, data, by, share=False, cluster=cluster, progress=progress, budget=max(1e-3, budget - (time.monotonic() - started)),
        resume=resume, stop=stop, timeout=10 * budget + 60, finalists=plan.finalists,
        choose=lambda complete, ready: plan.choose(complete, ready, data, max(0.1, 0.02 * budget)),
    )  # fmt: skip
    shown = {key: getattr(found, key) for key in Search.__dataclass_fields__}
    return Best(**{**shown, "seconds": time.monotonic() - started}, account=account(found, data, by, budget))


def _names(models: Sequence[str], kind: catalogue.Kind) -> list[str]:
    if models:
        for name in models:
            if kind not in catalogue.get(name).made:
                raise BadInput("model", name, f"is no {kind}", f"there are: {', '.join(catalogue.names(kind))}")
        return list(dict.fromkeys(models))
    known = [name for name in catalogue.names(kind) if name not in NOT_TABULAR]
    return sorted(known, key=lambda name: QUICK.index(name) if name in QUICK else len(QUICK))


def _extra(y: Any, kind: catalogue.Kind) -> dict[str, Any]:
    """Return what else is searched: of amounts that are never negative and skewed, their logarithm."""
    if kind == "regressor" and y.min() >= 0 and y.mean() > 1.5 * sorted(y)[len(y) // 2]:
        return {"log_target": Choice((False, True))}
    return {}


def account(found: Search, data: Data, metric: str, budget: float) -> str:
    """Return in words what was tried, what came of it, and why the best is the best."""
    tried = found.candidates
    where = f"{data.folds} folds" if data.validation is None else f"{len(data.validation[1]):,} rows of validation"
    lines = [
        f"{len(tried)} candidates of {len({c.model for c in tried})} models were tried on {len(data.y):,} rows with {where} in {found.seconds:.0f} of {budget:.0f} s."
    ]
    winner = next(c for c in tried if c.parameters == found.parameters and c.score == found.score)
    lines.append(f"The best is {winner}: {metric} {found.score:.4f}.")
    over = "the folds" if data.folds > 1 else "blocks of the rows they were measured on"
    default, top = best_of([c for c in tried if not c.parameters], metric), best_of(tried, metric)
    if default is not None and winner is not default:
        held = f"the difference holds over {over}"
        if data.folds == 1 and not comparable(winner, default):
            held = "whether that is luck is not known, for results of an earlier search are scores alone"
        lines.append(f"The best of the defaults is {default.model}: {metric} {default.score:.4f}; {held}.")
    elif top is not None and top is not winner:
        lines.append(f"{top} scored {top.score:.4f}, which is not clearly better over {over}, so the default is taken.")
    for name in dict.fromkeys(c.model for c in rank(tried, metric)):
        mine = [c for c in tried if c.model == name]
        top = best_of(mine, metric)
        said = f"{metric} {top.score:.4f}" if top else "none succeeded"
        failed = [c for c in mine if c.error]
        why = f", {len(failed)} failed ({failed[0].error[:100]})" if failed else ""
        lines.append(f"- {name}: {len(mine)} tried in {sum(c.seconds for c in mine):.1f} s, best {said}{why}")
    return "\n".join(lines)
