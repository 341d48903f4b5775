"""Answers computed ahead: a Parquet table scored by the version that an endpoint serves, as predictions in the form of its log.

The version is fetched with its digest, read out as a program and compared with scikit-learn as at a deployment; one that can't be
a program is not scored here but through the endpoint (`score_batch`). A scoring that broke off goes on when it is called again;
one that another version answers by then is refused, for answers of two versions are never mixed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cellwork import origin
from cellwork.client import connect
from cellwork.errors import BadInput
from cellwork.serving.stamp import Stamp

if TYPE_CHECKING:
    import polars as pl
    from distributed import Client as Cluster

    from cellwork.client import Client
    from cellwork.models.compiled import Machine
    from cellwork.serving.parquet import Scored
    from cellwork.wire.evaluations import VersionRef


def score_table(
    endpoint: str, source: Path, target: Path, *, observation: str, threads: int = 0, cluster: Cluster | None = None, client: Client | None = None,
) -> Scored:  # fmt: skip
    """Score every row of the Parquet file `source` by what `endpoint` serves now, into the folder `target`.

    Parameters
    ----------
    endpoint : full name ``project/name``.
    observation : the column of the table that names its rows.
    threads, cluster : see `cellwork.serving.parquet.score_parquet`.

    Raises
    ------
    NotFound
        There is no such endpoint, or no such file.
    BadInput
        The version can't be computed without scikit-learn, or the table lacks a column it takes.
    Conflict
        The target holds answers of another version or table.
    """
    from cellwork.serving.parquet import score_parquet

    client = client or connect()
    routes = client.endpoints.get(endpoint).routes
    machine = fetch(client, routes.live, cache())
    mine = origin.gather()
    stamp = Stamp(
        observation=observation, endpoint=endpoint, revision=routes.revision, version=routes.live, deployment=routes.deployment, run=mine.run, caller=mine.user
    )  # fmt: skip
    return score_parquet(source, target, machine, threads=threads, stamp=stamp, cluster=cluster)


def fetch(client: Client, version: VersionRef, folder: Path) -> Machine:
    """Return the machine of a registered `version`; its program is kept under `folder` by the digest of its files."""
    from cellwork.models import compiled, package

    with tempfile.TemporaryDirectory(prefix="cellwork-") as name:
        kept = folder / f"{version.digest}.program"
        files = Path(name) / "model"
        if not kept.is_file():
            package.download(client, version.name, version.version, files)
        try:
            return compiled.ensure(files, version.digest, folder)
        except compiled.NotCompiled as error:
            way_out = "score its rows through the endpoint: cellwork.serving.score_batch"
            raise BadInput("version", f"{version.name}@{version.version}", f"can't score tables: {error}", way_out) from None  # fmt: skip


def answers(target: Path, observations: Sequence[str]) -> pl.DataFrame:
    """Return the predictions of these observations among the answers in `target`, in no order; a row group that has none is not read."""
    import polars as pl

    return pl.scan_parquet(target / "part-*.parquet").filter(pl.col("observation").is_in(list(observations))).collect()


def cache() -> Path:
    """Return where programs and built kernels of this account are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cellwork" / "compiled"
