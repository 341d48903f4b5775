"""Empties what the prediction log holds of an erased subject, wherever it stands: segments, table, Parquet, keys.

Who is meant: a prediction of the project whose entity, or feature by its own name or behind ``view__``, is one of `names` and has the
subject's value (compared as text: 17, "17" and 17.0 are one); whose unit is that value; or whose observation is listed as the subject's.

    logged -> emptied: entities, features, times and batches behind them, defaults, score, reason, observation, unit and the caller's
    own request id are gone; id, times, endpoint, version, route, latency, caller and batch run stay, and `erased` names the erasure

Emptied and not removed: counts by version and hour stay true, `why` says "erased" where it would have said "not in the log", and a repeated
key is told so instead of bringing the row back. An id made from a key stays; whoever has the key can tell that it was asked.

Order of writes, all of it under the lock of `compaction`, so that no row moves from table to Parquet meanwhile:

1. files that no table names and rows that count no more, of compactions that were killed, go;
2. segments are taken over, then rows of the table are emptied with their `archived_keys`, some hundred a transaction;
3. of each Parquet file that holds the subject: first its `archived_keys`, then the file, written beside its place, synced and renamed;
4. segments and what the table got meanwhile once more (a request under way when this began may be logged behind it: it is a new one);
5. the database is made anew (VACUUM) and its write-ahead log emptied: pages hold no old copies, and all of the above is durable;
6. of segments that are still written to, what was taken over is overwritten with zeros.

Killed anywhere, others' rows are whole, since each write is one transaction or one rename; the same call again does what is missing, and
tells the sum of all attempts, because rows say by which erasure they were emptied. Overwriting comes behind 5, for a power loss before it
could take back how far a segment was read.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cellwork import clock, files
from cellwork.errors import Conflict, Unavailable
from cellwork.serving import archive, compaction, segments
from cellwork.serving.choose import text
from cellwork.serving.log import PredictionLog
from cellwork.wire.endpoints import Emptied, Forget, Forgotten

if TYPE_CHECKING:
    import pyarrow as pa
    from sqlalchemy import Connection, Engine

    from cellwork.serving.archive import Archive, Part

EMPTY: dict[str, Any] = {
    "entities": "{}", "features": "{}", "feature_events": "{}", "feature_batches": "{}", "defaults": "[]", "score": 0.0, "reason": "",
    "observation": "", "request_id": "", "unit": "",
}  # fmt: skip
"""What stands in an emptied row; in Parquet its score is null."""
LOOKED_AT = ("seq", "endpoint", "entities", "features", "unit", "observation")
LEFT = ("id", "endpoint", "name", "version", "at", "route")
CHUNK = 500
"""Rows of one transaction: others wait to write meanwhile."""
PATIENCE_SECONDS = 300.0
"""How long a compaction, or a reader who keeps the write-ahead log, is waited for."""
LOOK_SECONDS = 0.2
POSTGRESQL_LEFT = (
    "PostgreSQL's write-ahead log, replicas and base backups keep old pages until they are recycled by their own rules"
)


class Subject:
    """Whom a wish means, among the predictions of a project."""

    def __init__(self, project: str, wish: Forget) -> None:
        self.of, self.value, self.names = f"{project}/", wish.value, frozenset(wish.names)
        self.observations = {endpoint: frozenset(names) for endpoint, names in wish.observations.items()}
        self.needle = msgspec.json.encode(wish.value).decode()[1:-1]
        """How the value stands in JSON, be it a text or a number."""

    def is_in(self, entities: dict[str, Any], features: dict[str, Any], unit: str) -> bool:
        """Say whether entities, features or unit of a request name the subject."""
        if unit == self.value or any(text(entities.get(name)) == self.value for name in self.names & entities.keys()):
            return True
        named = (name for name in features if name in self.names or name.partition("__")[2] in self.names)
        return any(text(features[name]) == self.value for name in named)

    def is_meant(self, row: dict[str, Any]) -> bool:
        """Say so of a row that has the columns `LOOKED_AT`."""
        if row["observation"] in self.observations.get(row["endpoint"], ()):
            return True
        entities, features = (msgspec.json.decode(row[name]) for name in ("entities", "features"))
        return self.is_in(entities, features, row["unit"])


def forget(log: PredictionLog, project: str, wish: Forget) -> Forgotten:
    """Empty what `log` holds of a subject of `project`; may be repeated. See the module's rules.

    Raises
    ------
    Unavailable
        The log is busy for very long, or the disk is full; asked again it goes on.
    """
    subject, engine = Subject(project, wish), log.engine
    with _alone(log.archive):
        log.take_over()
        last = _empty_table(engine, subject, wish.erasure, 0)
        if log.archive:
            for part in _parts(engine, log.archive):
                _empty_file(engine, part, subject, wish.erasure)
        log.take_over()
        _empty_table(engine, subject, wish.erasure, last)
        taken = _taken_over(engine, log.folder)
        left = renew(engine)
        for path, position in taken:
            segments.blank(path, position)
        return _found(log, wish.erasure, left)


@contextlib.contextmanager
def _alone(there: Archive | None) -> Iterator[None]:
    """Hold the lock of the compaction, with nothing left of one that was killed."""
    with contextlib.ExitStack() as held:
        end = time.monotonic() + PATIENCE_SECONDS
        while there:
            try:
                held.enter_context(files.locked(compaction.lock(there.folder), "an erasure"))
                held.enter_context(files.room(there.folder))
                break
            except Conflict as error:
                if time.monotonic() > end:
                    raise Unavailable("prediction log", there.folder, str(error), "it is tried again") from None
                time.sleep(LOOK_SECONDS)
        yield


def _parts(engine: Engine, there: Archive) -> list[Part]:
    compaction.sweep(engine, there.folder)
    compaction.clear(engine)
    with engine.connect() as db:
        return there.parts(db)


# The table


def _empty_table(engine: Engine, subject: Subject, erasure: str, above: int) -> int:
    """Empty rows with a greater `seq` than `above`; return the greatest there is."""
    with engine.connect() as db:
        last = int(db.exec_driver_sql("SELECT coalesce(max(seq), 0) FROM predictions").scalar_one())
        meant = sorted({*_named(db, subject, above), *_observed(db, subject, above)})
    for start in range(0, len(meant), CHUNK):
        chunk = meant[start : start + CHUNK]
        with engine.begin() as db:
            changes = ", ".join(f"{name} = :{name}" for name in EMPTY)
            where = f"WHERE seq IN ({', '.join(map(str, chunk))})"
            _execute(db, f"UPDATE predictions SET {changes}, erased = :erasure {where}", **EMPTY, erasure=erasure)
            _execute(db, f"UPDATE archived_keys SET observation = '' {where}")
    return last


def _named(db: Connection, subject: Subject, above: int) -> Iterator[int]:
    query = (
        f"SELECT {', '.join(LOOKED_AT)} FROM predictions WHERE seq > :above AND erased = '' AND endpoint LIKE :of ESCAPE '!' "
        "AND (entities LIKE :needle ESCAPE '!' OR features LIKE :needle ESCAPE '!' OR unit = :value)"
    )
    values = {"of": f"{like(subject.of)}%", "needle": f"%{like(subject.needle)}%", "value": subject.value}
    for row in _execute(db, query, above=above, **values).mappings():
        if subject.is_meant(dict(row)):
            yield row["seq"]


def _observed(db: Connection, subject: Subject, above: int) -> Iterator[int]:
    from sqlalchemy import bindparam
    from sqlalchemy import text as sql

    query = sql(
        "SELECT seq FROM predictions WHERE endpoint = :endpoint AND observation IN :wanted AND observation <> '' AND seq > :above"
    ).bindparams(bindparam("wanted", expanding=True))
    for endpoint, observations in subject.observations.items():
        names = sorted(observations) if endpoint.startswith(subject.of) else []
        for start in range(0, len(names), CHUNK):
            wanted = {"endpoint": endpoint, "wanted": names[start : start + CHUNK], "above": above}
            yield from db.execute(query, wanted).scalars()


def like(words: str) -> str:
    """Return `words` as a pattern of LIKE that means nothing else."""
    return words.replace("!", "!!").replace("%", "!%").replace("_", "!_")


def _execute(db: Connection, query: str, **values: Any) -> Any:
    from sqlalchemy import text as sql

    return db.execute(sql(query), values)


# Parquet


def _empty_file(engine: Engine, part: Part, subject: Subject, erasure: str) -> None:
    """Empty the subject's rows of a file; one without any is not written."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(part.path) as file:
        groups = range(file.num_row_groups)
        meant = {seq for group in groups for seq in _meant(file.read_row_group(group, list(LOOKED_AT)), subject)}
        if not meant:
            return
        _empty_keys(engine, meant)
        hidden = compaction.hidden(part.path)
        with contextlib.closing(pq.ParquetWriter(hidden, _with_erased(file.schema_arrow), compression="zstd")) as made:
            for group in groups:
                made.write_table(_emptied(file.read_row_group(group), meant, erasure))
    compaction.put(hidden, part.path)


