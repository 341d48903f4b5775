"""What a model sees of a frame: numbers, flags, categories and texts, as its kind of model takes them.

A category that was never seen is none of the known ones, a missing number is missing (trees) or the median with a flag beside
it (scaled). Nothing is learned from rows outside `fit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cellwork.errors import BadInput
from cellwork.models import columns

if TYPE_CHECKING:
    import pandas as pd

WORDS = 3
"""Texts of this many words on average, mostly different, are texts and not categories."""
CATEGORIES = 50
"""How many values of a category get a column of their own."""
TOPICS = 20
"""Numbers that trees get of a text."""


@dataclass(frozen=True)
class Columns:
    numbers: list[str]
    categories: list[str]
    texts: list[str]


def sorted_out(frame: pd.DataFrame) -> Columns:
    """Return which columns are numbers, categories and texts.

    Raises
    ------
    BadInput
        There is no column.
    """
    kinds = columns.kinds(frame)
    if not kinds:
        raise BadInput("frame to train on", "", "has no columns", "give the dataset inputs or features")
    texts = [each.name for each in kinds if each.kind == "text" and _is_prose(frame[each.name])]
    return Columns(
        [each.name for each in kinds if each.kind != "text"],
        [each.name for each in kinds if each.kind == "text" and each.name not in texts],
        texts,
    )


def _is_prose(values: Any) -> bool:
    known = values.dropna().head(2000).astype(str)
    return len(known) > 1 and known.nunique() > len(known) / 2 and known.str.split().str.len().mean() >= WORDS


def preparation(frame: pd.DataFrame, columns: Literal["scaled", "trees", "plain"]) -> Any:
    """Return the unfitted transformer of the columns of `frame`; ``passthrough`` for a model that takes them as they are."""
    from sklearn.compose import ColumnTransformer

    if columns == "plain":
        return "passthrough"
    found = sorted_out(frame)
    parts = _scaled(found) if columns == "scaled" else _for_trees(found)
    return ColumnTransformer(parts, sparse_threshold=0.3 if columns == "scaled" else 0)


def _scaled(found: Columns) -> list[Any]:
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    from cellwork.training.steps import Words

    numbers = make_pipeline(
        SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), StandardScaler()
    )
    encoder = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=CATEGORIES)
    parts: list[Any] = [("numbers", numbers, found.numbers)] if found.numbers else []
    parts += [("categories", encoder, found.categories)] if found.categories else []
    return [*parts, *((f"text_{name}", Words(), name) for name in found.texts)]


def _for_trees(found: Columns) -> list[Any]:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    from cellwork.training.steps import Numbers, Words

    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-1)
    parts: list[Any] = [("numbers", Numbers(), found.numbers)] if found.numbers else []
    parts += [("categories", encoder, found.categories)] if found.categories else []
    topics = [
        (f"text_{name}", make_pipeline(Words(), TruncatedSVD(TOPICS, random_state=0)), name) for name in found.texts
    ]
    return [*parts, *topics]
