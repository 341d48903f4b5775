"""Compute a program: rows of plain values in, one float64 a row out. The same numbers as the pipeline it was read from.

Not for two threads at once with few rows; a batch is encoded column-wise, so a hundred rows cost little more than one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cellwork.errors import BadInput
from cellwork.models.compiled import native
from cellwork.models.compiled.explain import Explainer, explainer
from cellwork.models.compiled.program import MISSING_LEFT, Linear, Pass, Program, Table, Trees, arrays

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]
Vector = np.ndarray[tuple[int], np.dtype[np.float64]]
MANY_ROWS = 256
"""From here on Python's lock is given up while trees are walked."""
BLOCK = 2048
"""Rows of columns that are made a matrix at once: as many as stay in a core's own cache."""
AT_ONCE = 1 << 20
"""Positions in trees that NumPy holds at once."""
SINGLE = float(np.finfo(np.float32).max)
LINKS = ("identity", "sigmoid", "sigmoid2", "exp")
"""In the order of their numbers in trees.c."""
MISSING, TOO_LARGE = 1, 2


class Coded(NamedTuple):
    """A column as places in a list of its different values; None where there is no value."""

    values: list[Any]
    places: np.ndarray[tuple[int], np.dtype[np.int64]]


class Machine:
    """A program, ready. `how` says what computes."""

    def __init__(self, program: Program, folder: Path | None = None) -> None:
        self.program, self.folder = program, folder
        self._tables = [_Codes(table) for table in program.tables]
        self._slots = len(program.numbers) + sum(table.slots for table in self._tables)
        whole = program.numbers == list(range(len(program.columns)))
        self._pick = None if whole else itemgetter(*program.numbers) if len(program.numbers) > 1 else None
        self._in_order = program.take == list(range(self._slots))
        self._plain = whole and not self._tables and self._in_order
        self._passes = [_step(step, program.width) for step in program.passes]
        self._compute, computed = _computed(program, folder)
        self._explainer: Explainer | None = None
        self.how = f"{program.kind}, compiled ({computed})"

    def scores(self, rows: Sequence[tuple[Any, ...]]) -> Vector:
        """Return one score a row; a row holds the program's columns in order, None where there is no value.

        Raises
        ------
        BadInput
            A value that the pipeline refuses: an unknown category, a missing value where it takes none.
        """
        matrix = self._matrix(rows)
        for step in self._passes:
            step(matrix)
        return self._compute(matrix)

    def explain(self, rows: Sequence[tuple[Any, ...]]) -> tuple[float, Matrix]:
        """Return the base and each column's contribution to the raw score of each row, shape (n, columns); see `explain`.

        Raises
        ------
        BadInput
            As `scores`; or the program can't be explained.
        """
        if self._explainer is None:
            self._explainer = explainer(self.program)
        matrix = self._matrix(rows)
        for step in self._passes:
            step(matrix)
        model = self.program.model
        if isinstance(model, Trees) and model.single:
            matrix = matrix.astype(np.float32).astype(np.float64)
        return self._explainer.base, self._explainer(matrix, len(self.program.columns))

    def of_columns(self, columns: Sequence[Vector | None], coded: Mapping[int, Coded] | None = None) -> Vector:
        """Return one score a row of float64 columns, NaN where there is no value, in the program's order; for many rows at once.

        `coded` holds the columns that the program looks up, by their place; in `columns` they may be None.

        Raises
        ------
        BadInput
            As `scores`; or a column that is looked up came as numbers.
        """
        missing = next((table.column for table in self._tables if table.column not in (coded or {})), None)
        if missing is not None:
            text = self.program.columns[missing].name
            raise BadInput("column", text, "is not of numbers for this model", "hand it over coded, or score its rows")
        numbers = [columns[place] for place in self.program.numbers]
        rows = len(numbers[0]) if numbers and numbers[0] is not None else len(next(iter((coded or {}).values())).places)
        scores, block = np.empty(rows), np.empty((min(BLOCK, rows), self._slots))
        for start in range(0, rows, BLOCK):
            into = scores[start : start + BLOCK]
            part = block[: len(into)]
            for slot, column in enumerate(numbers):
                part[:, slot] = column[start : start + BLOCK]  # type: ignore[index]
            self._look_up(part, coded or {}, start)
            matrix = part if self._in_order else part[:, self.program.take]
            for step in self._passes:
                step(matrix)
            into[:] = self._compute(matrix)
        return scores

    def _look_up(self, part: Matrix, coded: Mapping[int, Coded], start: int) -> None:
        place = len(self.program.numbers)
        for table in self._tables:
            one = coded[table.column]
            into = part[:, place : place + table.slots]
            table.encode_coded(one.values, one.places[start : start + len(part)], into, self.program.columns[table.column].name)  # fmt: skip
            place += table.slots

    def _matrix(self, rows: Sequence[tuple[Any, ...]]) -> Matrix:
        if self._plain:
            return np.array(rows, dtype=np.float64)
        program = self.program
        matrix = np.empty((len(rows), self._slots))
        count = len(program.numbers)
        if self._pick is not None:
            matrix[:, :count] = np.array([self._pick(row) for row in rows], dtype=np.float64)
        else:
            for place, column in enumerate(program.numbers):
                matrix[:, place] = np.array([row[column] for row in rows], dtype=np.float64)
        place = count
        for table in self._tables:
            table.encode(rows, matrix[:, place : place + table.slots], program.columns[table.column].name)
            place += table.slots
        return matrix[:, program.take]


