"""What scikit-learn's fitted transformers do, said as tables and elementwise passes. Runs in the child that loaded the model.

A `Feature` is one column on its way through the pipeline: where it comes from, how it is coded, what was done to it since.
Whatever is not listed here raises NotCompilable, and the model stays with scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cellwork.models.columns import Column
from cellwork.models.compiled.program import Pass, Table


class NotCompilable(Exception):
    """The model does something that a program can't say."""


@dataclass(frozen=True)
class Feature:
    column: int
    text: bool
    table: int = -1
    """Its table in `Encoding.tables`; -1: the number itself."""
    place: int = 0
    """Its column of a table with width."""
    missing: str | None = None
    """What stands for a missing text."""
    steps: tuple[tuple[Any, float], ...] = ()


@dataclass
class Encoding:
    """Collects the tables of a pipeline; `finish` lays out slots, features and passes."""

    columns: Sequence[Column]
    tables: list[Table] = field(default_factory=list)

    def start(self) -> list[Feature]:
        return [Feature(k, column.kind == "text") for k, column in enumerate(self.columns)]

    def finish(self, features: Sequence[Feature]) -> tuple[list[int], list[int], list[Pass]]:
        """Return numbers, take and passes of a program."""
        if any(feature.text for feature in features):
            raise NotCompilable("text reaches the estimator")
        numbers = sorted({feature.column for feature in features if feature.table < 0})
        starts, slot = [], len(numbers)
        for table in self.tables:
            starts.append(slot)
            slot += max(1, table.width)
        take = [numbers.index(f.column) if f.table < 0 else starts[f.table] + f.place for f in features]
        return numbers, take, _passes(features)


def _passes(features: Sequence[Feature]) -> list[Pass]:
    """Return every feature's steps in their order, those of one kind together."""
    left = [list(feature.steps) for feature in features]
    passes = []
    while any(left):
        kind = next(steps[0][0] for steps in left if steps)
        having = [k for k, steps in enumerate(left) if steps and steps[0][0] == kind]
        passes.append(Pass(kind=kind, features=having, values=[left[k].pop(0)[1] for k in having]))
    return passes


def apply(transformer: Any, features: list[Feature], encoding: Encoding) -> list[Feature]:
    """Return what `transformer` makes of `features`."""
    name = type(transformer).__name__
    if transformer is None or transformer == "passthrough" or name in ("Pipeline", "ColumnTransformer", "FeatureUnion"):
        return _composed(name, transformer, features, encoding)
    if name not in KNOWN or not type(transformer).__module__.startswith(OURS):
        raise NotCompilable(f"{name} is not one of {', '.join(sorted(KNOWN))}")
    return KNOWN[name](transformer, features, encoding)


def _composed(name: str, transformer: Any, features: list[Feature], encoding: Encoding) -> list[Feature]:
    if name == "Pipeline":
        for _, step in transformer.steps:
            features = apply(step, features, encoding)
        return features
    if name == "FeatureUnion":
        if transformer.transformer_weights:
            raise NotCompilable("FeatureUnion with weights")
        parts = [(step, features) for _, step in transformer.transformer_list if step != "drop"]
    elif name == "ColumnTransformer":
        if transformer.transformer_weights:
            raise NotCompilable("ColumnTransformer with weights")
        indices = transformer._transformer_to_input_indices
        parts = [
            (step, [features[k] for k in indices[part]])
            for part, step, _ in transformer.transformers_
            if not (isinstance(step, str) and step == "drop") and len(indices[part])
        ]
    else:
        return features
    return [made for step, taken in parts for made in apply(step, taken, encoding)]


def _then(features: Sequence[Feature], kind: str, values: Sequence[float]) -> list[Feature]:
    if any(feature.text for feature in features):
        raise NotCompilable(f"{kind} on text")
    return [replace(f, steps=(*f.steps, (kind, float(v)))) for f, v in zip(features, values, strict=True)]


def _impute(imputer: Any, features: list[Feature], encoding: Encoding) -> list[Feature]:
    if imputer.missing_values is not np.nan and imputer.missing_values == imputer.missing_values:
        raise NotCompilable("SimpleImputer of another value than NaN")
    made = []
    for feature, value in zip(features, imputer.statistics_, strict=True):
        if feature.text:
            made.append(replace(feature, missing=str(value)))
        elif value != value:  # nothing but missing was seen: the column is dropped
            if getattr(imputer, "keep_empty_features", False):
                raise NotCompilable("SimpleImputer that keeps empty features")
        else:
            made += _then([feature], "fill", [value])
    if imputer.indicator_ is not None:
        made += _indicate(imputer.indicator_, features, encoding)
    return made


def _indicate(indicator: Any, features: list[Feature], encoding: Encoding) -> list[Feature]:
    return [made for k in indicator.features_ for made in _then([features[k]], "is_missing", [0.0])]


def _standardise(scaler: Any, features: list[Feature], encoding: Encoding) -> list[Feature]:
    center = scaler.mean_ if hasattr(scaler, "mean_") else getattr(scaler, "center_", None)
    if center is not None and getattr(scaler, "with_mean", getattr(scaler, "with_centering", False)):
        features = _then(features, "subtract", center)
    return features if scaler.scale_ is None else _then(features, "divide", scaler.scale_)


