"""Predictions beside what came of them: a DuckDB file with three append-only tables, of which the third is the join of the others.

    predictions   what the log says of each (no features), in the order of the log
    outcomes      every outcome that said something new, in order of arrival; nothing is ever changed but who is meant by an id
    joined        a row for each prediction whose outcome is known: the outcome with the newest arrival

Both sides meet by `key`, a hash of endpoint and observation, or of project and prediction id where there is no observation. Whatever
arrives, on either side, is joined in the transaction that keeps it, by one pass over the keys of the other side; so ten million
rows a side are joined in seconds, and any order of arrivals ends in the same join.

The cursor of the mirrored log moves in the transaction of its page. What is to be told of a delivery (events, audit) belongs to
another database: it is kept here as `deliveries` in the transaction of its rows, and removed once it was told.
One process opens the file; writers take turns, readers see one moment.

What belongs to an erased prediction is taken out by `forget`: its mirrored row stays without observation, score and key, so that nothing is
ever joined to it, as do those that come from the log already emptied; outcomes that only such predictions have are removed. DuckDB leaves
old blocks in its file: so all that is left is copied into a new file beside it, which takes its place when nobody reads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from cellwork.errors import Unavailable
from cellwork_hub.platform import outcome_erasure

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

READERS_SECONDS = 120.0
"""How long a new file waits for those who read the old one."""
MEMORY = "1GB"
"""What one join may take before it goes on in files beside the database."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS predictions (key UHUGEINT, endpoint VARCHAR, observation VARCHAR, id VARCHAR, model VARCHAR,
    version INTEGER, ts BIGINT, seq BIGINT, score DOUBLE, counts BOOLEAN);
CREATE TABLE IF NOT EXISTS outcomes (seq BIGINT, key UHUGEINT, project VARCHAR, endpoint VARCHAR, observation VARCHAR,
    prediction VARCHAR, value DOUBLE, observed_at BIGINT, arrived_at BIGINT, source VARCHAR);
CREATE TABLE IF NOT EXISTS joined (key UHUGEINT, seq BIGINT, endpoint VARCHAR, model VARCHAR, version INTEGER, ts BIGINT,
    score DOUBLE, counts BOOLEAN, outcome DOUBLE, arrived_at BIGINT);
CREATE TABLE IF NOT EXISTS cursors (log VARCHAR PRIMARY KEY, seq BIGINT);
CREATE TABLE IF NOT EXISTS deliveries (id BIGINT, project VARCHAR, principal VARCHAR, request VARCHAR, subject VARCHAR,
    taken BIGINT, matched BIGINT, repeated BIGINT);
"""
KEY = (
    "CAST(CASE WHEN observation <> '' THEN md5_number(endpoint || '#' || observation) "
    "ELSE md5_number(project || '!' || {id}) END AS UHUGEINT)"
)
NEWEST = "QUALIFY row_number() OVER (PARTITION BY key ORDER BY arrived_at DESC, seq DESC) = 1"
JOINED = "key, seq, endpoint, model, version, ts, score, counts"
WITHOUT_MODEL = (
    "SELECT 1 FROM duckdb_tables() t WHERE table_name = 'predictions' AND NOT internal AND database_name = current_database() "
    "AND NOT EXISTS (FROM duckdb_columns() c WHERE c.table_oid = t.table_oid AND column_name = 'model')"
)
"""Whether the file is of the time when predictions were told apart by their version's number alone."""


@dataclass(frozen=True)
class Delivery:
    """What has to be told of one delivery of outcomes; with `repeated` all of its rows."""

    id: int
    project: str
    principal: str
    request: str
    subject: str
    taken: int
    matched: int
    repeated: int