class _Codes:
    """A table, ready to look up."""

    def __init__(self, table: Table) -> None:
        self.column, self.width, self.slots = table.column, table.width, max(1, table.width)
        self.other, self.missing = table.other, table.missing
        self._codes = dict(zip(table.values, table.codes, strict=True))

    def encode(self, rows: Sequence[tuple[Any, ...]], into: Matrix, name: str) -> None:
        column, codes, other, missing = self.column, self._codes, self.other, self.missing
        found = [
            missing if (value := row[column]) is None or value != value else codes.get(value, other) for row in rows
        ]
        if None in found:
            raise _unseen(name, rows[found.index(None)][column])
        if not self.width:
            into[:, 0] = found
            return
        self._mark(np.array(found, dtype=np.int64), into)

    def encode_coded(self, values: Sequence[Any], places: np.ndarray[Any, Any], into: Matrix, name: str) -> None:
        """Encode rows that hold `values` at `places`."""
        found = [self.missing if value is None or value != value else self._codes.get(value, self.other) for value in values]  # fmt: skip
        unseen = next((place for place in np.unique(places) if found[place] is None), None) if None in found else None
        if unseen is not None:
            raise _unseen(name, values[unseen])
        codes = np.array([np.nan if code is None else code for code in found], dtype=np.float64)[places]
        if self.width:
            self._mark(codes.astype(np.int64), into)
        else:
            into[:, 0] = codes

    def _mark(self, places: np.ndarray[Any, Any], into: Matrix) -> None:
        into[:] = 0.0
        known = np.flatnonzero(places >= 0)
        into[known, places[known]] = 1.0


def _unseen(name: str, value: Any) -> BadInput:
    return BadInput(f"value of {name!r}", value, "was not seen in training", "send one the model knows")


def _step(step: Pass, width: int) -> Callable[[Matrix], None]:
    """Return the pass as a function that changes a matrix."""
    values = np.array(step.values, dtype=np.float64)
    where: Any = slice(None) if step.features == list(range(width)) else np.array(step.features, dtype=np.intp)
    kind = step.kind

    def apply(matrix: Matrix) -> None:
        part = matrix[:, where]
        matrix[:, where] = _ELEMENTWISE[kind](part, values)

    return apply


_ELEMENTWISE: dict[str, Callable[[Matrix, Vector], Any]] = {
    "fill": lambda x, v: np.where(np.isnan(x), v, x),
    "subtract": lambda x, v: x - v,
    "divide": lambda x, v: x / v,
    "multiply": lambda x, v: x * v,
    "add": lambda x, v: x + v,
    "at_least": np.maximum,
    "at_most": np.minimum,
    "is_missing": lambda x, v: np.isnan(x).astype(np.float64),
}


