"""Prepared rows (a cache of parquet files) and feature rows (Delta tables, one a view and revision, partitioned by `_batch`).

What comes from sealed values lies under ``home.sealed`` and leaves this module only with ``sealed=True``: prepared rows of sealed
batches with their values, and the feature rows that such batches cause. Rows that later batches cause are open.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import polars as pl
from deltalake import DeltaTable, write_deltalake

from cellwork import files
from cellwork.data import prepare, tables
from cellwork.errors import Conflict, Unavailable
from cellwork.features import references
from cellwork.features.row import BATCH, CREATED, EVENT, schema
from cellwork.wire.batches import Batch
from cellwork.wire.features import Definitions, Prepared, View
from cellwork_hub.platform import batches, feature_queue
from cellwork_hub.platform.feature_definitions import definitions, view_revision
from cellwork_hub.platform.state import State

writing = threading.Lock()
"""Held while a table of feature rows is changed, or read whole for a push to a store that lost the view."""
keeping = threading.Lock()
"""Held while what was made of rows is kept: see `outdate`."""
_outdated: Counter[tuple[Path, str]] = Counter()


def outdated(state: State, project: str) -> int:
    """Return how often what was read of a project before is not to be kept any more."""
    return _outdated[state.home.root, project]


def outdate(state: State, project: str) -> None:
    """Let nothing be kept from here on that is made of rows read before: they may have an erased subject's."""
    with keeping:
        _outdated[state.home.root, project] += 1


def drop_prepared(state: State, project: str) -> None:
    """Remove the prepared rows of a project; who reads raw rows now keeps none of them."""
    outdate(state, project)
    for folder in (state.home.prepared(project, "any").parent, state.home.sealed(project) / "prepared"):
        shutil.rmtree(folder, ignore_errors=True)


def prepared_rows(
    state: State, definitions: Definitions, name: str, *, batches: Sequence[Batch] | None = None, sealed: bool = False,
    cached: bool = True, only: Callable[[pl.DataFrame], pl.DataFrame] | None = None,
) -> pl.DataFrame:  # fmt: skip
    """Return the rows of a Prepared with `_batch`, batch by batch.

    Parameters
    ----------
    batches : batches of its first source (default the current ones). The other sources are always whole, as they are now,
        and readable values only.
    sealed : with the sealed values of those batches. For the platform's own use; no route may pass it on.
    cached : False makes the rows anew from raw rows and keeps nothing.
    only : which rows of a batch are wanted; the others are let go before the next batch is read.
    """
    prepared = references.prepared_of(definitions, name)
    project = definitions.project
    wanted = _current(state, project, prepared.sources[0]) if batches is None else batches
    others = {source: _current(state, project, source) for source in prepared.sources[1:]}
    cache = _Prepared(state, project, prepared, others)
    read = cache.rows if cached else cache.made
    frames = []
    for batch in wanted:
        rows = read(batch, sealed=sealed and bool(batch.sealed))
        frames.append(only(rows) if only else rows)
    return pl.concat(frames, how="vertical_relaxed") if frames else cache.none()


def _current(state: State, project: str, dataset: str) -> list[Batch]:
    return batches.current(state, project, dataset)


class _Prepared:
    """One Prepared over one choice of its other sources."""

    def __init__(self, state: State, project: str, prepared: Prepared, others: dict[str, list[Batch]]) -> None:
        self.state, self.project, self.prepared, self.others = state, project, prepared, others
        self._others: dict[str, pl.DataFrame] = {}
        self._since = outdated(state, project)

    def rows(self, batch: Batch, *, sealed: bool) -> pl.DataFrame:
        file = self._file(batch, sealed=sealed)
        try:
            return pl.read_parquet(file, hive_partitioning=False)
        except FileNotFoundError:
            made = self.made(batch, sealed=sealed)
        self._keep(file, batch, _parquet(made))
        return made

    def _keep(self, file: Path, batch: Batch, content: bytes) -> None:
        with keeping:
            if outdated(self.state, self.project) != self._since:
                return
            files.write(file, content, mode=0o600)
            for older in file.parent.glob(f"{batch.id}-*.parquet"):
                if older != file:
                    older.unlink(missing_ok=True)

    def none(self) -> pl.DataFrame:
        """Return no rows, with the columns there would be."""
        driving = batches.raw_rows(self.state, self.project, self.prepared.sources[0], [])
        return prepare.run(self.prepared, _plain(driving), self._loaded()).with_columns(pl.lit("").alias(BATCH))

    def made(self, batch: Batch, *, sealed: bool) -> pl.DataFrame:
        driving = batches.raw_rows(self.state, self.project, batch.dataset, [batch.id], sealed=sealed)
        made = prepare.run(self.prepared, _plain(driving), self._loaded())
        return made.with_columns(pl.lit(batch.id).alias(BATCH))

    def _loaded(self) -> dict[str, pl.DataFrame]:
        for source in self.others:
            if source not in self._others:
                self._require_schema(source)
                self._others[source] = _plain(batches.raw_rows(self.state, self.project, source))
        return self._others

    def _require_schema(self, source: str) -> None:
        if not batches.pinned(self.state, self.project, source):
            raise Conflict(
                f"prepared {self.prepared.name!r}", source, "is a source that has no batch yet",
                "ingest one",
            )  # fmt: skip

    def _file(self, batch: Batch, *, sealed: bool) -> Path:
        """Name the file by all that its rows depend on."""
        others = sorted(other.id for there in self.others.values() for other in there)
        content = msgspec.json.encode((self.prepared.sql, self.prepared.sources, batch.id, others))
        folder = self.state.home.prepared(self.project, self.prepared.name)
        if sealed:
            folder = self.state.home.sealed(self.project) / "prepared" / self.prepared.name
        return folder / f"{batch.id}-{hashlib.sha256(content).hexdigest()[:20]}.parquet"


