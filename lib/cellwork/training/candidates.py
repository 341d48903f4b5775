"""What a search tries, what came of it, and the leaderboard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cellwork.errors import BadInput
from cellwork.training.measure import GREATER_IS_BETTER

if TYPE_CHECKING:
    import polars as pl

Parameters = dict[str, Any]
Space = Mapping[str, Any] | Sequence[Mapping[str, Any]]
POINTS = 3
"""How many points of a number's range a grid takes."""


@dataclass(eq=False)
class Candidate:
    """One setting of the parameters and what came of it."""

    parameters: Parameters
    model: str = ""
    """Its name, where several models are tried."""
    fraction: float = 1.0
    """Share of the training rows it is tried on."""
    scores: dict[int, float] = field(default_factory=dict)
    """Fold -> metric."""
    seconds: float = 0.0
    """Of all its fits."""
    error: str = ""
    answers: dict[int, Any] = field(default_factory=dict, repr=False)
    """Fold -> what it answered to the rows it was measured on, where that is kept."""
    members: list[tuple[Candidate, float]] = field(default_factory=list, repr=False)
    """Of a blend: what it is made of, and each one's weight."""

    @property
    def score(self) -> float:
        return sum(self.scores.values()) / len(self.scores) if self.scores and not self.error else math.nan

    def __str__(self) -> str:
        return f"{self.model} with {short(self.parameters)}" if self.model else short(self.parameters)


@dataclass(frozen=True)
class Step:
    """What `progress` is told whenever a candidate is done."""

    done: int
    of: int
    metric: str
    last: Candidate
    best: Candidate | None
    elapsed: float = 0.0
    """Seconds since the search began."""
    left: float | None = None
    """Seconds it will take from here, as far as one can tell."""
    dashboard: str = ""

    def __str__(self) -> str:
        last = self.last.error or f"{self.metric} {self.last.score:.4f} in {self.last.seconds:.1f} s"
        best = f", best so far {self.best.score:.4f} with {self.best}" if self.best else ""
        left = f", about {self.left:.0f} s left" if self.left is not None and self.done < self.of else ""
        return f"candidate {self.done} of {self.of}: {last}{best}{left}"


def parts_of(space: Space) -> list[dict[str, Any]]:
    """Return the spaces of which `space` consists, one or several."""
    return [dict(space)] if isinstance(space, Mapping) else [dict(part) for part in space]


def expand(space: Space, draws: int, seed: int, *, random: bool | None = None) -> list[Candidate]:
    """Return every point of the grids in `space`, or `draws` random points.

    Parameters
    ----------
    random : by default, whether a value of it is a distribution (has `.rvs`).
    """
    from sklearn.model_selection import ParameterGrid, ParameterSampler

    spaces = parts_of(space)
    drawn = any(hasattr(values, "rvs") for part in spaces for values in part.values()) if random is None else random
    if draws < 1:
        raise BadInput("draws", draws, "are too few", "draw at least one")
    try:
        if drawn:
            finite = all(isinstance(values, list | tuple) for part in spaces for values in part.values())
            most = len(ParameterGrid(spaces)) if finite else draws
            points = ParameterSampler(spaces, min(draws, most), random_state=seed)
        else:
            points = ParameterGrid([{name: _grid(values) for name, values in part.items()} for part in spaces])
        found = [Candidate(dict(point)) for point in points]
    except (TypeError, ValueError) as error:
        raise BadInput("candidates", "", str(error), "give name -> list of values, or name -> distribution") from None
    if not found:
        raise BadInput("candidates", "", "are none", "give at least one value for each parameter")
    return found


def _grid(values: Any) -> Any:
    return values.grid(POINTS) if hasattr(values, "grid") else values


def best_of(candidates: Sequence[Candidate], metric: str) -> Candidate | None:
    """Return the best candidate that succeeded, on most rows first, the earlier one of equals."""
    ranked = rank(candidates, metric)
    return ranked[0] if ranked and not math.isnan(ranked[0].score) else None


def rank(candidates: Sequence[Candidate], metric: str) -> list[Candidate]:
    """Return `candidates` best first: those tried on more rows before those on fewer, failed ones last."""
    sign = -1 if metric in GREATER_IS_BETTER else 1
    return sorted(
        candidates, key=lambda c: (math.isnan(c.score), -c.fraction, 0.0 if math.isnan(c.score) else sign * c.score)
    )


def leaderboard(candidates: Sequence[Candidate], metric: str) -> pl.DataFrame:
    """Return a row a candidate, best first."""
    import polars as pl

    ranked = rank(candidates, metric)
    names = sorted({name for candidate in ranked for name in candidate.parameters})
    columns: dict[str, list[Any]] = {"rank": list(range(1, len(ranked) + 1))}
    if any(c.model for c in ranked):
        columns["model"] = [c.model for c in ranked]
    columns[metric] = [None if math.isnan(c.score) else c.score for c in ranked]
    if any(c.fraction < 1 for c in ranked):
        columns["rows"] = [round(c.fraction, 3) for c in ranked]
    columns |= {title: _column([c.parameters.get(name) for c in ranked]) for name, title in _titles(names).items()}
    columns["seconds"] = [round(c.seconds, 2) for c in ranked]
    columns["error"] = [c.error for c in ranked]
    return pl.DataFrame(columns, strict=False)


def _titles(names: Sequence[str]) -> dict[str, str]:
    """Return name -> its last part where that is enough: ``pipeline__tree__depth`` is shown as ``depth``."""
    last = [name.rpartition("__")[2] for name in names]
    return {name: part if last.count(part) == 1 else name for name, part in zip(names, last, strict=True)}


def _column(values: list[Any]) -> list[Any]:
    """Return `values` as they are if they are numbers, else as text."""
    plain = all((isinstance(value, int | float) and not isinstance(value, bool)) or value is None for value in values)
    return values if plain else [None if value is None else str(value) for value in values]


def short(parameters: Parameters) -> str:
    """Return the parameters in a line, without the names of pipeline steps."""
    said = (f"{name.rpartition('__')[2]}={_brief(value)}" for name, value in parameters.items())
    return ", ".join(said) or "the defaults"


def _brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