def _computed(program: Program, folder: Path | None) -> tuple[Callable[[Matrix], Vector], str]:
    """Return what makes scores of a matrix (which it may change), and what it is written in."""
    model = program.model
    if isinstance(model, Linear):
        weights, intercept = np.array(model.weights), model.intercept
        return _in_numpy(program, lambda matrix: matrix @ weights + intercept, single=False), "NumPy"
    built = native.library(folder)
    if built is None:
        return _in_numpy(program, _walk_in_numpy(model), single=model.single), "NumPy"
    return _walk_in_c(program, model, built), "C"


def _in_numpy(program: Program, raw: Callable[[Matrix], Vector], *, single: bool) -> Callable[[Matrix], Vector]:
    def compute(matrix: Matrix) -> Vector:
        if not program.missing and np.isnan(matrix).any():
            raise _refused(program, MISSING)
        if single:
            if (np.abs(matrix) > SINGLE).any():
                raise _refused(program, TOO_LARGE)
            matrix = matrix.astype(np.float32).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is judged by who asked, not warned of
            return _linked(raw(matrix), program.link)

    return compute


def _refused(program: Program, wrong: int) -> BadInput:
    if wrong & MISSING:
        return BadInput("input", "NaN", f"is no value for {program.kind}", "send every feature")
    return BadInput("input", "", "has a number too large for float32", "send a smaller one")


def _linked(raw: Vector, link: str) -> Vector:
    if link == "identity":
        return raw
    with np.errstate(over="ignore"):
        if link == "exp":
            return np.exp(raw)
        return np.asarray(1.0 / (1.0 + np.exp(-2.0 * raw if link == "sigmoid2" else -raw)))


def _walk_in_c(program: Program, model: Trees, built: Path) -> Callable[[Matrix], Vector]:
    found = arrays(model)
    nodes = np.empty(len(found.left), dtype=[("threshold", "<f8"), ("feature", "<i4"), ("left", "<i4")])
    nodes["threshold"], nodes["feature"], nodes["left"] = found.threshold, found.feature, found.left
    few, many = native.kernel(built, keep_lock=True), native.kernel(built, keep_lock=False)
    where = (nodes.ctypes.data, found.value.ctypes.data, found.roots.ctypes.data, found.depths.ctypes.data)
    how = len(found.roots), model.base, model.divide, model.single, program.missing, LINKS.index(program.link)

    def compute(matrix: Matrix, held: Any = (nodes, found)) -> Vector:
        matrix = np.ascontiguousarray(matrix)
        rows, width = matrix.shape
        scores = np.empty(rows)
        first, into = matrix.__array_interface__["data"][0], scores.__array_interface__["data"][0]
        wrong = (few if rows < MANY_ROWS else many)(first, rows, width, *where, *how, into)
        if wrong:
            raise _refused(program, wrong)
        return scores

    return compute


def _walk_in_numpy(model: Trees) -> Callable[[Matrix], Vector]:
    found = arrays(model)
    feature, missing_left = found.feature & ~MISSING_LEFT, found.feature >= MISSING_LEFT
    steps, trees = int(found.depths.max(initial=0)), len(found.roots)
    chunk = max(1, AT_ONCE // trees)

    def walk(matrix: Matrix) -> Vector:
        parts = [some(matrix[start : start + chunk]) for start in range(0, len(matrix), chunk)]
        raw = np.concatenate(parts) if len(parts) != 1 else parts[0]
        return raw / model.divide if model.divide != 1.0 else raw

    def some(matrix: Matrix) -> Vector:
        row = np.arange(len(matrix))[:, None]
        at = np.broadcast_to(found.roots, (len(matrix), trees))
        gaps = bool(np.isnan(matrix).any())
        for _ in range(steps):
            value = matrix[row, feature[at]]
            right = ~(value <= found.threshold[at])
            if gaps:
                right &= ~(np.isnan(value) & missing_left[at])
            at = found.left[at] + right
        values = np.concatenate([np.full((len(matrix), 1), model.base), found.value[at]], axis=1)
        return np.asarray(np.add.accumulate(values, axis=1)[:, -1])  # in order, as scikit-learn adds them

    return walk


def worst_difference(scores: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest difference relative to max(1, |expected|); infinite where only one of the two is finite."""
    worst = 0.0
    for a, b in zip(scores, expected, strict=True):
        if math.isfinite(a) != math.isfinite(b):
            return math.inf
        worst = max(worst, abs(a - b) / max(1.0, abs(b))) if math.isfinite(a) else worst
    return worst
