"""Empties the rows of an erased subject in datasets that were built before, where a column of theirs names it.

A row stays in its place with the observation's time and batch, and every other value becomes null: so a split by place or by time still holds,
and `X()` and `y()` leave the row out, for it has no label. `Dataset.erased` counts these rows; `content_sha256` stays that of the frame as
it was built, by which models name it. A dataset in which no column names the subject can't be told apart and is left (`erasure_places`).

May be repeated, and killed anywhere: the file is replaced whole, and the record is made to say what is in the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec
import polars as pl
from sqlalchemy import text

from cellwork import files
from cellwork.features.row import BATCH
from cellwork.wire.datasets import Dataset
from cellwork_hub.platform import feature_definitions
from cellwork_hub.platform.state import State


def empty(
    state: State, project: str, value: str, columns: Iterable[str], found: dict[str, int], note: Callable[[], None]
) -> None:
    """Empty the rows of `value` in the stored datasets of `project`.

    Parameters
    ----------
    columns : of raw data that name subjects.
    found : dataset id -> rows, to which is added what is found; before a file is changed `note` is called to keep it.
    """
    subjects = set(columns)
    for record in stored(state, project):
        path = state.home.dataset(record.id) / "data.parquet"
        named = [name for name in _named(state, record, subjects) if path.exists()]
        if not named:
            continue
        own = pl.any_horizontal(pl.col(name).cast(pl.String) == value for name in named).fill_null(False)
        count = int(pl.scan_parquet(path).select(own.sum()).collect().item())
        if count:
            found[record.id] = max(count, found.get(record.id, 0))
            note()
            _rewrite(path, record, own)
        if record.id in found:
            _drop_sketches(path.parent)
            _correct(state, record, path)


def stored(state: State, project: str) -> list[Dataset]:
    """Return the records of the datasets of a project, oldest first."""
    with state.engine.connect() as db:
        rows = db.execute(text("SELECT record FROM datasets WHERE project = :p ORDER BY seq"), {"p": project})
        return [msgspec.json.decode(row[0], type=Dataset) for row in rows]


def _named(state: State, record: Dataset, subjects: set[str]) -> list[str]:
    """Return the columns of a dataset that name a subject: by their own name, or by that of the join key they are asked for."""
    known = feature_definitions.definitions(state, record.project, record.revision)[0].observations
    keys: Mapping[str, str] = next((about.keys for about in known if about.name == record.observations), {})
    there = {record.id_column, *record.inputs, *keys.values()}
    return sorted((subjects & there) | {column for key, column in keys.items() if key in subjects})


def _kept(record: Dataset) -> set[str]:
    return {record.time_column, BATCH}


def _rewrite(path: Path, record: Dataset, own: pl.Expr) -> None:
    rows, kept = pl.scan_parquet(path), _kept(record)
    names = [name for name in rows.collect_schema().names() if name not in kept]
    part = path.with_suffix(".new")
    rows.with_columns(pl.when(~own).then(pl.col(name)).alias(name) for name in names).sink_parquet(
        part, compression="zstd"
    )
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)


def _drop_sketches(folder: Path) -> None:
    """Remove what drift has counted of the rows (`drift.reference`); it is made again from what is left."""
    for sketch in folder.glob("*.sketch"):
        sketch.with_suffix(".json").unlink(missing_ok=True)  # it says that the other one is there
        sketch.unlink(missing_ok=True)


def _correct(state: State, record: Dataset, path: Path) -> None:
    """Let the record say how many rows are empty and how many have a label."""
    rows, kept = pl.scan_parquet(path), _kept(record)
    names = [name for name in rows.collect_schema().names() if name not in kept]
    bare = pl.all_horizontal(pl.col(name).is_null() for name in names).sum()
    labels = pl.col(record.label).count() if record.label else pl.lit(0)
    record.erased, record.labelled = rows.select(bare, labels).collect().row(0)
    files.write(path.with_name("manifest.json"), msgspec.json.encode(record))
    with state.engine.begin() as db:
        values = {"r": msgspec.json.encode(record).decode(), "id": record.id}
        db.execute(text("UPDATE datasets SET record = :r WHERE id = :id"), values)
