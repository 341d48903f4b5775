"""What a search tries, what came of it, and the leaderboard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cellwork.errors import BadInput
from cellwork.evaluation.metrics import GREATER_IS_BETTER

if TYPE_CHECKING:
    import polars as pl

Parameters = dict[str, Any]
Space = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass
class Candidate:
    """One setting of the parameters and what came of it."""

    parameters: Parameters
    scores: dict[int, float] = field(default_factory=dict)
    """Fold -> metric."""
    seconds: float = 0.0
    error: str = ""

    @property
    def score(self) -> float:
        return sum(self.scores.values()) / len(self.scores) if self.scores and not self.error else math.nan


@dataclass(frozen=True)
class Step:
    """What `progress` is told whenever a candidate is done."""

    done: int
    of: int
    metric: str
    last: Candidate
    best: Candidate | None

    def __str__(self) -> str:
        last = self.last.error or f"{self.metric} {self.last.score:.4f} in {self.last.seconds:.1f} s"
        best = f", best so far {self.best.score:.4f} with {short(self.best.parameters)}" if self.best else ""
        return f"candidate {self.done} of {self.of}: {last}{best}"


def expand(space: Space, draws: int, seed: int) -> list[Candidate]:
    """Return every point of the grids in `space`, or `draws` random points if it holds a distribution (`.rvs`)."""
    from sklearn.model_selection import ParameterGrid, ParameterSampler

    spaces = [dict(space)] if isinstance(space, Mapping) else [dict(part) for part in space]
    random = any(hasattr(values, "rvs") for part in spaces for values in part.values())
    try:
        points = ParameterSampler(spaces, draws, random_state=seed) if random else ParameterGrid(spaces)
        found = [Candidate(dict(point)) for point in points]
    except (TypeError, ValueError) as error:
        raise BadInput("candidates", "", str(error), "give name -> list of values, or name -> distribution") from None
    if not found:
        raise BadInput("candidates", "", "are none", "give at least one value for each parameter")
    return found


def best_of(candidates: Sequence[Candidate], metric: str) -> Candidate | None:
    """Return the best candidate that succeeded, the earlier one of equals."""
    ranked = rank(candidates, metric)
    return ranked[0] if ranked and not math.isnan(ranked[0].score) else None


def rank(candidates: Sequence[Candidate], metric: str) -> list[Candidate]:
    """Return `candidates` best first, failed ones last."""
    sign = -1 if metric in GREATER_IS_BETTER else 1
    return sorted(candidates, key=lambda c: (math.isnan(c.score), 0.0 if math.isnan(c.score) else sign * c.score))


def leaderboard(candidates: Sequence[Candidate], metric: str) -> pl.DataFrame:
    import polars as pl

    ranked = rank(candidates, metric)
    names = sorted({name for candidate in ranked for name in candidate.parameters})
    columns: dict[str, list[Any]] = {
        "rank": list(range(1, len(ranked) + 1)),
        metric: [None if math.isnan(c.score) else c.score for c in ranked],
        **{title: _column([c.parameters.get(name) for c in ranked]) for name, title in _titles(names).items()},
        "seconds": [round(c.seconds, 2) for c in ranked],
        "error": [c.error for c in ranked],
    }
    return pl.DataFrame(columns, strict=False)


def _titles(names: Sequence[str]) -> dict[str, str]:
    """Return name -> its last part where that is enough: ``pipeline__tree__depth`` is shown as ``depth``."""
    last = [name.rpartition("__")[2] for name in names]
    return {name: part if last.count(part) == 1 else name for name, part in zip(names, last, strict=True)}


def _column(values: list[Any]) -> list[Any]:
    """Return `values` as they are if they are numbers, else as text."""
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return values if plain else [None if value is None else str(value) for value in values]


def short(parameters: Parameters) -> str:
    """Return the parameters in a line, without the names of pipeline steps."""
    return ", ".join(f"{name.rpartition('__')[2]}={value}" for name, value in parameters.items()) or "the defaults"
