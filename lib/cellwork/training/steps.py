"""Steps of our own in a pipeline: numbers as trees take them, and texts as TF-IDF where some are missing."""

from __future__ import annotations

import warnings
from typing import Any

from cellwork.errors import BadInput
from cellwork.training.estimator import Estimator

ENOUGH = 50
"""Of this many texts, a word that only one has is learned by heart and left out."""


class _Transformer(Estimator):
    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None, target_tags=TargetTags(required=False), transformer_tags=TransformerTags(),
            regressor_tags=None, classifier_tags=None, input_tags=InputTags(string=True, allow_nan=True),
        )  # fmt: skip


class Numbers(_Transformer):
    """Numbers as they are, missing ones too, but for columns that are empty in training: no tree can bin those, so they are 0."""

    def fit(self, X: Any, y: Any = None) -> Numbers:
        """Learn which columns of `X`, shape (n, columns), hold no number."""
        import numpy as np

        self.empty_ = np.isnan(np.asarray(X, dtype=float)).all(axis=0)
        return self

    def transform(self, X: Any) -> Any:
        import numpy as np

        values = np.array(X, dtype=float)
        values[:, self.empty_] = 0.0
        return values

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        return self.fit(X).transform(X)

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        import numpy as np

        return np.asarray(input_features, dtype=object)


class Select(_Transformer):
    """The better part of the columns: those that tell most of the label, each by itself (F test; a missing number counts as the mean).

    Parameters
    ----------
    share : of the columns to keep, at least one.
    classes : whether the label is a class.
    """

    _NAMES = ("share", "classes")

    def __init__(self, share: float = 0.5, classes: bool = True) -> None:
        self.share, self.classes = share, classes

    def fit(self, X: Any, y: Any) -> Select:
        """Learn which columns of `X`, shape (n, columns), tell most of `y`, shape (n,)."""
        import numpy as np
        from sklearn.feature_selection import f_classif, f_regression

        with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # constant columns: their score is not a number and counts as 0
            scores, _ = (f_classif if self.classes else f_regression)(_filled(X), y)
        order = np.argsort(-np.nan_to_num(scores, nan=0.0), kind="stable")
        self.kept_ = np.sort(order[: max(1, round(self.share * len(order)))])
        return self

    def transform(self, X: Any) -> Any:
        return X[:, self.kept_]

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        return self.fit(X, y).transform(X)

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        return input_features[self.kept_]


def _filled(X: Any) -> Any:
    import numpy as np

    if not isinstance(X, np.ndarray):
        return X
    means = np.nan_to_num(np.nanmean(np.where(np.isnan(X).all(axis=0), 0.0, X), axis=0))
    return np.where(np.isnan(X), means, X)


class Words(_Transformer):
    """TF-IDF of the words of one column; a missing text has none.

    Parameters
    ----------
    most : how many different words count, the most frequent ones.
    pairs : with pairs of neighbouring words too.
    """

    _NAMES = ("most", "pairs")

    def __init__(self, most: int = 5000, pairs: bool = False) -> None:
        self.most, self.pairs = most, pairs

    def fit(self, X: Any, y: Any = None) -> Words:
        """Learn the words of `X`, shape (n,)."""
        self.fit_transform(X)
        return self

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        texts = _texts(X)
        least = 2 if len(texts) >= ENOUGH else 1
        self.vectoriser_ = TfidfVectorizer(
            max_features=self.most, min_df=least, ngram_range=(1, 2) if self.pairs else (1, 1)
        )
        try:
            return self.vectoriser_.fit_transform(texts)
        except ValueError as error:
            raise BadInput(
                "texts", f"{len(texts)} of them", f"have no words: {error}", "leave the column out"
            ) from None

    def transform(self, X: Any) -> Any:
        """Return the weights of the known words, sparse, shape (n, words)."""
        return self.vectoriser_.transform(_texts(X))

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        return self.vectoriser_.get_feature_names_out()


def _texts(X: Any) -> list[str]:
    import numpy as np
    import pandas as pd

    values = np.asarray(X, dtype=object).ravel()
    return ["" if missing else str(value) for value, missing in zip(values, pd.isna(values), strict=True)]