class OutcomeStore:
    """The file at `path`; it is made when it is not there."""

    def __init__(self, path: Path) -> None:
        self.path, self.revision = path, 0
        """The revision grows with every change; what was computed under the same one still holds."""
        self._writing, self._gate, self._readers = threading.Lock(), threading.Condition(), 0
        self._database = self._opened()

    def _opened(self) -> DuckDBPyConnection:
        import duckdb

        config: dict[str, Any] = {
            "memory_limit": MEMORY,
            "temp_directory": f"{self.path}.tmp",
            "checkpoint_threshold": "256MB",
        }
        database = duckdb.connect(str(self.path), config=config)
        database.begin()
        if database.execute(WITHOUT_MODEL).fetchone():  # the log is read again, and meets the outcomes, which stay
            database.execute("DROP TABLE predictions; DROP TABLE joined; DROP TABLE cursors")
        database.execute(SCHEMA)
        database.commit()
        return database

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def reading(self) -> Iterator[DuckDBPyConnection]:
        """Yield a connection of one's own that sees one moment."""
        with self._gate:
            self._readers += 1
        try:
            with self._database.cursor() as db:
                db.begin()
                yield db
        finally:
            with self._gate:
                self._readers -= 1
                self._gate.notify_all()

    @contextmanager
    def _change(self) -> Iterator[DuckDBPyConnection]:
        """Yield a connection for one transaction; its temporary tables end with it."""
        with self._writing, self._database.cursor() as db:
            db.begin()
            try:
                yield db
            except BaseException:
                db.rollback()
                raise
            db.commit()
            self.revision += 1

    def cursor(self, log: str) -> int:
        with self.reading() as db:
            return _number(db, "SELECT max(seq) FROM cursors WHERE log = ?", [log])

    def keep(self, page: pl.DataFrame, log: str, cursor: int) -> None:
        """Append a page of the log, join what had arrived for it, move the cursor.

        Parameters
        ----------
        page : columns ``project``, ``endpoint``, ``observation``, ``id``, ``model``, ``version``, ``ts``, ``seq``, ``score``
            In the order of the log; the first prediction of an observation by a model's version is the one that counts.
        """
        with self._change() as db:
            if page.height:
                _append(db, page)
            db.execute(
                "INSERT INTO cursors VALUES (?, ?) ON CONFLICT (log) DO UPDATE SET seq = excluded.seq", [log, cursor]
            )

    def take(self, sent: pl.DataFrame, principal: str, request: str) -> Delivery:
        """Append what is new in `sent`, join it, and note what has to be told of it.

        Parameters
        ----------
        sent : columns ``n``, ``project``, ``endpoint``, ``observation``, ``prediction``, ``value``, ``observed_at``,
            ``arrived_at``, ``dated``, ``source``; one project, at least one row, `n` counts them from 0
        """
        with self._change() as db:
            _incoming(db, sent)
            doubled = _mark_repeated(db)
            some = "WHERE n NOT IN (SELECT n FROM repeated)" if _number(db, "SELECT count(*) FROM repeated") else ""
            db.execute(f"CREATE TEMP {'TABLE' if some else 'VIEW'} fresh AS SELECT * FROM incoming {some}")
            taken = _number(db, "SELECT count(*) FROM fresh")
            matched = _join_fresh(db, doubled) if taken else 0
            subjects = db.execute("SELECT DISTINCT endpoint FROM fresh ORDER BY endpoint").fetchall()
            number = _number(db, "SELECT max(id) FROM deliveries") + 1
            delivery = Delivery(
                number, sent["project"][0], principal, request, " ".join(row[0] for row in subjects),
                taken, matched, sent.height - taken,
            )  # fmt: skip
            if taken:
                db.execute("INSERT INTO deliveries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", list(vars(delivery).values()))
        return delivery

    def forget(self, project: str, gone: Sequence[str], observations: Mapping[str, Sequence[str]]) -> int:
        """Take out what belongs to emptied predictions, or to observations of the subject; return how many outcomes were removed.

        Parameters
        ----------
        gone : ids of the predictions.
        observations : endpoint -> observations that are the subject's, predicted or not.
        """
        own = [(endpoint, name) for endpoint, names in observations.items() for name in names]
        with self._change() as db:
            db.register("gone_rows", pl.DataFrame({"id": list(gone)}, schema={"id": pl.String}).to_arrow())
            schema = {"endpoint": pl.String, "observation": pl.String}
            db.register("own_rows", pl.DataFrame(own, schema=schema, orient="row").to_arrow())
            count = outcome_erasure.empty(db, project, KEY.format(id="''"))
        self._renew()
        return count

    def _renew(self) -> None:
        """Put a copy of what is in the tables in the place of the file; readers and writers wait."""
        beside = self.path.with_name(f".{self.path.name}.new")
        with self._writing, self._gate:
            for old in (beside, beside.with_name(f"{beside.name}.wal")):  # of one that was killed
                old.unlink(missing_ok=True)
            if not self._gate.wait_for(lambda: not self._readers, READERS_SECONDS):
                raise Unavailable("outcomes", self.path, "are read all the time", "it is tried again")
            name = self._database.execute("SELECT current_database()").fetchall()[0][0]
            self._database.execute(f"ATTACH '{outcome_erasure.quoted(beside)}' AS beside")
            try:
                self._database.execute(f'COPY FROM DATABASE "{name}" TO beside')
            finally:
                self._database.execute("DETACH beside")
            self._database.execute("CHECKPOINT")
            self._database.close()
            try:
                beside.chmod(self.path.stat().st_mode & 0o777)
                outcome_erasure.replace(beside, self.path)
            finally:
                self._database = self._opened()

    def untold(self) -> list[Delivery]:
        with self.reading() as db:
            return [Delivery(*row) for row in db.execute("SELECT * FROM deliveries ORDER BY id").fetchall()]

    def told(self, delivery: Delivery) -> None:
        with self._writing, self._database.cursor() as db:
            db.execute("DELETE FROM deliveries WHERE id = ?", [delivery.id])

    def rows(self, query: str, *parameters: Any) -> pl.DataFrame:
        """Return the rows of a SELECT."""
        with self.reading() as db:
            return _frame(db.sql(query, params=list(parameters)))


