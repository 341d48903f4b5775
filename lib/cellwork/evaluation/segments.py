"""The same metrics for parts of the rows: where a model is good on the whole and poor for some. On data its author sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cellwork.errors import BadInput, near_miss
from cellwork.evaluation import metrics

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import ArrayLike

LEAST = 50
"""Rows; a smaller segment is put with the others of its kind, for its interval would say nothing."""
OTHERS = "(others)"
MISSING = "(missing)"
BANDS = 4


def by(
    frame: pl.DataFrame,
    column: str,
    y: ArrayLike,
    scores: ArrayLike,
    *,
    kind: metrics.Kind = "classifier",
    least: int = LEAST,
) -> pl.DataFrame:
    """Return a row a segment of `column`, the worst first: segment, rows, and the kind's first metric with its interval.

    Parameters
    ----------
    frame, y, scores : n rows
        Numbers with more than `BANDS` * 3 values are cut into bands of equally many rows. A segment in which the metric is not defined
        (one class only) has nulls and comes last.

    Raises
    ------
    BadInput
        There is no such column, or labels and scores are not what `metrics.measure` takes.
    """
    import numpy as np
    import polars as pl

    if column not in frame.columns:
        raise BadInput("segments' column", column, "is not in the frame", near_miss(column, frame.columns))
    truth, score = np.asarray(y, dtype=float), np.asarray(scores, dtype=float)
    names = _named(frame.get_column(column), least)
    rows = [_row(name, truth[names == name], score[names == name], kind) for name in dict.fromkeys(names.tolist())]
    descending = metrics.primary(kind) not in metrics.GREATER_IS_BETTER
    schema = {
        "segment": pl.String,
        "rows": pl.Int64,
        metrics.primary(kind): pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
    }
    return pl.DataFrame(rows, schema, orient="row").sort(metrics.primary(kind), descending=descending, nulls_last=True)


def _named(values: pl.Series, least: int) -> Any:
    import polars as pl

    values = values.fill_nan(None) if values.dtype.is_float() else values
    if values.dtype.is_numeric() and values.n_unique() > 3 * BANDS:
        edges = sorted({edge for k in range(1, BANDS) if (edge := values.quantile(k / BANDS, "nearest")) is not None})
        return values.cut(edges, left_closed=True).cast(pl.String).fill_null(MISSING).to_numpy()
    texts = values.cast(pl.String).fill_null(MISSING)
    counts = dict(texts.value_counts().iter_rows())
    return texts.map_elements(lambda text: text if counts[text] >= least else OTHERS, return_dtype=pl.String).to_numpy()


def _row(name: str, truth: Any, score: Any, kind: metrics.Kind) -> tuple[Any, ...]:
    if kind == "classifier" and truth.min() == truth.max():
        return name, len(truth), None, None, None
    found = metrics.measure(truth, score, kind=kind)[metrics.primary(kind)]
    return name, len(truth), found.value, found.low, found.high
