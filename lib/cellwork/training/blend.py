"""Several models as one: the weighted mean of their answers, which is hard to beat where they err differently.

What goes in is chosen by the answers that each gave to rows it was not fitted on, one more at a time (Caruana and others, Ensemble Selection
from Libraries of Models, 2004). What comes out is scikit-learn's own voting estimator over fitted pipelines, so that it is kept,
served and cloned like any other.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cellwork.training import measure
from cellwork.training.candidates import Candidate

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

ROUNDS = 8
"""How often a model is added, the same one or another; weights are eighths at the finest."""


def greedy(
    candidates: Sequence[Candidate], truths: Sequence[Array], metric: str, *, classes: Array, seconds: float = 60
) -> Candidate | None:
    """Return the blend of `candidates` with the best mean of `metric` over the folds; None where one model alone is as good.

    Parameters
    ----------
    candidates : those with answers to every fold, on every class, take part.
    truths : the labels of each fold, in the order of the answers.
    classes : all classes in order, of a classifier.
    seconds : after which no more is added.
    """
    usable = [each for each in candidates if _answered(each, truths, len(classes))]
    ends, sign = time.monotonic() + seconds, 1 if metric in measure.GREATER_IS_BETTER else -1
    sums: list[Any] = [0.0] * len(truths)
    taken: list[Candidate] = []
    best, kept = {0: -sign * math.inf}, 0

    def scores(more: Candidate) -> dict[int, float]:
        parts = len(taken) + 1
        blended = [(total + more.answers[fold]) / parts for fold, total in enumerate(sums)]
        return {fold: measure.of_answers(metric, each, truths[fold], classes) for fold, each in enumerate(blended)}

    for _ in range(ROUNDS):
        tried = [(scores(each), each) for each in usable if time.monotonic() < ends]
        if len(tried) < len(usable) or not tried:
            break
        found, chosen = max(tried, key=lambda pair: sign * _mean(pair[0]))
        taken.append(chosen)
        sums = [total + chosen.answers[fold] for fold, total in enumerate(sums)]
        if sign * _mean(found) > sign * _mean(best):
            best, kept = found, len(taken)
    weights = Counter(id(each) for each in taken[:kept])
    members = [(each, weights[id(each)] / kept) for each in usable if id(each) in weights]
    return _candidate(members, best) if len(members) > 1 else None


def _answered(candidate: Candidate, truths: Sequence[Array], classes: int) -> bool:
    """Return whether it answered each fold with as many numbers a row as there are classes, or one where two or none are."""
    shapes = [candidate.answers[fold].shape for fold in range(len(truths)) if fold in candidate.answers]
    return shapes == [(len(truth), classes) if classes > 2 else (len(truth),) for truth in truths]


def _mean(scores: dict[int, float]) -> float:
    return sum(scores.values()) / len(scores)


def _candidate(members: list[tuple[Candidate, float]], scores: dict[int, float]) -> Candidate:
    said = " + ".join(f"{weight:.3g} {member.model}" for member, weight in sorted(members, key=lambda pair: -pair[1]))
    seconds = sum(member.seconds for member, _ in members)
    return Candidate({"of": said}, "blend", scores=scores, seconds=seconds, members=members)


def assemble(fitted: Sequence[tuple[str, Any, float]], y: Array) -> Any:
    """Return the fitted voting estimator of (name, fitted model, weight); `y` are the labels they were fitted to, shape (n,)."""
    from sklearn.ensemble import VotingClassifier, VotingRegressor
    from sklearn.preprocessing import LabelEncoder
    from sklearn.utils import Bunch

    named = [(f"{name}_{k}", model) for k, (name, model, _) in enumerate(fitted, 1)]
    weights = [weight for _, _, weight in fitted]
    classifies = hasattr(fitted[0][1], "predict_proba")
    found = (
        VotingClassifier(named, voting="soft", weights=weights)
        if classifies
        else VotingRegressor(named, weights=weights)
    )
    found.estimators_ = [model for _, model in named]
    found.named_estimators_ = Bunch(**dict(named))
    if classifies:
        found.le_ = LabelEncoder().fit(y)
        found.classes_ = found.le_.classes_
    return found