def _to_range(scaler: Any, features: list[Feature], encoding: Encoding) -> list[Feature]:
    features = _then(_then(features, "multiply", scaler.scale_), "add", scaler.min_)
    if not scaler.clip:
        return features
    low, high = scaler.feature_range
    return _then(_then(features, "at_least", [low] * len(features)), "at_most", [high] * len(features))


def _subset(selector: Any, features: list[Feature], encoding: Encoding) -> list[Feature]:
    return [feature for feature, kept in zip(features, selector.get_support(), strict=True) if kept]


def _numbers(numbers: Any, features: list[Feature], encoding: Encoding) -> list[Feature]:
    """Columns that were empty in training are 0, whatever comes."""
    empty = [k for k in range(len(features)) if numbers.empty_[k]]
    made = list(features)
    for k, feature in zip(empty, [features[k] for k in empty], strict=True):
        made[k] = _then(_then([feature], "fill", [0.0]), "multiply", [0.0])[0]
    return made


def _kept(selector: Any, features: list[Feature], encoding: Encoding) -> list[Feature]:
    return [features[k] for k in selector.kept_]


def _unchanged(transformer: Any, features: list[Feature], encoding: Encoding) -> list[Feature]:
    if transformer.func is not None:
        raise NotCompilable("FunctionTransformer with a function")
    return features


def _coded(feature: Feature, table: Table, encoding: Encoding) -> list[Feature]:
    if feature.table >= 0 or (feature.steps and not feature.text and not all(k == "fill" for k, _ in feature.steps)):
        raise NotCompilable("an encoder of something that was changed before")
    stand_in = feature.missing if feature.text else next((value for _, value in feature.steps), None)
    if stand_in is not None:
        codes = dict(zip(table.values, table.codes, strict=True))
        table.missing = codes.get(stand_in, table.other)
    encoding.tables.append(table)
    base = Feature(feature.column, False, table=len(encoding.tables) - 1)
    return [replace(base, place=place) for place in range(max(1, table.width))]


def _known(categories: Any) -> tuple[list[Any], list[int], int | None]:
    """Return the categories that are values, their positions, and the position of the missing one."""
    plain = [(str(c) if isinstance(c, str) else c, k) for k, c in enumerate(categories.tolist())]
    gaps = [k for c, k in plain if c is None or c != c]
    values = [c if isinstance(c, str) else float(c) for c, k in plain if k not in gaps]
    return values, [k for _, k in plain if k not in gaps], gaps[0] if gaps else None


def _refuse_infrequent(encoder: Any) -> None:
    if getattr(encoder, "_infrequent_enabled", False):
        raise NotCompilable("an encoder that groups infrequent categories")


def _ordinal(encoder: Any, features: list[Feature], encoding: Encoding) -> list[Feature]:
    _refuse_infrequent(encoder)
    other = float(encoder.unknown_value) if encoder.handle_unknown == "use_encoded_value" else None
    made = []
    for feature, categories in zip(features, encoder.categories_, strict=True):
        values, positions, gap = _known(categories)
        missing = float(encoder.encoded_missing_value) if gap is not None else other
        codes = [float(position) for position in positions]
        table = Table(column=feature.column, values=values, codes=codes, other=other, missing=missing)
        made += _coded(feature, table, encoding)
    return made


def _one_hot(encoder: Any, features: list[Feature], encoding: Encoding) -> list[Feature]:
    _refuse_infrequent(encoder)
    made = []
    dropped = encoder.drop_idx_ if encoder.drop_idx_ is not None else [None] * len(features)
    for feature, categories, drop in zip(features, encoder.categories_, dropped, strict=True):
        values, positions, gap = _known(categories)
        kept = [k for k in range(len(categories)) if drop is None or k != drop]
        place = {k: float(n) for n, k in enumerate(kept)}
        other = None if encoder.handle_unknown == "error" else -1.0
        table = Table(
            column=feature.column, values=values, codes=[place.get(k, -1.0) for k in positions], other=other,
            missing=other if gap is None else place.get(gap, -1.0), width=len(kept),
        )  # fmt: skip
        if kept:
            made += _coded(feature, table, encoding)
    return made


KNOWN: dict[str, Callable[[Any, list[Feature], Encoding], list[Feature]]] = {
    "SimpleImputer": _impute, "MissingIndicator": _indicate, "StandardScaler": _standardise, "RobustScaler": _standardise,
    "MaxAbsScaler": _standardise, "MinMaxScaler": _to_range, "OrdinalEncoder": _ordinal, "OneHotEncoder": _one_hot,
    "VarianceThreshold": _subset, "SelectKBest": _subset, "SelectPercentile": _subset, "SelectFromModel": _subset,
    "FunctionTransformer": _unchanged, "Numbers": _numbers, "Select": _kept,
}  # fmt: skip
OURS = ("sklearn.", "cellwork.training.steps")
