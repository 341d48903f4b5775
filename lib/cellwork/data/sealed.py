"""Sealing: columns of some batches that leave the readable rows at ingest and that only the evaluator sees again.

The values lie in one parquet file a batch under ``home.sealed(project)``, in folders closed to others; the readable table
has nulls in their place. Only the platform service calls `write` and `restore`; no route returns what they hold.
"""

from __future__ import annotations

import fnmatch
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cellwork import files, ids
from cellwork.errors import BadInput, Unavailable, near_miss
from cellwork.wire.batches import RawDataset

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Sealing:
    """What a data set's seals say about one partition: the holdout and the columns it keeps, in order of name."""

    holdout: str
    columns: tuple[str, ...]


def check(declared: RawDataset) -> None:
    """Raise BadInput for a seal that names nothing, or that would blank a key."""
    for seal in declared.seals:
        subject = f"seal {seal.holdout!r} of data set {declared.name!r}"
        ids.name(seal.holdout, f"holdout of data set {declared.name!r}")
        if not seal.columns or not seal.partitions:
            raise BadInput(subject, "", "names no columns or no partitions", "name both; '*' is every partition")
        for column in seal.columns:
            if column in declared.key:
                raise BadInput(
                    subject, column, "is a key column, which can't be blank", "seal the columns of the truth"
                )


def sealing(declared: RawDataset, partition: str) -> Sealing | None:
    """Return what is sealed in the batches of `partition`, or None.

    Raises
    ------
    BadInput
        Seals of two holdouts match the partition.
    """
    matching = [s for s in declared.seals if any(fnmatch.fnmatchcase(partition, pattern) for pattern in s.partitions)]
    if not matching:
        return None
    holdouts = sorted({seal.holdout for seal in matching})
    if len(holdouts) > 1:
        subject = f"partition of data set {declared.name!r}"
        raise BadInput(
            subject, partition, f"is sealed for two holdouts ({', '.join(holdouts)})", "narrow their patterns"
        )
    return Sealing(holdouts[0], tuple(sorted({column for seal in matching for column in seal.columns})))


def take_out(frame: pl.DataFrame, kept: Sealing) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return `frame` with nulls in the sealed columns, and those columns with `_row`.

    Raises
    ------
    BadInput
        A sealed column does not exist: a misspelt seal must not let the truth through.
    """
    import polars as pl

    for column in kept.columns:
        if column not in frame.columns:
            subject = f"sealed column of holdout {kept.holdout!r}"
            raise BadInput(subject, column, "is not in the batch", near_miss(column, frame.columns))
    blank = [pl.lit(None, dtype=frame.schema[column]).alias(column) for column in kept.columns]
    return frame.with_columns(blank), frame.select("_row", *kept.columns)


def path(folder: Path, dataset: str, batch: str) -> Path:
    return folder / "raw" / ids.name(dataset) / f"{ids.check(batch, 'bat')}.parquet"


def write(folder: Path, dataset: str, batch: str, values: pl.DataFrame) -> None:
    """Keep `values` of `batch`; writing it again replaces it."""
    target = path(folder, dataset, batch)
    target.parent.mkdir(parents=True, exist_ok=True)
    for closed in (folder.parent, folder, target.parent.parent, target.parent):
        closed.chmod(0o700)
    buffer = io.BytesIO()
    values.write_parquet(buffer, compression="zstd")
    files.write(target, buffer.getvalue(), mode=0o600)


def restore(rows: pl.DataFrame, folder: Path, dataset: str, batches: Sequence[str]) -> pl.DataFrame:
    """Return `rows` (with `_batch` and `_row`, in their order) with the sealed values of `batches` in their places."""
    import polars as pl

    for batch in batches:
        try:
            kept = pl.read_parquet(path(folder, dataset, batch)).with_columns(_batch=pl.lit(batch))
        except OSError as error:
            raise Unavailable(
                "sealed values of batch",
                batch,
                f"can't be read ({error.strerror or error})",
                "restore them from a backup",
            ) from None
        names = [name for name in kept.columns if name not in ("_row", "_batch")]
        joined = rows.join(kept, on=["_batch", "_row"], how="left", maintain_order="left", suffix="__sealed")
        values = [pl.coalesce(f"{name}__sealed", name).cast(rows.schema[name]).alias(name) for name in names]
        rows = joined.with_columns(values).drop([f"{name}__sealed" for name in names])
    return rows