def _meant(table: pa.Table, subject: Subject) -> Iterator[int]:
    """Yield `seq` of the rows that are meant; most are ruled out without being decoded."""
    import functools
    import operator

    import pyarrow as pa
    import pyarrow.compute as pc

    observed = pa.array({name for names in subject.observations.values() for name in names}, pa.string())
    may_be = functools.reduce(
        operator.or_,
        [
            *(pc.match_substring(pc.field(name), subject.needle) for name in ("entities", "features")),
            pc.field("unit") == subject.value, pc.field("observation").isin(observed),
        ],
    )  # fmt: skip
    for row in table.filter(pc.starts_with(pc.field("endpoint"), subject.of) & may_be).to_pylist():
        if subject.is_meant(row):
            yield row["seq"]


def _empty_keys(engine: Engine, seqs: Iterable[int]) -> None:
    chosen = sorted(seqs)
    for start in range(0, len(chosen), CHUNK):
        with engine.begin() as db:
            where = ", ".join(map(str, chosen[start : start + CHUNK]))
            _execute(db, f"UPDATE archived_keys SET observation = '' WHERE seq IN ({where})")


def _with_erased(schema: pa.Schema) -> pa.Schema:
    import pyarrow as pa

    return schema if "erased" in schema.names else schema.append(pa.field("erased", pa.string()))