def _frame(found: DuckDBPyRelation) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(found.to_arrow_table()))


def _number(db: DuckDBPyConnection, query: str, parameters: list[Any] | None = None) -> int:
    row = db.execute(query, parameters or []).fetchone()
    return int(row[0] or 0) if row else 0


def _append(db: DuckDBPyConnection, page: pl.DataFrame) -> None:
    db.register("page_rows", page.to_arrow())
    db.execute(
        f"CREATE TEMP TABLE page AS SELECT *, CASE WHEN score IS NOT NULL THEN {KEY.format(id='id')} END AS key FROM page_rows"
    )
    moved = _name_those_sent_by_id(db)
    db.execute(
        "CREATE TEMP TABLE earlier AS SELECT DISTINCT key, model, version FROM predictions WHERE key IN (SELECT key FROM page)"
    )
    first = "row_number() OVER (PARTITION BY key, model, version ORDER BY seq) = 1"
    db.execute(
        "CREATE TEMP TABLE counted AS SELECT key, endpoint, observation, id, model, version, ts, seq, score, "
        f"observation = '' OR ({first} AND (key, model, version) NOT IN (SELECT (key, model, version) FROM earlier)) AS counts FROM page"
    )
    db.execute("INSERT INTO predictions SELECT * FROM counted")
    arrived = f"SELECT key, value, arrived_at FROM outcomes WHERE key IN (SELECT key FROM counted) {NEWEST}"
    names = ", ".join(f"counted.{name.strip()}" for name in JOINED.split(","))
    db.execute(f"INSERT INTO joined SELECT {names}, o.value, o.arrived_at FROM counted JOIN ({arrived}) o USING (key)")
    if moved:
        _join_again(db)


def _name_those_sent_by_id(db: DuckDBPyConnection) -> bool:
    """Give outcomes that were sent by the id of a prediction of this page its observation; whether there were any, kept as `moved`."""
    waiting = "SELECT seq FROM outcomes o WHERE o.endpoint = '' AND o.prediction IN (SELECT id FROM page WHERE project = o.project)"
    if not _number(db, f"SELECT count(*) FROM ({waiting})"):
        return False
    db.execute(
        "CREATE TEMP TABLE moved AS SELECT o.seq, any_value(p.key) AS key, any_value(p.endpoint) AS endpoint, any_value(p.observation) AS observation "
        "FROM outcomes o JOIN page p ON o.prediction = p.id AND o.project = p.project WHERE o.endpoint = '' GROUP BY o.seq"
    )
    db.execute(
        "UPDATE outcomes SET key = m.key, endpoint = m.endpoint, observation = m.observation FROM moved m WHERE outcomes.seq = m.seq"
    )
    return True


def _join_again(db: DuckDBPyConnection) -> None:
    """Join all predictions anew whose observation is in `moved`: it may have been predicted before under another id."""
    db.execute("DELETE FROM joined WHERE key IN (SELECT key FROM moved)")
    newest = f"SELECT key, value, arrived_at FROM outcomes WHERE key IN (SELECT key FROM moved) {NEWEST}"
    names = ", ".join(f"p.{name.strip()}" for name in JOINED.split(","))
    db.execute(
        f"INSERT INTO joined SELECT {names}, o.value, o.arrived_at FROM predictions p JOIN ({newest}) o USING (key)"
    )


def _incoming(db: DuckDBPyConnection, sent: pl.DataFrame) -> None:
    """Make the table `incoming` of `sent`, in which whoever is meant by a prediction's id has its endpoint and observation, and `history`."""
    if (sent["endpoint"] == "").any():
        sent = _resolved(db, sent)
    db.register("sent_rows", sent.to_arrow())
    db.execute(f"CREATE TEMP TABLE incoming AS SELECT *, {KEY.format(id='prediction')} AS key FROM sent_rows")
    db.execute(
        "CREATE TEMP TABLE history AS SELECT key, seq, value, observed_at, arrived_at FROM outcomes WHERE key IN (SELECT key FROM incoming)"
    )


