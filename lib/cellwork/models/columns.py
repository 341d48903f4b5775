"""The columns of a model, and the one way a frame becomes what scikit-learn sees.

A number or a flag is float64 (missing: NaN), a text is object (missing: NaN). Training, evaluation and serving all come through
`to_pandas`, so a model never sees one column in two forms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from cellwork.errors import BadInput, near_miss
from cellwork.wire import Struct

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import polars as pl

Kind = Literal["number", "text", "flag"]


class Column(Struct):
    name: str
    kind: Kind


def kinds(frame: pl.DataFrame | pd.DataFrame) -> list[Column]:
    """Return the columns of `frame` in order; raises BadInput for one that is neither number, flag nor text."""
    return [Column(name=str(name), kind=_kind(str(name), frame[name])) for name in frame.columns]


def to_pandas(
    frame: pl.DataFrame | pd.DataFrame | Mapping[str, Sequence[Any]], columns: Sequence[Column] | None = None
) -> pd.DataFrame:
    """Return `frame` as scikit-learn gets it: the named `columns` in their order (default: all of them).

    Raises
    ------
    BadInput
        A column is missing, or its values are not of its kind.
    """
    import pandas as pd

    wanted = columns if columns is not None else kinds(frame)  # type: ignore[arg-type]
    there = [str(name) for name in (frame if isinstance(frame, Mapping) else frame.columns)]
    missing = [column.name for column in wanted if column.name not in there]
    if missing:
        raise BadInput("model column", missing[0], "is not in the frame", near_miss(missing[0], there))
    return pd.DataFrame({column.name: _values(column, frame[column.name]) for column in wanted})


def _kind(name: str, values: Any) -> Kind:
    import pandas as pd
    import polars as pl

    if isinstance(values, pl.Series):
        dtype = values.dtype
        if dtype == pl.Boolean:
            return "flag"
        if dtype.is_numeric():
            return "number"
        if dtype in (pl.String, pl.Categorical, pl.Enum):
            return "text"
        raise _unusable(name, str(dtype))
    inferred = pd.api.types.infer_dtype(values, skipna=True)
    if inferred == "boolean":
        return "flag"
    if inferred in ("integer", "floating", "mixed-integer-float", "decimal"):
        return "number"
    if inferred in ("string", "categorical"):
        return "text"
    raise _unusable(name, inferred)


def _unusable(name: str, kind: str) -> BadInput:
    return BadInput("model column", name, f"holds {kind}", "make numbers, flags or text of it first")


def _values(column: Column, values: Any) -> np.ndarray[Any, Any]:
    import numpy as np
    import pandas as pd
    import polars as pl

    if column.kind == "text":
        listed = values.cast(pl.String).to_list() if isinstance(values, pl.Series) else list(values)
        texts = np.array(listed, dtype=object)
        texts[pd.isna(texts)] = np.nan
        return texts
    if _holds_text(values):
        raise _no_numbers(column)
    try:
        if isinstance(values, pl.Series):
            return values.cast(pl.Float64).to_numpy().copy()
        if isinstance(values, pd.Series) and isinstance(values.dtype, np.dtype) and values.dtype.kind in "biuf":
            return values.to_numpy(dtype=float, copy=True)  # nothing in there is missing but NaN: no mask is needed
        if isinstance(values, pd.Series):
            return values.astype("Float64").to_numpy(dtype=float, na_value=np.nan)
        return np.array(values, dtype=float)
    except (ValueError, TypeError, pl.exceptions.PolarsError):
        raise _no_numbers(column) from None


def _holds_text(values: Any) -> bool:
    """Return whether a text is among the values: "3" is none of the numbers that a model was trained on, whatever it reads like."""
    import pandas as pd
    import polars as pl

    if isinstance(values, pl.Series):
        return values.dtype in (pl.String, pl.Categorical, pl.Enum) and values.null_count() < len(values)
    if isinstance(values, pd.Series) and pd.api.types.is_numeric_dtype(values.dtype):
        return False
    return any(isinstance(value, str) for value in values)


def _no_numbers(column: Column) -> BadInput:
    return BadInput("model column", column.name, "holds values that are no numbers", "send it as it was in training")