def _emptied(table: pa.Table, seqs: set[int], erasure: str) -> pa.Table:
    """Return the table with the rows `seqs` emptied; the others as they are."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if "erased" not in table.column_names:
        table = table.append_column("erased", pa.repeat("", table.num_rows))
    own = pc.is_in(table.column("seq"), pa.array(sorted(seqs), pa.int64()))
    for name, value in {**EMPTY, "score": None, "erased": erasure}.items():
        place, column = table.column_names.index(name), table.column(name)
        table = table.set_column(place, name, pc.if_else(own, pa.scalar(value, column.type), column))
    return table


# What is left on the disk


def renew(engine: Engine) -> list[str]:
    """Let the database's files hold nothing but what is in its tables; return what could not be reached.

    Who writes to the table waits meanwhile, some ten seconds a gigabyte; readers do not, nor does the quick lane, which writes segments.

    Raises
    ------
    Unavailable
        Somebody reads, or writes, for very long; or the disk has no room for a second copy.
    """
    import sqlite3

    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as db:
            db.exec_driver_sql("VACUUM FULL")
        return [POSTGRESQL_LEFT]
    try:
        with contextlib.closing(engine.raw_connection()) as db:
            cursor = db.cursor()
            cursor.execute("VACUUM")
            end = time.monotonic() + PATIENCE_SECONDS
            while cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if time.monotonic() > end:
                    raise Unavailable("prediction log", "", "is read all the time", "it is tried again")
                time.sleep(LOOK_SECONDS)
    except sqlite3.OperationalError as error:
        raise Unavailable("prediction log", "", f"can't be made anew ({error})", "it is tried again") from None
    return []


def _taken_over(engine: Engine, folder: Path | None) -> list[tuple[Path, int]]:
    """Return the segments that are there, each with how far the table has taken it over."""
    if folder is None:
        return []
    with engine.connect() as db:
        position = {row.name: int(row.position) for row in db.exec_driver_sql("SELECT name, position FROM segments")}
    return [(path, position.get(path.stem, 0)) for path in segments.listing(folder)]


# What was found


def _found(log: PredictionLog, erasure: str, left: Sequence[str]) -> Forgotten:
    with log.engine.connect() as db:
        query = f"SELECT {', '.join(LEFT)} FROM predictions WHERE erased = :erasure ORDER BY seq"
        young = [dict(row) for row in _execute(db, query, erasure=erasure).mappings()]
        parts = log.archive.parts(db) if log.archive else []
    in_files = [rows for part in parts if (rows := archive.erased_by(part.path, erasure, LEFT))]
    old = [row for rows in in_files for row in rows]
    found = [_told(row) for row in (*old, *young)]
    return Forgotten(predictions=found, archived=len(old), files=len(in_files), left=list(left))


def _told(row: dict[str, Any]) -> Emptied:
    return Emptied(id=row["id"], endpoint=row["endpoint"], model=row["name"], version=row["version"], at=clock.moment(row["at"]), route=row["route"])  # fmt: skip
