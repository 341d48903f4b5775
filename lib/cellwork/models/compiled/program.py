"""What a compiled model is: how columns become a matrix of float64, and what is computed from a row of it.

A program comes out of a process that had an author's model in it, so nothing here is believed before `check` has seen it: an
index that passes `check` can't leave its array, and the number of steps of every tree is fixed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from cellwork import files
from cellwork.errors import BadInput
from cellwork.models.columns import Column
from cellwork.wire import Struct

VERSION = 2
MOST_STEPS = 4_000_000
"""Steps through trees for one row; a model that takes more is no model for the event loop."""
MISSING_LEFT = 1 << 30
"""Added to a node's feature: a missing value goes left."""

Link = Literal["identity", "sigmoid", "sigmoid2", "exp"]


class Table(Struct):
    """A column's values as codes; with `width`, as so many columns of zeros with a one at the code (none for -1)."""

    column: int
    values: list[str | float]
    codes: list[float]
    other: float | None
    """The code of an unknown value; None refuses the row."""
    missing: float | None
    width: int = 0


class Pass(Struct):
    """One elementwise step on some features of the matrix, each with its own value."""

    kind: Literal["fill", "subtract", "divide", "multiply", "add", "at_least", "at_most", "is_missing"]
    features: list[int]
    values: list[float]


class Linear(Struct, tag="linear"):
    weights: list[float]
    intercept: float


class Trees(Struct, tag="trees"):
    """Nodes of all trees, children side by side. A leaf's `left` is itself; raw score: (base + sum of values) / divide."""

    threshold: bytes
    feature: bytes
    left: bytes
    value: bytes
    roots: bytes
    depths: bytes
    base: float
    divide: float
    single: bool
    """Values are rounded to float32 before they are compared, as scikit-learn's own trees do."""
    cover: bytes = b""
    """The weight of the training rows at each node; what explains a score goes by it."""


class Program(Struct):
    kind: str
    """The estimator's name, for people."""
    columns: list[Column]
    numbers: list[int]
    """Columns taken as they are; the slots of the encoded row are these, then the tables'."""
    tables: list[Table]
    take: list[int]
    """Slot of each feature."""
    passes: list[Pass]
    missing: bool
    """Whether the estimator takes missing values."""
    model: Linear | Trees
    link: Link
    version: int = VERSION

    @property
    def width(self) -> int:
        return len(self.take)


class Arrays(msgspec.Struct):
    """The arrays of `Trees`, one entry a node, `roots` and `depths` one a tree."""

    threshold: np.ndarray[tuple[int], np.dtype[np.float64]]
    feature: np.ndarray[tuple[int], np.dtype[np.int32]]
    left: np.ndarray[tuple[int], np.dtype[np.int32]]
    value: np.ndarray[tuple[int], np.dtype[np.float64]]
    roots: np.ndarray[tuple[int], np.dtype[np.int32]]
    depths: np.ndarray[tuple[int], np.dtype[np.int32]]


def arrays(trees: Trees) -> Arrays:
    f8, i4 = np.dtype("<f8"), np.dtype("<i4")
    return Arrays(
        np.frombuffer(trees.threshold, f8), np.frombuffer(trees.feature, i4), np.frombuffer(trees.left, i4),
        np.frombuffer(trees.value, f8), np.frombuffer(trees.roots, i4), np.frombuffer(trees.depths, i4),
    )  # fmt: skip


def check(program: Program) -> Program:
    """Return `program` if every index in it stays inside; raises BadInput."""
    slots = len(program.numbers) + sum(max(1, table.width) for table in program.tables)
    good = (
        program.version == VERSION
        and program.width > 0
        and _inside([*program.numbers, *(table.column for table in program.tables)], len(program.columns))
        and _inside(program.take, slots)
        and all(_is_sound(table) for table in program.tables)
        and all(_inside(p.features, program.width) and len(p.features) == len(p.values) for p in program.passes)
        and _is_computable(program.model, program.width)
    )
    if not good:
        raise BadInput("compiled model", program.kind, "is not sound", "it is served by scikit-learn instead")
    return program


def _inside(indices: list[int], size: int) -> bool:
    return all(0 <= index < size for index in indices)


def _is_sound(table: Table) -> bool:
    codes = [*table.codes, *(code for code in (table.other, table.missing) if code is not None)]
    places = not table.width or all(-1 <= code < table.width and code == int(code) for code in codes if code == code)
    return len(table.values) == len(table.codes) and table.width >= 0 and places


def _is_computable(model: Linear | Trees, width: int) -> bool:
    if isinstance(model, Linear):
        return len(model.weights) == width and all(map(math.isfinite, model.weights))
    sizes = [len(model.threshold) / 8, len(model.feature) / 4, len(model.left) / 4, len(model.value) / 8]
    sizes += [len(model.cover) / 8] if model.cover else []
    if len(set(sizes)) != 1 or sizes[0] != int(sizes[0]) or len(model.roots) != len(model.depths) or not model.divide:
        return False
    found, nodes = arrays(model), int(sizes[0])
    feature = found.feature & ~MISSING_LEFT
    leaf = found.left == np.arange(nodes)
    return bool(
        found.roots.size
        and (found.feature >= 0).all()
        and (feature < width).all()
        and (found.left >= 0).all()
        and (found.left + np.where(leaf, 0, 1) < nodes).all()
        and np.isposinf(found.threshold[leaf]).all()
        and (found.feature[leaf] & MISSING_LEFT).all()
        and ((found.roots >= 0) & (found.roots < nodes)).all()
        and (found.depths >= 0).all()
        and found.depths.sum(dtype=np.int64) <= MOST_STEPS
        and not np.isnan(found.threshold).any()
    )


def decode(content: bytes) -> Program:
    """Return the checked program of bytes that `encode` made; raises BadInput for any others."""
    try:
        return check(msgspec.msgpack.decode(content, type=Program))
    except msgspec.MsgspecError as error:
        raise BadInput("compiled model", "", f"can't be read: {error}", "it is compiled again") from None


def encode(program: Program) -> bytes:
    return msgspec.msgpack.encode(program)


def read(path: Path) -> Program:
    return decode(path.read_bytes())


def write(path: Path, program: Program) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, encode(program))
