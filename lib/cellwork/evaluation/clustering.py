"""How well rows fall into clusters, without a truth to compare with: silhouette, Calinski-Harabasz and Davies-Bouldin, with 95 % intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellwork.errors import BadInput
from cellwork.wire.evaluations import Metric

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

ROWS = 2_000
"""The silhouette compares each row with each: of more rows a seeded sample is measured, by all three."""
DRAWS = 50
GREATER_IS_BETTER = frozenset({"silhouette", "calinski_harabasz"})


def measure(X: ArrayLike, clusters: ArrayLike, *, draws: int = DRAWS, seed: int = 0) -> dict[str, Metric]:
    """Return the three measures of `clusters`, shape (n,), over the numbers `X`, shape (n, columns), as the model saw them: scaled, say.

    Raises
    ------
    BadInput
        Shapes differ, a number is not finite, or there are fewer than two clusters or as many as rows.
    """
    import numpy as np
    from sklearn import metrics

    rows, names = np.asarray(X, dtype=float), np.asarray(clusters)
    if rows.ndim != 2 or names.shape != rows.shape[:1]:
        raise BadInput(
            "rows and clusters", f"{rows.shape} and {names.shape}", "do not belong together", "give a cluster a row"
        )
    if not np.isfinite(rows).all():
        raise BadInput(
            "rows",
            int((~np.isfinite(rows)).sum()),
            "values of them are missing or not finite",
            "impute them as the model does",
        )
    random = np.random.default_rng(seed)
    taken = random.permutation(len(rows))[:ROWS]
    rows, names = rows[taken], names[taken]
    if not 2 <= len(np.unique(names)) < len(names):
        raise BadInput(
            "clusters",
            len(np.unique(names)),
            f"of {len(names)} rows can't be measured",
            "make at least 2, and fewer than rows",
        )
    measures = {
        "silhouette": metrics.silhouette_score, "calinski_harabasz": metrics.calinski_harabasz_score, "davies_bouldin": metrics.davies_bouldin_score,
    }  # fmt: skip
    drawn = [
        part
        for _ in range(draws)
        if 2 <= len(np.unique(names[part := np.unique(random.integers(0, len(rows), len(rows)))])) < len(part)
    ]
    return {
        name: _metric(float(measure(rows, names)), [float(measure(rows[part], names[part])) for part in drawn])
        for name, measure in measures.items()
    }


def _metric(value: float, drawn: list[float]) -> Metric:
    import numpy as np

    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn else (value, value)
    return Metric(value=value, low=min(float(low), value), high=max(float(high), value))