def _resolved(db: DuckDBPyConnection, sent: pl.DataFrame) -> pl.DataFrame:
    unnamed = sent.filter(pl.col("endpoint") == "").select("prediction").unique()
    db.register("asked", unnamed.to_arrow())
    meant = "SELECT id AS prediction, endpoint, observation FROM predictions WHERE id IN (SELECT prediction FROM asked)"
    known = _frame(db.sql(meant))
    project = pl.col("endpoint_known").str.split("/").list.first()
    both = sent.join(known.unique("prediction"), on="prediction", how="left", suffix="_known", maintain_order="left")
    known_here = (pl.col("endpoint") == "") & (project == pl.col("project"))
    return both.with_columns(
        pl.when(known_here).then(pl.col(f"{name}_known")).otherwise(pl.col(name)).alias(name)
        for name in ("endpoint", "observation")
    ).select(sent.columns)


def _mark_repeated(db: DuckDBPyConnection) -> bool:
    """Make the table `repeated`: what holds already, or was taken with the same arrival; whether some rows are of one observation."""
    db.execute(
        f"CREATE TEMP TABLE repeated AS SELECT i.n FROM incoming i JOIN (SELECT * FROM history {NEWEST}) h USING (key) "
        "WHERE i.value = h.value AND i.observed_at = h.observed_at UNION SELECT i.n FROM incoming i JOIN history h USING (key) "
        "WHERE i.dated AND (i.arrived_at, i.value, i.observed_at) = (h.arrived_at, h.value, h.observed_at)"
    )
    doubled = "SELECT key FROM incoming GROUP BY key HAVING count(*) > 1"
    if not _number(db, f"SELECT count(*) FROM ({doubled})"):
        return False
    db.execute(f"DELETE FROM repeated WHERE n IN (SELECT n FROM incoming WHERE key IN ({doubled}))")
    columns = "CAST(key AS VARCHAR), arrived_at, value, observed_at"
    held = db.execute(f"SELECT {columns} FROM history WHERE key IN ({doubled}) ORDER BY seq").fetchall()
    rows = db.execute(f"SELECT n, dated, {columns} FROM incoming WHERE key IN ({doubled}) ORDER BY n").fetchall()
    if again := _said_again(held, rows):
        db.executemany("INSERT INTO repeated VALUES (?)", [[n] for n in again])
    return True


def _said_again(held: list[tuple[Any, ...]], rows: list[tuple[Any, ...]]) -> list[int]:
    """Return which of `rows`, in their order, say nothing new after what was held and what stands before them."""
    said: dict[str, list[tuple[Any, ...]]] = {}
    for key, *one in held:
        said.setdefault(key, []).append(tuple(one))
    again = []
    for n, dated, key, *one in rows:
        before, mine = said.setdefault(key, []), tuple(one)
        newest = max(reversed(before), key=lambda each: each[0], default=None)
        if (newest and newest[1:] == mine[1:]) or (dated and mine in before):
            again.append(n)
        else:
            before.append(mine)
    return again


def _join_fresh(db: DuckDBPyConnection, doubled: bool) -> int:
    """Append the rows of `fresh` and join them; returns how many of them meet a prediction. `doubled`: some are of one observation."""
    last = _number(db, "SELECT max(seq) FROM outcomes")
    db.execute(
        "INSERT INTO outcomes SELECT ? + n + 1, key, project, endpoint, observation, prediction, value, observed_at, arrived_at, source "
        "FROM fresh",
        [last],
    )
    said = f"SELECT key, value, arrived_at, {last} + n + 1 AS seq FROM fresh"
    if _number(db, "SELECT count(*) FROM history"):
        db.execute("DELETE FROM joined WHERE key IN (SELECT key FROM fresh) AND key IN (SELECT key FROM history)")
        said = f"SELECT * FROM ({said} UNION ALL SELECT key, value, arrived_at, seq FROM history WHERE key IN (SELECT key FROM fresh)) {NEWEST}"
    elif doubled:
        said = f"SELECT * FROM ({said}) {NEWEST}"
    names = ", ".join(f"p.{name.strip()}" for name in JOINED.split(","))
    db.execute(
        f"CREATE TEMP TABLE hit AS SELECT {names}, o.value, o.arrived_at FROM predictions p JOIN ({said}) o USING (key)"
    )
    db.execute("INSERT INTO joined SELECT * FROM hit")
    return _number(db, "SELECT count(*) FROM fresh WHERE key IN (SELECT key FROM hit)")
