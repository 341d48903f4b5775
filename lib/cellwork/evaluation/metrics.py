"""Metrics with 95 % bootstrap intervals: rows are drawn with replacement, all draws are computed in one pass over the sorted scores.

The draws are seeded, so the same labels and scores give the same numbers everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from cellwork.errors import BadInput, near_miss
from cellwork.wire.evaluations import Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    Floats = np.ndarray[Any, np.dtype[np.float64]]
    Measure = Callable[[Floats, Floats, Floats], Floats]

Kind = Literal["classifier", "regressor"]
NAMES: dict[Kind, tuple[str, ...]] = {
    "classifier": ("roc_auc", "pr_auc", "log_loss", "brier", "ece", "rate"),
    "regressor": ("rmse", "mae", "r2", "mape"),
}
"""The first of each is what candidates are ranked by and gates look at. `ece` is the expected calibration error, `mape` leaves labels of 0
out, `rate` is the labels' own."""
GREATER_IS_BETTER = frozenset({"roc_auc", "pr_auc", "r2"})
DRAWS = 200
CLIP = 1e-15
BINS = 10
"""Of equally many rows, for the calibration error."""
CELLS = 1_000_000
"""Draws x rows held in memory at once."""


def primary(kind: Kind) -> str:
    return NAMES[kind][0]


def better(metric: str, value: float, other: float) -> bool:
    """Return whether `value` of `metric` is better than `other`."""
    return value > other if metric in GREATER_IS_BETTER else value < other


def measure(
    y: ArrayLike, scores: ArrayLike, *, kind: Kind = "classifier", draws: int = DRAWS, seed: int = 0, clip: float = CLIP
) -> dict[str, Metric]:
    """Return every metric of `kind` with its 95 % percentile interval.

    Parameters
    ----------
    y, scores : shape (n,)
        Labels (0 and 1 for a classifier) and scores (probabilities of 1, or predictions).
    draws : bootstrap draws; 0 gives intervals of no width.
    clip : probabilities are taken between this and one less this in the log loss.

    A metric that is not defined (R2 of a constant label, MAPE of zeros) is left out.

    Raises
    ------
    BadInput
        Shapes differ, a value is not finite, a label is neither 0 nor 1, or there is only one class.
    """
    import numpy as np

    truth, score = checked(y, scores, kind)
    order = np.argsort(score, kind="stable")
    truth, score = truth[order], score[order]
    drawn = [_all(kind, truth, score, each, clip) for each in weights(len(truth), draws, seed)]
    point = _all(kind, truth, score, np.ones((1, len(truth))), clip)
    result = {}
    for name in NAMES[kind]:
        value = float(point[name][0])
        if not np.isfinite(value):
            continue
        values = np.concatenate([part[name] for part in drawn]) if drawn else np.array([value])
        usable = values[np.isfinite(values)]
        low, high = np.percentile(usable, [2.5, 97.5]) if usable.size else (value, value)
        result[name] = Metric(value=value, low=min(float(low), value), high=max(float(high), value))
    return result


def value(metric: str, y: ArrayLike, scores: ArrayLike) -> float:
    """Return one metric without an interval; raises BadInput where it is not defined."""
    found = measure(y, scores, kind=kind_of(metric), draws=0)
    if metric not in found:
        raise BadInput("metric", metric, "is not defined for these labels", near_miss(metric, found))
    return found[metric].value


def kind_of(metric: str) -> Kind:
    """Return what kind of model `metric` measures; raises BadInput for an unknown one."""
    for kind, names in NAMES.items():
        if metric in names:
            return kind
    raise BadInput(
        "metric", metric, "is not known", near_miss(metric, [name for names in NAMES.values() for name in names])
    )


def checked(y: ArrayLike, scores: ArrayLike, kind: Kind) -> tuple[Floats, Floats]:
    """Return labels and scores as float64; raises what `measure` raises."""
    import numpy as np

    truth, score = np.asarray(y, dtype=float), np.asarray(scores, dtype=float)
    if truth.ndim != 1 or truth.shape != score.shape or not truth.size:
        raise BadInput(
            "labels and scores",
            f"{truth.shape} and {score.shape}",
            "are not two columns of one length",
            "give one score a label",
        )
    for subject, values in (("labels", truth), ("scores", score)):
        wrong = int((~np.isfinite(values)).sum())
        if wrong:
            raise BadInput(
                subject,
                f"{wrong} of {values.size}",
                "are missing or not finite",
                "leave those rows out, or impute them",
            )
    if kind == "classifier":
        if not np.isin(truth, (0.0, 1.0)).all():
            raise BadInput("labels", np.unique(truth)[:5].tolist(), "are not 0 and 1", "make a binary label")
        if truth.min() == truth.max():
            raise BadInput("labels", truth[0], "are all the same", "measure on rows of both classes")
    return truth, score