def _plain(raw: pl.DataFrame) -> pl.DataFrame:
    """Return raw rows without our own columns, which are none of an author's."""
    return raw.select(name for name in raw.columns if not name.startswith("_"))


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()


# Feature rows


def view_rows(
    state: State, project: str, view: View, *, sealed: bool = False, revision: int | None = None, batch: str = ""
) -> pl.DataFrame:
    """Return the feature rows of a view: join keys (of type Null while there are no rows), features, both times and `_batch`.

    Parameters
    ----------
    sealed : with the rows that sealed batches caused. For the platform's own use; no route may pass it on.
    revision : of the view (default the one that holds); rows of older ones stay readable.
    batch : only the rows that this batch caused.

    Raises
    ------
    Unavailable
        The view is new or changed and not filled yet.
    Conflict
        Filling it failed.
    """
    if revision is None:
        revision = view_revision(state, project, view.name)
        _check_filled(state, project, view.name)
    return read(state, project, view, revision, sealed=sealed, batch=batch)


def view_scan(state: State, project: str, view: View) -> pl.LazyFrame:
    """Return the open rows that `view_rows` would, unread; whoever reads them twice gets the same ones in the same order."""
    _check_filled(state, project, view.name)
    return scan(state, project, view, view_revision(state, project, view.name))


def _check_filled(state: State, project: str, view: str) -> None:
    left, failed, waits = feature_queue.open_backfill(state, project, view)
    if failed:
        raise Conflict(
            f"feature view {view!r}",
            "",
            f"is not whole, a run failed: {failed}",
            "mend its definition and apply it again",
        )
    if waits:
        raise Unavailable(f"feature view {view!r}", "", waits, "ingest one; the pipelines then go on by themselves")
    if left:
        raise Unavailable(
            f"feature view {view!r}",
            "",
            f"is still being filled ({left} runs to go)",
            "wait with: cellwork feature runs --wait",
        )


def version(state: State, project: str, view: View) -> str:
    """Return a text that changes whenever the open rows of a view do."""
    revision = view_revision(state, project, view.name)
    path = _table(state, project, view.name, revision, sealed=False)
    commit = DeltaTable(path).version() if DeltaTable.is_deltatable(str(path)) else -1
    return f"{revision}.{commit}"


def read(state: State, project: str, view: View, revision: int, *, sealed: bool, batch: str = "") -> pl.DataFrame:
    frames = [scan(state, project, view, revision)]
    if sealed:
        frames.append(scan(state, project, view, revision, sealed=True))
    there = [rows for rows in frames if not any(dtype == pl.Null for dtype in rows.collect_schema().values())]
    if not there:
        return frames[0].collect()
    return pl.concat([(rows.filter(pl.col(BATCH) == batch) if batch else rows).collect() for rows in there])


def scan(state: State, project: str, view: View, revision: int, *, sealed: bool = False) -> pl.LazyFrame:
    """Return the rows of one table, open or sealed, unread; without a table none, with keys of type Null."""
    path = _table(state, project, view.name, revision, sealed=sealed)
    if DeltaTable.is_deltatable(str(path)):
        return pl.scan_delta(DeltaTable(path))  # of the version that there is now
    keys = references.join_keys(definitions(state, project, revision)[0], view)
    times = {EVENT: pl.Datetime("us", "UTC"), CREATED: pl.Datetime("us", "UTC"), BATCH: pl.String()}
    return pl.LazyFrame(schema={**dict.fromkeys(keys, pl.Null()), **schema(view), **times})


def write(state: State, run: feature_queue.Claim, rows: pl.DataFrame, *, sealed: bool) -> None:
    """Make `rows` the rows that the batch of `run` causes, in one commit; what an earlier attempt wrote is replaced."""
    path = _table(state, run.project, run.view, run.revision, sealed=sealed)
    target, own = str(path), f"{BATCH} = '{run.batch}'"
    with writing:
        table = DeltaTable(target) if DeltaTable.is_deltatable(target) else None
        repeated = table is not None and {BATCH: run.batch} in table.partitions()
        if table is not None and repeated and not rows.height:
            table.delete(own)
        elif table is not None and repeated:
            write_deltalake(table, rows.sort(EVENT).to_arrow(), mode="overwrite", predicate=own)
        elif rows.height:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            ordered = rows.sort(EVENT).to_arrow()
            write_deltalake(
                table or target, ordered, mode="append", partition_by=[BATCH], configuration=tables.PROPERTIES
            )


def _table(state: State, project: str, view: str, revision: int, *, sealed: bool) -> Path:
    folder = state.home.sealed(project) / "features" / view if sealed else state.home.feature_table(project, view)
    return folder / f"revision-{int(revision)}"
