"""The child that reads a program out of a model: ``python -I -m cellwork.models.compiled.child FOLDER MEMORY_MB SECONDS BYTES``.

It writes one `Found` to standard output: the program, or why there is none, and scikit-learn's scores of rows to try it on.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from cellwork.models.child import limit
from cellwork.models.columns import Column
from cellwork.models.confine import confine

ROWS = 200
"""Rows a program is compared on, made from the example's values."""


class Found(msgspec.Struct):
    program: bytes = b""
    reason: str = ""
    """Why there is no program."""
    rows: list[list[Any]] = []
    """The example rows first; without a program only those."""
    scores: list[float] = []


def main(folder: Path) -> Found:
    from cellwork.models import package
    from cellwork.models.compiled import program as programs
    from cellwork.models.compiled.extract import extract
    from cellwork.models.compiled.transformers import NotCompilable

    manifest = package.read(folder)
    model = package.load(folder)
    if not manifest.wheels:
        confine(folder)
    rows = probes(manifest)
    try:
        program, reason = programs.encode(extract(model, manifest.columns)), ""
    except NotCompilable as error:
        program, reason, rows = b"", str(error), rows[: len(manifest.example)]
    return Found(program=program, reason=reason, rows=rows, scores=_scores(model, manifest.columns, rows))


def _scores(model: Any, columns: list[Column], rows: list[list[Any]]) -> list[float]:
    """Return one score a row, NaN for a row that is refused: all at once, and one by one if one of them is."""
    from cellwork.models import package
    from cellwork.models.columns import to_pandas

    table = {column.name: [row[k] for row in rows] for k, column in enumerate(columns)}
    try:
        return [float(score) for score in package.scores(model, to_pandas(table, columns))] if rows else []
    except ValueError:
        return [_score(model, columns, row) for row in rows]


def _score(model: Any, columns: list[Column], row: list[Any]) -> float:
    from cellwork.models import package
    from cellwork.models.columns import to_pandas

    table = {column.name: [value] for column, value in zip(columns, row, strict=True)}
    try:
        return float(package.scores(model, to_pandas(table, columns))[0])
    except ValueError:  # what scikit-learn refuses, the program must refuse too
        return float("nan")


def probes(manifest: Any) -> list[list[Any]]:
    """Return the example rows, then mixtures of their values, with gaps, unknown texts and numbers far outside."""
    import numpy as np

    dice = np.random.default_rng(0)
    columns = [[row.get(column.name) for row in manifest.example] for column in manifest.columns]
    rows = [list(row) for row in zip(*columns, strict=True)]
    for number in itertools.count():
        if len(rows) >= ROWS or not rows:
            return rows
        row = [values[dice.integers(len(values))] for values in columns]
        for place, column in enumerate(manifest.columns):
            if column.kind == "number" and row[place] is not None and number % 2:
                row[place] = float(row[place]) * float(dice.normal(1, 1)) + float(dice.normal())
            if column.kind == "text" and dice.random() < 0.1:
                row[place] = "never seen"
            if number % 4 == 3 and dice.random() < 0.2:
                row[place] = None
        rows.append(row)
    return rows


if __name__ == "__main__":
    limit(*map(int, sys.argv[2:5]))
    output = os.dup(1)
    os.dup2(2, 1)
    content = msgspec.msgpack.encode(main(Path(sys.argv[1])))
    with os.fdopen(output, "wb") as file:
        file.write(content)
