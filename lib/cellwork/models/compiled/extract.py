"""Read a program out of a fitted scikit-learn pipeline. Runs in the child that loaded the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cellwork.models.columns import Column
from cellwork.models.compiled import estimators
from cellwork.models.compiled.program import Program, check
from cellwork.models.compiled.transformers import Encoding, apply


def extract(model: Any, columns: Sequence[Column]) -> Program:
    """Return the program of `model`, whose input is `columns`; raises NotCompilable with the part that can't be said."""
    encoding = Encoding(columns)
    features = encoding.start()
    while type(model).__name__ == "Pipeline":
        for _, step in model.steps[:-1]:
            features = apply(step, features, encoding)
        model = model.steps[-1][1]
    said, link, missing = estimators.say(model)
    numbers, take, passes = encoding.finish(features)
    program = Program(
        kind=type(model).__name__, columns=list(columns), numbers=numbers, tables=encoding.tables, take=take,
        passes=passes, missing=missing, model=said, link=link,
    )  # fmt: skip
    return check(program)
