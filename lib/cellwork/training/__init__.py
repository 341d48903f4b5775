"""Training on Dask: `cluster` opens workers, `search` tries candidates on them with a leaderboard, `fit` fits one.

pandas, polars or NumPy go in; scikit-learn estimators come out. Categorical columns are the pipeline's own business.
"""

from __future__ import annotations

from cellwork.training import catalogue, rows
from cellwork.training.automl import Best, best
from cellwork.training.candidates import Step
from cellwork.training.cluster import Cluster, Tls, cluster
from cellwork.training.fit import fit
from cellwork.training.incremental import fit_batches
from cellwork.training.live import Live, start
from cellwork.training.parquet import batches
from cellwork.training.partitioned import fit_partitioned
from cellwork.training.search import Search, search

__all__ = [
    "Best",
    "Cluster",
    "Live",
    "Search",
    "Step",
    "Tls",
    "batches",
    "best",
    "catalogue",
    "cluster",
    "fit",
    "fit_batches",
    "fit_partitioned",
    "rows",
    "search",
    "start",
]
