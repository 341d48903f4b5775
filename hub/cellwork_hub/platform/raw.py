"""Reading the raw store: which batches there are, which hold, and their rows. A batch that the database does not know is not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import polars as pl
from sqlalchemy import text

from cellwork import clock, ids
from cellwork.data import schema, sealed, tables
from cellwork.errors import NotFound, near_miss
from cellwork.wire.batches import Batch, Column, RawDataset
from cellwork_hub.platform.state import State


def current(state: State, project: str, dataset: str) -> list[Batch]:
    """Return the batches of a data set that no other corrects, oldest first."""
    return select(state, "project = :p AND dataset = :d AND superseded_by = ''", p=project, d=dataset)


def known_at(state: State, project: str, dataset: str, as_of: str) -> list[Batch]:
    """Return the batches of a data set that were current at a moment.

    Parameters
    ----------
    as_of : a batch of any data set of the project, which was the newest then; or a time with a zone.
    """
    seq = _newest_at(state, project, as_of)
    then = (
        "seq <= :s AND NOT EXISTS (SELECT 1 FROM batches later WHERE later.supersedes = batches.id AND later.seq <= :s)"
    )
    return select(state, f"project = :p AND dataset = :d AND {then}", p=project, d=dataset, s=seq)


def _newest_at(state: State, project: str, as_of: str) -> int:
    """Return the number of the batch `as_of`, or of the last one ready at the time `as_of` (0 if there was none)."""
    if as_of.startswith("bat_"):
        newest = get(state, as_of)
        if newest.project != project:
            raise NotFound("batch", as_of, f"is not of project {project!r}", "look at: cellwork batch list")
        return newest.seq
    query = (
        "SELECT max(batches.seq) FROM events JOIN batches ON batches.id = events.subject "
        "WHERE events.name = 'batch.ready' AND events.project = :p AND events.at <= :t"
    )
    at = clock.micros(clock.utc(as_of))
    with state.engine.connect() as db:
        return db.execute(text(query), {"p": project, "t": at}).scalar() or 0


def get(state: State, batch: str) -> Batch:
    found = select(state, "id = :id", id=ids.check(batch, "bat"))
    if not found:
        raise NotFound("batch", batch, "does not exist", "look at: cellwork batch list")
    return found[0]


def of_dataset(state: State, project: str, dataset: str, batch: str) -> Batch:
    """Return the batch `batch` if it is one of this data set, else raise NotFound."""
    found = get(state, batch)
    if (found.project, found.dataset) != (project, dataset):
        subject = f"batch of data set '{project}/{dataset}'"
        raise NotFound(subject, batch, "does not exist", "look at: cellwork batch list")
    return found


def raw_rows(
    state: State, project: str, dataset: str, batches: Sequence[str] | None = None, *, sealed: bool = False
) -> pl.DataFrame:
    """Return rows of a data set with `_batch`: batch by batch, in the order of their delivery.

    Parameters
    ----------
    batches : ids of batches of this data set, in the order wanted; None takes the current ones.
    sealed : put sealed values back in their places. For the platform's own use; no route may pass it on.

    Raises
    ------
    NotFound
        The data set or one of the batches does not exist.
    """
    columns = pinned(state, project, dataset)
    if batches is None:
        batches = [batch.id for batch in current(state, project, dataset)]
    kept_for = holdouts(state, project, dataset)
    for batch in batches:
        if batch not in kept_for:
            raise NotFound(
                f"batch of data set '{project}/{dataset}'", batch, "does not exist", "look at: cellwork batch list"
            )
    if not batches:
        return schema.complete(pl.DataFrame(schema={"_batch": pl.String}), columns)
    rows = schema.complete(tables.read(state.raw_table(project, dataset), batches), columns)
    if sealed:
        rows = _unsealed(state, project, dataset, rows, [batch for batch in batches if kept_for[batch]])
    return rows.drop("_row")


def _unsealed(state: State, project: str, dataset: str, rows: pl.DataFrame, batches: Sequence[str]) -> pl.DataFrame:
    return sealed.restore(rows, state.home.sealed(project), dataset, batches)


def pinned(state: State, project: str, dataset: str) -> list[Column]:
    """Return the schema of a data set; empty before its first batch. Raises NotFound with the near miss."""
    declared, columns = declaration(state, project, dataset)
    if declared is None:
        names = [row.name for row in all_declared(state, project)]
        raise NotFound(f"data set of project {project!r}", dataset, "does not exist", near_miss(dataset, names))
    return columns


def declaration(state: State, project: str, dataset: str) -> tuple[RawDataset | None, list[Column]]:
    with state.engine.connect() as db:
        query = text("SELECT declared, columns FROM raw_datasets WHERE project = :p AND name = :n")
        row = db.execute(query, {"p": ids.name(project, "project"), "n": ids.name(dataset, "data set")}).first()
    if row is None:
        return None, []
    return msgspec.json.decode(row[0], type=RawDataset), msgspec.json.decode(row[1], type=list[Column])


def all_declared(state: State, project: str) -> list[RawDataset]:
    with state.engine.connect() as db:
        query = text("SELECT declared FROM raw_datasets WHERE project = :p ORDER BY name")
        return [msgspec.json.decode(row[0], type=RawDataset) for row in db.execute(query, {"p": project})]


def holdouts(state: State, project: str, dataset: str) -> dict[str, str]:
    """Return batch id -> holdout (or empty) of all batches of a data set, corrected ones too."""
    with state.engine.connect() as db:
        query = text("SELECT id, holdout FROM batches WHERE project = :p AND dataset = :d ORDER BY seq")
        return {row[0]: row[1] for row in db.execute(query, {"p": project, "d": dataset})}


def last_sizes(state: State, project: str, dataset: str, count: int) -> list[int]:
    """Return the row counts of the last `count` current batches of a data set."""
    query = "SELECT record FROM batches WHERE project = :p AND dataset = :d AND superseded_by = '' ORDER BY seq DESC LIMIT :n"
    with state.engine.connect() as db:
        rows = db.execute(text(query), {"p": project, "d": dataset, "n": count})
        return [msgspec.json.decode(row[0], type=Batch).rows for row in rows]


def select(state: State, where: str, limit: int = -1, **values: Any) -> list[Batch]:
    bound = "" if limit < 0 else f" LIMIT {int(limit)}"
    with state.engine.connect() as db:
        rows = db.execute(
            text(f"SELECT seq, superseded_by, record FROM batches WHERE {where} ORDER BY seq{bound}"), values
        )
        return [_batch(row.seq, row.superseded_by, row.record) for row in rows]


def _batch(seq: int, superseded_by: str, record: str) -> Batch:
    batch = msgspec.json.decode(record, type=Batch)
    batch.seq, batch.superseded_by = seq, superseded_by
    return batch
