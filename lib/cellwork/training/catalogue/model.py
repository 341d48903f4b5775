"""What the catalogue says of a model. A parameter's range is one object for every kind of search."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from cellwork.errors import BadInput, Unavailable

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Kind = Literal["classifier", "regressor", "clusterer"]
CLASSES = 20
"""Whole numbers of more different values than this are amounts, not classes."""


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def rvs(self, random_state: Any = None) -> Any:
        """Draw one, as scikit-learn's samplers ask for it."""
        return self.values[_random(random_state).randint(len(self.values))]

    def grid(self, points: int) -> list[Any]:
        return list(self.values)

    def suggest(self, trial: Any, name: str) -> Any:
        """Ask an Optuna trial for one; values that are not plain are told apart by their place."""
        return self.values[trial.suggest_categorical(name, list(range(len(self.values))))]


@dataclass(frozen=True)
class Number:
    """A number from `low` to `high`, both included; with `log`, magnitudes count; with `whole`, integers only."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def rvs(self, random_state: Any = None) -> Any:
        return self._at(_random(random_state).uniform())

    def grid(self, points: int) -> list[Any]:
        """Return `points` values from end to end, each once."""
        return list(dict.fromkeys(self._at(k / max(1, points - 1)) for k in range(points)))

    def suggest(self, trial: Any, name: str) -> Any:
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def _at(self, share: float) -> Any:
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value


def _random(state: Any) -> Any:
    from sklearn.utils import check_random_state

    return check_random_state(state)


Range = Choice | Number


@dataclass(frozen=True)
class Made:
    """Which class a model of one kind is, ``module:Class``, and with what parameters."""

    path: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    probabilities: bool = True
    """Whether a classifier says probabilities; one that does not is calibrated."""


@dataclass(frozen=True)
class Model:
    """An entry of the catalogue.

    Parameters
    ----------
    made : what it is as classifier, regressor or clusterer.
    space : parameter -> `Choice` or `Number`, or several values.
    columns : how the columns are prepared: ``scaled`` (no missing values, one-hot, unit variance), ``trees`` (as they are; texts
        become numbers), or ``plain`` (the model sees the frame itself).
    starts : settings that do well on many tables, for a search to begin with.
    needs : the module that has to be installed, and the extra of cellwork that brings it.
    """

    name: str
    title: str
    made: Mapping[Kind, Made]
    space: Mapping[str, Range] = field(default_factory=dict)
    columns: Literal["scaled", "trees", "plain"] = "scaled"
    needs: tuple[str, str] | None = None
    starts: tuple[Mapping[str, Any], ...] = ()

    @property
    def installed(self) -> bool:
        return self.needs is None or find_spec(self.needs[0]) is not None

    def make(self, kind: Kind, **parameters: Any) -> Any:
        """Return the unfitted estimator of `kind`.

        Raises
        ------
        BadInput
            There is none of that kind, or it has no such parameter.
        Unavailable
            What it needs is not installed.
        """
        if kind not in self.made:
            raise BadInput("model", self.name, f"is no {kind}", f"it is a {' and a '.join(self.made)}")
        if not self.installed and self.needs:
            raise Unavailable("model", self.name, f"needs {self.needs[0]}", f"pip install 'cellwork[{self.needs[1]}]'")
        made = self.made[kind]
        module, _, name = made.path.partition(":")
        found = getattr(importlib.import_module(module), name)
        try:
            return found(**{**made.parameters, **parameters})
        except TypeError as error:
            raise BadInput("parameters of model", self.name, str(error), f"see the help of {name}") from None


def kind_of(y: ArrayLike | None) -> Kind:
    """Return what kind of model labels `y`, shape (n,), ask for: few whole numbers are classes, none at all are clusters."""
    import numpy as np

    if y is None:
        return "clusterer"
    values = np.asarray(y)
    if values.dtype.kind == "b":
        return "classifier"
    distinct = np.unique(values[~np.isnan(values.astype(float))])
    whole = bool((distinct == distinct.round()).all())
    return "classifier" if whole and len(distinct) <= CLASSES else "regressor"
