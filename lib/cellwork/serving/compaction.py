"""Moves the old part of the prediction log from its table into Parquet; see `archive` for how it is read.

The order, for at most `MOST_ROWS` predictions from the log's beginning that were logged before a day:

1. files that no table names are removed: those of a compaction that was killed;
2. the rows are written in order of `seq` into one hidden file a day, and those whose id tells no time go into `archived_keys`;
3. each file is synced, renamed, and its folder synced: from here on it survives a power loss;
4. one commit names the files in `archived_parts`: from here on they are the log, and what the table holds up to there counts no more;
5. the table's rows are deleted, a few at a time, so that nobody who writes predictions waits long.

Killed before 4, the table is the log and the files are nothing; killed after it, the deleting goes on next time. An entry of `archived_keys`
that came too early is harmless, for a reader asks the table first. A full disk ends it at 2 or 3. One process compacts at a time, by a lock.
What was logged before the day must be complete: whoever calls this leaves an hour for a request that was under way at midnight.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellwork import clock, files, ids
from cellwork.serving import archive
from cellwork.serving.archive import Archive
from cellwork.serving.log import COLUMNS

if TYPE_CHECKING:
    import pyarrow as pa
    from sqlalchemy import Connection, Engine

MOST_ROWS = 250_000
"""Predictions of one commit, and so of one file at most."""
GROUP_ROWS = 2000
"""Of one Parquet row group, which is what a reader reads at once."""
DELETED_ROWS = 500
"""Rows of one transaction on the table: others wait to write meanwhile."""
UNDER_WAY = timedelta(hours=1)
WHOLE = frozenset({"revision", "version", "latency_us"})


def before(now: datetime, days: int) -> datetime:
    """Return until when the log may be compacted if today and the `days` before it are to stay in the table."""
    return (now - UNDER_WAY).astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days)


def is_due(engine: Engine, until: datetime) -> bool:
    """Say whether `compact` would do something."""
    with engine.connect() as db:
        mark = Archive(Path()).mark(db)
        oldest = db.exec_driver_sql("SELECT seq FROM predictions ORDER BY seq LIMIT 1").scalar()
        if oldest is not None and oldest <= mark:
            return True
        first = db.exec_driver_sql(
            f"SELECT logged_at FROM predictions WHERE seq > {mark} ORDER BY seq LIMIT 1"
        ).scalar()
    return first is not None and int(first) < clock.micros(until)


def compact(engine: Engine, folder: Path, until: datetime, *, most: int = MOST_ROWS) -> int:
    """Bring the log's beginning, as far as it was logged before `until`, into Parquet under `folder`; return how many rows.

    Raises
    ------
    Conflict
        Another process is at it.
    Unavailable
        The disk is full; nothing was lost.
    """
    total = 0
    with files.locked(lock(folder), "compaction of the prediction log"), files.room(folder):
        sweep(engine, folder)
        clear(engine)
        while count := _archive(engine, folder, clock.micros(until), most):
            total += count
            clear(engine)
    return total


def lock(folder: Path) -> Path:
    """Return the lock of whoever changes files under `folder`, or removes rows for them."""
    return folder / ".lock"


def sweep(engine: Engine, folder: Path) -> None:
    """Remove the files that no table names."""
    with engine.connect() as db:
        named = {part.path for part in Archive(folder).parts(db)}
    for file in folder.glob("day=*/*"):
        if file not in named:
            file.unlink()


def _archive(engine: Engine, folder: Path, until: int, most: int) -> int:
    """Archive rows from the log's beginning, up to the first that was logged at `until` or later; return how many."""
    with engine.connect() as db:
        mark = Archive(folder).mark(db)
    days: dict[str, _Day] = {}
    last, count = mark, 0
    while count < most and (rows := _next(engine, last, until, min(GROUP_ROWS, most - count))):
        for day, those in _by_day(rows).items():
            if day not in days:
                days[day] = _Day(archive.path(folder, day, mark + 1))
            days[day].write(those)
        _keep_keys(engine, rows)
        last, count = rows[-1]["seq"], count + len(rows)
    for file in days.values():
        file.finish()
    if count:
        with engine.begin() as db:
            for day, file in days.items():
                _name(db, mark + 1, last, day, file)
    return count


