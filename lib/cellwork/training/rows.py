"""Rows and labels as models take them, and the faults of them that are told before anything is fitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cellwork.errors import BadInput
from cellwork.models.columns import to_pandas

if TYPE_CHECKING:
    import numpy as np

CLASSES = 20


def features(X: Any) -> Any:
    """Return `X` as scikit-learn gets it; see `cellwork.models.columns`."""
    return to_pandas(X) if hasattr(X, "columns") else X


def truth(y: Any) -> np.ndarray[Any, Any]:
    """Return the labels as a float64 or integer array, shape (n,).

    Raises
    ------
    BadInput
        A label is missing, infinite or a text.
    """
    import numpy as np
    import polars as pl

    try:
        values = np.asarray(y.cast(pl.Float64) if isinstance(y, pl.Series) else y)
        if values.dtype.kind in "bui":
            return values.astype(np.int64)
        floats = values.astype(float)
    except (ValueError, TypeError, pl.exceptions.PolarsError):
        raise BadInput(
            "labels", _some_text(y), "are no numbers", "give each class a number: y.cast(pl.Categorical).to_physical()"
        ) from None
    for wrong, what in ((np.isnan(floats), "missing"), (np.isinf(floats), "infinite")):
        if wrong.any():
            raise BadInput("labels", f"{int(wrong.sum())} of {len(floats)}", f"are {what}", "leave those rows out")
    whole = bool((floats == floats.round()).all())
    return floats.astype(np.int64) if whole and len(np.unique(floats)) <= CLASSES else floats


def _some_text(y: Any) -> str:
    return next((str(value) for value in y if isinstance(value, str)), "")


def checked(X: Any, y: Any) -> tuple[Any, np.ndarray[Any, Any]]:
    """Return features and labels that a model can be fitted to.

    Raises
    ------
    BadInput
        There are no rows, or not one label a row; all labels are the same; a number is infinite (its column is named).
    """
    frame, labels = features(X), truth(y)
    rows = frame.shape[0]
    if rows != len(labels):
        raise BadInput(
            "labels", f"{len(labels):,}", f"are not one for each of the {rows:,} rows", "give X and y of the same rows"
        )
    if not rows:
        raise BadInput("rows to train on", "", "are none", "look at the time and the filters of the dataset")
    if (labels == labels[0]).all():
        raise BadInput(
            "labels", labels[0], "are all the same: there is nothing to learn", "take rows with other outcomes too"
        )
    return finite(frame), labels


def finite(X: Any) -> Any:
    """Return `X` as scikit-learn gets it; raises BadInput where there are no rows or a number is infinite (its column is named)."""
    import numpy as np

    frame = features(X)
    if not frame.shape[0]:
        raise BadInput("rows to train on", "", "are none", "look at the time and the filters of the dataset")
    if hasattr(frame, "columns"):
        _refuse_infinite(frame)
    elif frame.dtype.kind == "f" and (wrong := int(np.isinf(frame).sum())):
        raise BadInput("numbers of X", f"{wrong}", "are infinite", "make them missing, or leave those rows out")
    return frame


def _refuse_infinite(frame: Any) -> None:
    import numpy as np

    for name in frame.columns:
        values = frame[name]
        if values.dtype.kind == "f" and (wrong := int(np.isinf(values.to_numpy()).sum())):
            verdict = f"holds {wrong:,} infinite values"
            raise BadInput("column", name, verdict, "make them missing: they come from a division by zero, mostly")
