"""The raw store as a whole: SQL over its batches, compaction of its files."""

from __future__ import annotations

import functools
import threading
from typing import Any

import polars as pl
import pyarrow as pa

from cellwork import ids
from cellwork.data import query, schema, tables
from cellwork.errors import BadInput, TooBusy
from cellwork.wire.batches import Batch, Compacted, Sql
from cellwork_hub import records
from cellwork_hub.platform import batches, raw
from cellwork_hub.platform.state import State
from cellwork_hub.route import Call, Route

MIGRATION: tuple[str, ...] = ()
MOST_ROWS = 1_000_000
AT_ONCE = 2
_running = threading.BoundedSemaphore(AT_ONCE)


def sql(state: State, project: str, asked: Sql) -> tuple[pl.DataFrame, bool]:
    """Return rows of a SELECT over the raw data sets of `project`, and whether there are more.

    Raises
    ------
    TooBusy
        As many statements as may run at once are running.
    """
    if not 0 < asked.limit <= MOST_ROWS:
        raise BadInput("limit", asked.limit, f"is not between 1 and {MOST_ROWS:,}", "aggregate, or ask for fewer rows")

    def table(name: str) -> Any:
        chosen = raw.known_at(state, project, name, asked.as_of) if asked.as_of else raw.current(state, project, name)
        return _table(state, project, name, chosen)

    tables = {each.name: functools.partial(table, each.name) for each in raw.all_declared(state, project)}
    if not _running.acquire(blocking=False):
        raise TooBusy("SQL statements", AT_ONCE, "are running already", "try again in a moment")
    try:
        return query.run(asked.sql, tables, limit=asked.limit)
    finally:
        _running.release()


def _table(state: State, project: str, dataset: str, wanted: list[Batch]) -> Any:
    """Return the readable rows of `wanted` as an Arrow data set, of which DuckDB reads the columns it needs."""
    columns = raw.pinned(state, project, dataset)
    if not wanted:
        return schema.complete(pl.DataFrame(schema={"_batch": pl.String}), columns).to_arrow()
    chosen = ", ".join(f"'{ids.check(batch.id, 'bat')}'" for batch in wanted)
    table = state.raw_table(project, dataset).table()
    found = table.to_pyarrow_dataset(file_pruning_predicate=f"_batch IN ({chosen})")
    there = {field.name: field for field in found.schema}
    fields = [there.get(c.name) or pa.field(c.name, pa.null()) for c in columns]
    return found.replace_schema(pa.schema([*fields, there["_batch"]]))


def compact(state: State, call: Call, project: str, dataset: str) -> Compacted:
    raw.pinned(state, project, dataset)
    path = state.raw_table(project, dataset)
    if not path.exists():
        return Compacted(files_before=0, bytes_before=0, files=0, bytes=0)
    with batches.writing(project, dataset):
        done = Compacted(
            **dict(zip(("files_before", "bytes_before", "files", "bytes"), tables.compact(path), strict=True))
        )
    with state.engine.begin() as db:
        records.audit(db, call, "dataset.compact", f"{project}/{dataset}", after=done)
    return done


def routes(state: State) -> list[Route]:
    def post_sql(call: Call) -> bytes:
        rows, more = sql(state, ids.name(call.path["project"], "project"), call.body)
        call.answer_headers["x-more"] = str(more).lower()
        return batches.parquet(rows, call)

    def post_compact(call: Call) -> Compacted:
        return compact(state, call, call.path["project"], call.path["dataset"])

    return [
        Route("POST", "/api/v1/compact/{project}/{dataset}", post_compact, scope="data:write", answer=Compacted, doc="Put small files of a raw data set together."),
        Route("POST", "/api/v1/sql/{project}", post_sql, scope="data:read", body=Sql, answer=bytes, doc="Rows of one SELECT over raw data sets, as parquet."),
    ]  # fmt: skip
