"""What each column contributed to a score: exact for linear models, SHAP values for trees.

Contributions and base add up to the raw score, before the link (log-odds for a classifier). A linear model's base is its intercept, and a
column contributes weight times its prepared value (for a scaled column: beside the training mean). For trees the base is their mean over the
training rows, and contributions are Shapley values of the path-dependent expectation (Lundberg et al. 2020, https://doi.org/10.1038/s42256-019-0138-9): a
column that is left out is averaged over both branches by the training rows that went there.

A leaf's share is a product over the columns on its path, so its Shapley values are sums over the coefficients of one polynomial; all leaves
of all trees are computed side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellwork.errors import BadInput
from cellwork.models.compiled.program import MISSING_LEFT, Arrays, Linear, Program, Trees, arrays

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
MOST_LEAVES = 200_000
LEAST_SHARE = 1e-12
"""In the place of a branch that no training row went."""


@dataclass(frozen=True)
class Explainer:
    """Of one program; `columns` is the column of each feature."""

    base: float
    columns: NDArray[np.intp]
    values: Any
    """(matrix of prepared rows, shape (n, features)) -> contributions of features, of the same shape."""

    def __call__(self, matrix: Matrix, count: int) -> Matrix:
        """Return the contributions of `count` columns, shape (n, count)."""
        found = np.zeros((len(matrix), count))
        np.add.at(found.T, self.columns, self.values(matrix).T)
        return found


def explainer(program: Program) -> Explainer:
    """Return what explains scores of `program`; raises BadInput if its trees don't say how many rows went where, or are too many."""
    columns = np.array(column_of_features(program), dtype=np.intp)
    model = program.model
    if isinstance(model, Linear):
        weights = np.array(model.weights)
        return Explainer(model.intercept, columns, lambda matrix: matrix * weights)
    leaves = _leaves(model)
    base = model.base + float(leaves.value @ leaves.share)
    return Explainer(base / model.divide, columns, lambda matrix: _shapley(leaves, matrix) / model.divide)


def column_of_features(program: Program) -> list[int]:
    """Return the column that each feature of the matrix comes from."""
    slots = [*program.numbers, *(table.column for table in program.tables for _ in range(max(1, table.width)))]
    return [slots[taken] for taken in program.take]


@dataclass(frozen=True)
class Leaves:
    """All leaves of all trees; a row of the matrices holds the features on a leaf's path, each once, filled up with none (-1)."""

    value: Vector
    share: Vector
    """Of the training rows of its tree."""
    feature: NDArray[np.intp]
    low: Matrix
    high: Matrix
    """The path is open for values above `low` and up to `high` …"""
    missing: NDArray[np.bool_]
    """… or, with this, for none."""
    part: Matrix
    """The share of rows that went on at the splits by this feature."""


Path = dict[int, tuple[float, float, bool, float]]
"""Feature -> low, high, missing, part."""


def _leaves(model: Trees) -> Leaves:
    if not model.cover:
        raise BadInput("version", "", "does not say how many training rows went where", "deploy it again")
    found, cover = arrays(model), np.frombuffer(model.cover, "<f8")
    if int((found.left == np.arange(len(found.left))).sum()) > MOST_LEAVES:
        raise BadInput("version", "", f"has more than {MOST_LEAVES} leaves", "explain a smaller model")
    paths, value, share = [], [], []
    for root in found.roots.tolist():
        for leaf, path in _paths(found, cover, root):
            paths.append(path)
            value.append(found.value[leaf])
            share.append(math.prod(part for _, _, _, part in path.values()))
    width = max((len(path) for path in paths), default=0)
    none = (-1, -math.inf, math.inf, True, 1.0)
    rows = [[(f, *rest) for f, rest in path.items()] + [none] * (width - len(path)) for path in paths]
    table = np.array(rows, dtype=np.float64).reshape(len(paths), width, 5)
    return Leaves(
        np.array(value), np.array(share), table[:, :, 0].astype(np.intp), table[:, :, 1], table[:, :, 2],
        table[:, :, 3].astype(bool), np.maximum(table[:, :, 4], LEAST_SHARE),
    )  # fmt: skip


def _paths(found: Arrays, cover: Vector, root: int) -> Iterator[tuple[int, Path]]:
    """Yield each leaf of a tree with what leads to it."""
    waiting: list[tuple[int, Path]] = [(root, {})]
    while waiting:
        node, path = waiting.pop()
        left = int(found.left[node])
        if left == node:
            yield node, path
            continue
        feature, threshold = int(found.feature[node] & ~MISSING_LEFT), float(found.threshold[node])
        missing_left = bool(found.feature[node] >= MISSING_LEFT)
        low, high, missing, part = path.get(feature, (-math.inf, math.inf, True, 1.0))
        shares = [float(cover[child] / cover[node]) if cover[node] > 0 else 0.5 for child in (left, left + 1)]
        waiting.append(
            (left, path | {feature: (low, min(high, threshold), missing and missing_left, part * shares[0])})
        )
        waiting.append(
            (left + 1, path | {feature: (max(low, threshold), high, missing and not missing_left, part * shares[1])})
        )


def _shapley(leaves: Leaves, matrix: Matrix) -> Matrix:
    """Return the Shapley value of each feature, shape (n, features)."""
    count, width = leaves.feature.shape
    weights = np.array(
        [math.factorial(k) * math.factorial(width - 1 - k) / math.factorial(width) for k in range(width)]
    )
    found = np.zeros((len(matrix), matrix.shape[1] + 1))  # the last place takes what belongs to no feature
    for row, into in zip(matrix, found, strict=True):
        x = np.append(row, 0.0)[leaves.feature]
        with np.errstate(invalid="ignore"):
            open_ = ((leaves.low < x) & (x <= leaves.high)) | (np.isnan(x) & leaves.missing) | (leaves.feature < 0)
        one, part = open_.astype(np.float64), leaves.part
        whole = np.zeros((count, width + 1))
        whole[:, 0] = 1.0
        for k in range(width):
            whole[:, 1:] = whole[:, 1:] * part[:, k, None] + whole[:, :-1] * one[:, k, None]
            whole[:, 0] *= part[:, k]
        for k in range(width):
            rest = _without(whole, one[:, k], part[:, k])
            np.add.at(into, leaves.feature[:, k], leaves.value * (one[:, k] - part[:, k]) * (rest @ weights))
    return found[:, :-1]


def _without(whole: Matrix, one: Vector, part: Vector) -> Matrix:
    """Return the polynomials `whole` divided by part + one * y; `one` is 0 or 1."""
    rest = whole[:, :-1] / part[:, None]
    open_ = one > 0
    top, some, share = np.zeros(int(open_.sum())), whole[open_], part[open_]
    divided = np.empty((len(some), whole.shape[1] - 1))
    for k in range(whole.shape[1] - 1, 0, -1):
        top = some[:, k] - share * top
        divided[:, k - 1] = top
    rest[open_] = divided
    return rest