def _next(engine: Engine, after: int, until: int, most: int) -> list[dict[str, Any]]:
    from sqlalchemy import text

    query = text(f"SELECT seq, {', '.join(COLUMNS)} FROM predictions WHERE seq > :after ORDER BY seq LIMIT :most")
    with engine.connect() as db:
        rows = [dict(row) for row in db.execute(query, {"after": after, "most": most}).mappings()]
    rows = [row | {"score": None} if row["erased"] else row for row in rows]
    young = next((place for place, row in enumerate(rows) if row["logged_at"] >= until), len(rows))
    return rows[:young]


def _by_day(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        day = datetime.fromtimestamp(row["logged_at"] // 1_000_000, UTC)
        found.setdefault(f"{day:%Y-%m-%d}", []).append(row)
    return found


def _keep_keys(engine: Engine, rows: Sequence[dict[str, Any]]) -> None:
    """Note where ids are that tell no time, and which observations batches have scored."""
    from sqlalchemy import text

    entries = [
        {"id": row["id"], "seq": row["seq"], "endpoint": row["endpoint"], "observation": row["observation"] if row["batch_run"] else ""}
        for row in rows
        if row["batch_run"] or abs(ids.moment(row["id"]) * 1000 - row["logged_at"]) > archive.NEAR
    ]  # fmt: skip
    insert = text("INSERT INTO archived_keys VALUES (:id, :seq, :endpoint, :observation) ON CONFLICT DO NOTHING")
    for start in range(0, len(entries), DELETED_ROWS):
        with engine.begin() as db:
            db.execute(insert, entries[start : start + DELETED_ROWS])


def _name(db: Connection, first: int, last: int, day: str, file: _Day) -> None:
    from sqlalchemy import text

    values = {"first": first, "last": last, "day": day, "first_at": file.first_at, "last_at": file.last_at}
    db.execute(text("INSERT INTO archived_parts VALUES (:first, :last, :day, :first_at, :last_at)"), values)


def clear(engine: Engine) -> None:
    """Delete from the table what is archived."""
    while True:
        began = time.monotonic()
        with engine.begin() as db:
            mark = Archive(Path()).mark(db)
            chosen = f"SELECT seq FROM predictions WHERE seq <= {mark} ORDER BY seq LIMIT {DELETED_ROWS}"
            if not db.exec_driver_sql(f"DELETE FROM predictions WHERE seq IN ({chosen})").rowcount:
                return
        time.sleep(time.monotonic() - began)  # the others' turn: SQLite's lock knows no queue


class _Day:
    """A file that comes into being, hidden until it is whole and durable."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self.path, self.hidden = path, hidden(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.first_at = self.last_at = 0
        self._writer = pq.ParquetWriter(self.hidden, schema(), compression="zstd")

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        import pyarrow as pa

        times = [row["logged_at"] for row in rows]
        self.first_at, self.last_at = min(times + [self.first_at] * bool(self.first_at)), max([*times, self.last_at])
        self._writer.write_table(pa.Table.from_pylist(list(rows), schema()))

    def finish(self) -> None:
        self._writer.close()
        put(self.hidden, self.path)


def hidden(path: Path) -> Path:
    """Return where a file comes into being; one that is left there is nobody's, and the next compaction removes it."""
    return path.with_name(f".{path.name}.new")


def put(made: Path, path: Path) -> None:
    """Let a whole file take its place, so that it survives a power loss."""
    files.sync(made)
    made.chmod(0o600)
    made.replace(path)
    for folder in (path.parent, path.parent.parent):
        files.sync(folder)


def schema() -> pa.Schema:
    import pyarrow as pa

    kinds = {"seq": pa.int64(), "score": pa.float64(), **dict.fromkeys(WHOLE, pa.int64())}
    kinds |= dict.fromkeys(archive.TIMES, pa.timestamp("us", "UTC"))
    return pa.schema([(name, kinds.get(name, pa.string())) for name in ("seq", *COLUMNS)])
