"""Quality before outcomes arrive, estimated: what the area under the ROC curve would be if scores meant what they meant so far.

Where outcomes are known, each score's share that came true is measured, in `BINS` steps; where few are known the score itself counts as its
probability, like `PRIOR` outcomes. A day of predictions with these probabilities has an expected number of positives and
negatives at each step, and so an expected area. It sees that predictions have become harder; it can't see that what scores mean has
changed, which only outcomes tell: so it is said as an estimate, beside the measured one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

BINS = 100
PRIOR = 10


def areas(predicted: pl.DataFrame, known: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    """Return column ``estimated_auc`` for each group of `predicted`; null where all predictions would be of one kind.

    Parameters
    ----------
    predicted : columns `by`, ``bin`` (0 to `BINS` - 1, of a score from 0 to 1) and ``rows``
    known : some of the columns `by`, such as ``version``, with ``bin``, ``rows`` and ``happened``
        Those with an outcome, and how many of them came true.
    """
    import polars as pl

    share = (pl.col("happened").fill_null(0) + PRIOR * (pl.col("bin") + 0.5) / BINS) / (
        pl.col("known").fill_null(0) + PRIOR
    )
    met = known.rename({"rows": "known"})
    each = predicted.join(met, on=[*(name for name in by if name in known.columns), "bin"], how="left").with_columns(
        yes=pl.col("rows") * share
    )
    placed = each.with_columns(no=pl.col("rows") - pl.col("yes")).sort([*by, "bin"]).with_columns(
        below=pl.col("no").cum_sum().over(by) - pl.col("no") / 2
    )  # fmt: skip
    pairs = pl.col("yes").sum() * pl.col("no").sum()
    value = pl.when(pairs > 0).then((pl.col("yes") * pl.col("below")).sum() / pairs)
    return placed.group_by(by, maintain_order=True).agg(estimated_auc=value)