def under(metric: str, truth: Floats, score: Floats, drawn: Floats) -> Floats:
    """Return `metric` for each row of `drawn`, (draws, n): how often each of the n labels and scores counts."""
    import numpy as np

    order = np.argsort(score, kind="stable")
    truth, score, drawn = truth[order], score[order], drawn[:, order]
    if metric == "roc_auc":  # what is asked most, at a third of the time of all
        return _roc_auc(*_grouped(truth, score, drawn))
    return _all(kind_of(metric), truth, score, drawn)[metric]


def weights(n: int, draws: int, seed: int) -> Iterator[Floats]:
    """Yield matrices (draws, n) of how often each row was drawn."""
    import numpy as np

    random = np.random.default_rng(seed)
    step = max(1, CELLS // n)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        yield np.stack([np.bincount(random.integers(0, n, n), minlength=n) for _ in range(rows)]).astype(float)


def _all(kind: Kind, truth: Floats, score: Floats, weights: Floats, clip: float = CLIP) -> dict[str, Floats]:
    """Return name -> one value a draw; `truth` and `score` are sorted by score."""
    import numpy as np

    total = weights.sum(axis=1)

    def mean(values: Floats) -> Floats:
        answer: Floats = weights @ values / total
        return answer

    if kind == "regressor":
        error = truth - score
        around = truth - np.partition(truth, len(truth) // 2)[len(truth) // 2]  # small, and 0 where labels are alike
        squares, spread = mean(error**2), mean(around**2) - mean(around) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(truth != 0, np.abs(error / np.where(truth != 0, truth, 1.0)), 0.0)
            mape = weights @ share / (weights @ (truth != 0))
            return {"rmse": np.sqrt(squares), "mae": mean(np.abs(error)), "r2": 1 - squares / spread, "mape": mape}
    clipped = np.clip(score, clip, 1 - clip)
    loss = -np.where(truth == 1, np.log(clipped), np.log1p(-clipped))
    roc, pr = _ranking(truth, score, weights)
    return {
        "roc_auc": roc,
        "pr_auc": pr,
        "log_loss": mean(loss),
        "brier": mean((truth - score) ** 2),
        "ece": _calibration(truth, score, weights),
        "rate": mean(truth),
    }


def _calibration(truth: Floats, score: Floats, weights: Floats) -> Floats:
    """Return the expected calibration error: over the bins of `bins`, how far mean score and rate are apart."""
    import numpy as np

    gaps = np.add.reduceat(weights * (truth - score), bins(score, BINS), axis=1)
    found: Floats = np.abs(gaps).sum(axis=1) / weights.sum(axis=1)
    return found


def bins(score: Floats, most: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Return where at most `most` bins of about equally many rows begin, shape (bins,); equal scores are in one bin.

    `score` is sorted, shape (n,).
    """
    import numpy as np

    even = np.linspace(0, len(score), most, endpoint=False).astype(int)
    return np.unique(np.searchsorted(score, score[even], side="left"))


def _ranking(truth: Floats, score: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return ROC AUC (ties count half) and average precision, one value a draw."""
    import numpy as np

    positive, negative = _grouped(truth, score, weights)
    hits = np.cumsum(positive[:, ::-1], axis=1)[:, ::-1]
    alarms = hits + np.cumsum(negative[:, ::-1], axis=1)[:, ::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(alarms > 0, hits / alarms, 0.0)
        pr: Floats = (positive * precision).sum(axis=1) / positive.sum(axis=1)
    return _roc_auc(positive, negative), pr


def _grouped(truth: Floats, score: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return how often labels of 1 and of 0 count at each of the k different scores, ascending, both (draws, k)."""
    import numpy as np

    starts = np.flatnonzero(np.r_[True, score[1:] != score[:-1]])
    positive = np.add.reduceat(weights * truth, starts, axis=1)
    return positive, np.add.reduceat(weights, starts, axis=1) - positive


def _roc_auc(positive: Floats, negative: Floats) -> Floats:
    import numpy as np

    below = np.cumsum(negative, axis=1) - negative / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = np.einsum("ij,ij->i", positive, below) / (positive.sum(axis=1) * negative.sum(axis=1))
    return found
