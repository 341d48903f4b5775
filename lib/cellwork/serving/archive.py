"""The prediction log's old part: Parquet, a folder a day (UTC, when it was logged), read like the table by whoever reads the log.

    in a segment -> in the table -> in Parquet and the table -> in Parquet
                                 ^ one commit: `archived_parts` names the files, and all up to its greatest seq is theirs

What is archived is always the log's beginning, so a reader splits at one number, the mark: up to it Parquet, above it the table, both
as one transaction saw them. A file that is named is never removed, and replaced only by one with the same predictions, some of them
emptied (`forgetting`). Files are found by `seq`; an id that was
made from a key (`ids.of_key`) stands with its `seq` in `archived_keys`, any other one tells when it was made, and with it its day.

`compaction` alone writes here. The files are whole Parquet with the columns of the table, for other programs too; those of the moment
of a kill, which no table names yet, are removed by the next compaction.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellwork import ids

if TYPE_CHECKING:
    import pyarrow as pa
    from sqlalchemy import Connection

MIGRATION = (
    "CREATE TABLE archived_parts (first_seq BIGINT NOT NULL, last_seq BIGINT NOT NULL, day TEXT NOT NULL, first_at BIGINT NOT NULL, "
    "last_at BIGINT NOT NULL, PRIMARY KEY (first_seq, day))",
    "CREATE INDEX archived_parts_last ON archived_parts (last_seq)",
    "CREATE INDEX archived_parts_from ON archived_parts (first_at)",
    "CREATE INDEX archived_parts_to ON archived_parts (last_at)",
    "CREATE TABLE archived_keys (id TEXT PRIMARY KEY, seq BIGINT NOT NULL, endpoint TEXT NOT NULL, observation TEXT NOT NULL)",
    "CREATE INDEX archived_observations ON archived_keys (endpoint, observation, seq) WHERE observation <> ''",
)
NEAR = timedelta(hours=1) // timedelta(microseconds=1)
"""An id that tells a time so near to when its prediction was logged, in microseconds, needs no entry in `archived_keys`."""
TIMES = ("at", "logged_at")
CHUNK = 500


@dataclass(frozen=True)
class Part:
    """A file: predictions of one day among those from `first` to `last`; several days in one such range are several files."""

    path: Path
    first: int
    last: int


class Archive:
    """Reads what stands under `folder` and is named in the database that a connection is of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mark(self, db: Connection) -> int:
        """Return the greatest archived `seq`; the table may still hold some below it, which count no more."""
        return int(db.exec_driver_sql("SELECT coalesce(max(last_seq), 0) FROM archived_parts").scalar_one())

    def parts(self, db: Connection, where: str = "TRUE", **values: int) -> list[Part]:
        """Return the files in order, those for which `where` holds."""
        from sqlalchemy import text

        found = db.execute(text(f"SELECT * FROM archived_parts WHERE {where} ORDER BY first_seq, day"), values)
        return [Part(path(self.folder, row.day, row.first_seq), row.first_seq, row.last_seq) for row in found]

    def after(
        self, db: Connection, seq: int, limit: int, wanted: Mapping[str, str], columns: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Return up to `limit` rows above `seq`, in order, with the `columns` and of the `wanted` values; those of the table follow them."""
        parts = self.parts(db, "last_seq > :seq", seq=seq)
        return list(itertools.islice(rows(parts, wanted, columns, limit, above=seq), limit))

    def last(
        self, db: Connection, limit: int, wanted: Mapping[str, str], columns: Sequence[str]
    ) -> list[dict[str, Any]]:
        """Return the newest `limit` rows, newest first."""
        return list(itertools.islice(rows(self.parts(db)[::-1], wanted, columns, limit, newest_first=True), limit))

    def find(self, db: Connection, wanted: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the rows of predictions by id, those that are here."""
        from sqlalchemy import bindparam, text

        query = text("SELECT id, seq FROM archived_keys WHERE id IN :ids").bindparams(bindparam("ids", expanding=True))
        seqs: dict[str, int] = {}
        for start in range(0, len(wanted), CHUNK):
            seqs.update((row.id, row.seq) for row in db.execute(query, {"ids": list(wanted[start : start + CHUNK])}))
        times = "SELECT (SELECT min(first_at) FROM archived_parts), (SELECT max(last_at) FROM archived_parts)"
        first, last = db.exec_driver_sql(times).one()
        for name in wanted if first is not None else ():
            time = ids.moment(name) * 1000
            if name not in seqs and first - NEAR <= time <= last + NEAR:
                seqs.update((name, seq) for seq in self._of_time(db, name, time))
        return {row["id"]: row for row in self._at(db, seqs.values())}

    def scored(self, db: Connection, endpoint: str, observations: Sequence[str]) -> list[dict[str, Any]]:
        """Return what batches have scored of at most `CHUNK` observations, each one's newest that is here."""
        from sqlalchemy import bindparam, text

        query = text(
            "SELECT max(seq) FROM archived_keys WHERE endpoint = :endpoint AND observation IN :wanted AND observation <> '' GROUP BY observation"
        ).bindparams(bindparam("wanted", expanding=True))
        seqs = db.execute(query, {"endpoint": endpoint, "wanted": list(observations)}).scalars()
        return self._at(db, list(seqs))

    def seen(
        self, db: Connection, deployment: str, route: str, since: int, most: int
    ) -> tuple[int, int, list[tuple[Any, ...]]]:
        """Return of what was logged at or after `since` (microseconds): how many a deployment answered by `route`, how many others
        in its place, and of the newest `most` of its answers latency, score, unit, entities and id, newest first.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        parts = [part.path for part in self.parts(db, "last_at >= :since", since=since)]
        if not parts:
            return 0, 0, []
        lately = pc.field("logged_at") >= pa.scalar(since, pa.timestamp("us", "UTC"))
        own = [lately, pc.field("deployment") == deployment, pc.field("route") == route]
        answered = _read(parts, own, ("seq",)).column("seq").sort("descending")
        failed = _read(parts, [lately, pc.field("tried") == deployment], ("seq",)).num_rows
        if not len(answered) or most <= 0:
            return len(answered), failed, []
        of_newest = [*own, pc.field("seq") >= answered[min(most, len(answered)) - 1]]
        looked = ("seq", "latency_us", "score", "unit", "entities", "id")
        rows = _read(parts, of_newest, looked).sort_by([("seq", "descending")]).drop_columns(["seq"])
        return len(answered), failed, list(zip(*(column.to_pylist() for column in rows.columns), strict=True))

    def _at(self, db: Connection, seqs: Iterable[int]) -> list[dict[str, Any]]:
        import pyarrow.compute as pc

        left, found = set(seqs), list[dict[str, Any]]()
        while left:
            one = min(left)
            parts = self.parts(db, "first_seq <= :seq AND last_seq >= :seq", seq=one)
            if not parts:  # its entry was made, and the compaction ended then: it is in the table
                left.discard(one)
                continue
            here = {seq for seq in left if seq <= parts[0].last}
            seq = pc.field("seq")
            held = [
                seq >= min(here),
                seq <= max(here),
                seq.isin(sorted(here)),
            ]  # row groups are passed over by the bounds
            found += _dicts(_read([part.path for part in parts], held))
            left -= here
        return found

    def _of_time(self, db: Connection, name: str, time: int) -> list[int]:
        """Return the `seq` of the prediction `name`, which was logged about `time`, if it is here."""
        import pyarrow as pa
        import pyarrow.compute as pc

        from_, to = (pa.scalar(time + add, pa.timestamp("us", "UTC")) for add in (-NEAR, NEAR))
        held = [pc.field("logged_at") >= from_, pc.field("logged_at") <= to, pc.field("id") == name]
        parts = self.parts(db, "first_at <= :latest AND last_at >= :earliest", latest=time + NEAR, earliest=time - NEAR)
        return [seq for part in parts for seq in _read([part.path], held, ("seq",)).column("seq").to_pylist()]


def path(folder: Path, day: str, first: int) -> Path:
    return folder / f"day={day}" / f"{first:015}.parquet"


def erased_by(file: Path, erasure: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return `columns` of the rows of a file that an erasure has emptied."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if "erased" not in pq.read_schema(file).names:
        return []
    return _dicts(_read([file], [pc.field("erased") == erasure], columns))


def rows(
    parts: Sequence[Part], wanted: Mapping[str, str], columns: Sequence[str], limit: int, *, above: int = 0, newest_first: bool = False
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Yield rows with a greater `seq` than `above` and the `wanted` values, in order, or newest first of `parts` in that order; the
    first `limit` of them are complete.
    """
    for _, days in itertools.groupby(parts, key=lambda part: part.first):
        files = [
            itertools.chain.from_iterable(
                _dicts(table)[:: -1 if newest_first else 1]
                for table in _groups(part.path, wanted, columns, limit, above, newest_first)
            )
            for part in days
        ]
        yield from heapq.merge(*files, key=lambda row: row["seq"], reverse=newest_first)


def _groups(
    file: Path, wanted: Mapping[str, str], columns: Sequence[str], limit: int, above: int, newest_first: bool
) -> Iterator[pa.Table]:
    """Yield of each row group of a file the first `limit` rows that are asked for, or the last; one that can't have any is not read."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        places = {name: parquet.schema_arrow.get_field_index(name) for name in ("seq", *wanted)}
        groups = range(parquet.num_row_groups)
        for group in reversed(groups) if newest_first else groups:
            about = {name: parquet.metadata.row_group(group).column(place).statistics for name, place in places.items()}
            if about["seq"].max <= above or any(not about[k].min <= v <= about[k].max for k, v in wanted.items()):
                continue
            table = parquet.read_row_group(group, columns=[*dict.fromkeys(("seq", *columns, *wanted))])
            for held in (pc.field("seq") > above, *(pc.field(name) == value for name, value in wanted.items())):
                table = table.filter(held)
            yield table.slice(max(0, table.num_rows - limit)) if newest_first else table.slice(0, limit)


def _read(paths: Sequence[Path], held: Sequence[Any], columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of some files for which all conditions hold."""
    import functools
    import operator

    import pyarrow as pa
    import pyarrow.parquet as pq

    condition = functools.reduce(operator.and_, held)
    names = list(columns) if columns else None
    tables = [pq.read_table(each, filters=condition, columns=names, partitioning=None) for each in paths]
    return pa.concat_tables(tables, promote_options="default")  # older files lack newer columns


def _dicts(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows as the database gives them: times in microseconds."""
    import pyarrow as pa

    for name in TIMES:
        if name in table.column_names:
            place = table.column_names.index(name)
            table = table.set_column(place, name, table.column(name).cast(pa.int64()))
    return list(table.to_pylist())
