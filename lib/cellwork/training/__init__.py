"""Training on Dask: `cluster` opens workers, `search` tries candidates on them with a leaderboard, `fit` fits one.

pandas, polars or NumPy go in; scikit-learn estimators come out. Categorical columns are the pipeline's own business.
"""

from __future__ import annotations

from cellwork.training import catalogue, rows
from cellwork.training.automl import Best, best
from cellwork.training.candidates import Step
from cellwork.training.cluster import Cluster, Tls, cluster
from cellwork.training.fit import fit
from cellwork.training.live import Live, start
from cellwork.training.search import Search, search

__all__ = [
    "Best",
    "Cluster",
    "Live",
    "Search",
    "Step",
    "Tls",
    "best",
    "catalogue",
    "cluster",
    "fit",
    "rows",
    "search",
    "start",
]
