"""The prediction log: written before an answer is given, once for all that one turn answered.

A prediction is unique by (endpoint, id); the first acknowledged wins, and whoever asks again with its key gets that one.
Survives a killed process; a power loss may take the last moment (the database's own `synchronous` setting).

Requests with a key of their own go to the table at once. Plain ones go to `segments`, which costs a tenth, and are taken over into
the table in the background and before every reading: a reader sees what was answered before it asked. Frames and the offset they
were read up to are committed together, so each is taken over once, whoever does it and whenever it is killed.

What is older than some days is moved on into Parquet by `compaction`; the log is read as one, through this module. What it holds of an
erased subject is emptied by `forgetting`: such a prediction stays in its place, says by which erasure, and has no score.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cellwork import clock
from cellwork.errors import NotFound, Unavailable
from cellwork.serving import segments
from cellwork.serving.archive import Archive
from cellwork.serving.rollout import Seen
from cellwork.serving.segments import Turn
from cellwork.wire.endpoints import Prediction
from cellwork.wire.evaluations import VersionRef

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

log = logging.getLogger("cellwork.serving")

MIGRATION = (
    "CREATE TABLE predictions (seq {serial}, endpoint TEXT NOT NULL, id TEXT NOT NULL, at BIGINT NOT NULL, logged_at BIGINT NOT NULL, "
    "revision INTEGER NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL, deployment TEXT NOT NULL, "
    "route TEXT NOT NULL, reason TEXT NOT NULL, entities {json} NOT NULL, features {json} NOT NULL, feature_events {json} NOT NULL, "
    "feature_batches {json} NOT NULL, defaults {json} NOT NULL, score DOUBLE PRECISION NOT NULL, latency_us BIGINT NOT NULL, "
    "caller TEXT NOT NULL, observation TEXT NOT NULL, batch_run TEXT NOT NULL, request_id TEXT NOT NULL, UNIQUE (endpoint, id))",
    "CREATE INDEX predictions_endpoint ON predictions (endpoint, seq)",
    "CREATE INDEX predictions_id ON predictions (id)",
    "CREATE INDEX predictions_deployment ON predictions (deployment, seq)",
)
SEGMENTS_MIGRATION = ("CREATE TABLE segments (name TEXT PRIMARY KEY, position BIGINT NOT NULL)",)
ROUTES_MIGRATION = (
    "ALTER TABLE predictions ADD COLUMN unit TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE predictions ADD COLUMN tried TEXT NOT NULL DEFAULT ''",
    "CREATE INDEX predictions_tried ON predictions (tried, seq) WHERE tried <> ''",
)
OBSERVATIONS_MIGRATION = (
    "CREATE INDEX predictions_observation ON predictions (endpoint, observation, seq) WHERE observation <> ''",
)
ERASED_MIGRATION = (
    "ALTER TABLE predictions ADD COLUMN erased TEXT NOT NULL DEFAULT ''",
    "CREATE INDEX predictions_erased ON predictions (erased) WHERE erased <> ''",
)
JSON = {
    "entities": dict[str, Any], "features": dict[str, Any], "feature_events": dict[str, Any],
    "feature_batches": dict[str, str], "defaults": list[str],
}  # fmt: skip
COLUMNS = (
    "endpoint", "id", "at", "logged_at", "revision", "name", "version", "digest", "deployment", "route", "reason",
    *JSON, "score", "latency_us", "caller", "observation", "batch_run", "request_id", "unit", "tried", "erased",
)  # fmt: skip
CHUNK = 500
SEEN_ROWS = 5000
"""Predictions whose times and scores a rollout is judged by."""
READING_ROWS = 5000
"""Rows of one transaction when a reader waits for them; the quick lane writes on meanwhile."""


class PredictionLog:
    """The table `predictions` of a service's database and what belongs to it: segments in `folder`, the old part under `archive`."""

    def __init__(self, engine: Engine, folder: Path | None = None, archive: Path | None = None) -> None:
        self.engine, self.folder = engine, folder
        self.archive = Archive(archive) if archive else None

    def take_over(self) -> None:
        """Bring all that stands in segments into the table."""
        while self.take_some(READING_ROWS):
            pass

    def take_some(self, most: int) -> int:
        """Bring at most about `most` predictions of the oldest segments into the table; returns how many there were."""
        for path in segments.listing(self.folder) if self.folder else []:
            if count := self._take_over(path, most):
                return count
        return 0

    def _take_over(self, path: Path, most: int) -> int:
        try:
            finished = segments.is_finished(path)
        except FileNotFoundError:  # another process was quicker
            return 0
        count = self._take_part(path, most)
        if finished and not count:  # it was before the last part was read
            self._look_at_rest(path)
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            with self.engine.begin() as db:
                db.exec_driver_sql(f"DELETE FROM segments WHERE name = '{path.stem}'")
        return count

    def _look_at_rest(self, path: Path) -> None:
        """Say what of a segment is no whole turn: a torn one was never acknowledged, and what a failing disk spoilt is lost."""
        with self.engine.connect() as db, contextlib.suppress(FileNotFoundError):
            found = db.exec_driver_sql(f"SELECT position FROM segments WHERE name = '{path.stem}'").scalar()
            if left := path.stat().st_size - int(found or 0):
                said = "the last %d bytes of segment %s of the prediction log are no whole prediction and are left out"
                log.warning(said, left, path.stem)

    def _take_part(self, path: Path, most: int) -> int:
        """Take over some rows in one transaction that holds the write lock from its start."""
        with self.engine.begin() as db:
            found = db.exec_driver_sql(f"SELECT position FROM segments WHERE name = '{path.stem}'").scalar()
            rows, position = [], int(found or 0)
            try:
                for turn, behind in segments.turns(path, position):
                    rows += _rows_of(turn)
                    position = behind
                    if len(rows) >= most:
                        break
            except FileNotFoundError:
                return 0
            if rows:
                mark = "?" if db.dialect.paramstyle == "qmark" else "%s"
                names = ", ".join(COLUMNS)
                marks = ", ".join([mark] * len(COLUMNS))
                db.exec_driver_sql(f"INSERT INTO predictions ({names}) VALUES ({marks}) ON CONFLICT DO NOTHING", rows)
                db.exec_driver_sql(
                    f"INSERT INTO segments VALUES ('{path.stem}', {position}) ON CONFLICT (name) DO UPDATE SET position = excluded.position"
                )
            return len(rows)

    def write(self, predictions: Sequence[Prediction], repeatable: Sequence[str] = ()) -> dict[str, Prediction]:
        """Append what is not there yet, in one transaction; return what the log holds under the ids `repeatable`."""
        from sqlalchemy import exc, text

        names = ", ".join(COLUMNS)
        insert = text(f"INSERT INTO predictions ({names}) VALUES (:{', :'.join(COLUMNS)}) ON CONFLICT DO NOTHING")
        try:
            with self.engine.begin() as db:
                db.execute(insert, [_row(prediction) for prediction in predictions])
                return self._find(db, predictions[0].endpoint, repeatable) if repeatable else {}
        except exc.OperationalError as error:
            raise Unavailable(
                "prediction log", "", f"can't be written ({error.orig})", "nothing was answered; look at the disk"
            ) from None

    def find(self, endpoint: str, ids: Sequence[str]) -> dict[str, Prediction]:
        """Return what the log holds under keys of requests; those never stand in segments."""
        with self.engine.connect() as db:
            return self._find(db, endpoint, ids)

    def _find(self, db: Connection, endpoint: str, ids: Sequence[str]) -> dict[str, Prediction]:
        found = _find(db, endpoint, ids)
        missing = [name for name in ids if name not in found]
        old = self.archive.find(db, missing) if self.archive and missing else {}
        return found | {name: _prediction(row) for name, row in old.items() if row["endpoint"] == endpoint}

    def scored(self, endpoint: str, observations: Sequence[str]) -> dict[str, Prediction]:
        """Return what batches have scored of `observations`, each one's newest; those never stand in segments."""
        from sqlalchemy import bindparam, text

        query = text(
            "SELECT * FROM predictions WHERE endpoint = :endpoint AND observation IN :wanted AND batch_run <> '' ORDER BY seq"
        ).bindparams(bindparam("wanted", expanding=True))
        found: dict[str, Prediction] = {}
        with self.engine.connect() as db:
            for start in range(0, len(observations), CHUNK):
                wanted = list(observations[start : start + CHUNK])
                rows = db.execute(query, {"endpoint": endpoint, "wanted": wanted}).mappings()
                newest = {row["observation"]: dict(row) for row in rows}
                missing = [name for name in wanted if name not in newest]
                old = self.archive.scored(db, endpoint, missing) if self.archive and missing else []
                newest |= {row["observation"]: row for row in old}
                found.update((name, _prediction(row)) for name, row in newest.items())
        return found

    def get(self, prediction: str) -> Prediction:
        from sqlalchemy import text

        self.take_over()
        with self.engine.connect() as db:
            query = text("SELECT * FROM predictions WHERE id = :id")
            row: Any = db.execute(query, {"id": prediction}).mappings().first()
            if row is None and self.archive:
                row = self.archive.find(db, [prediction]).get(prediction)
        if row is None:
            raise NotFound("prediction", prediction, "is not in the log", "look at: cellwork endpoint log")
        return _prediction(dict(row))

    def seen(self, deployment: str, route: str, since: datetime) -> Seen:
        """Return what a deployment answered by `route` since then: all counted, the newest `SEEN_ROWS` looked at, of each unit every score once."""
        import numpy as np
        from sqlalchemy import text

        self.take_over()
        start = clock.micros(since)
        where = "FROM predictions WHERE deployment = :of AND route = :route AND logged_at >= :since AND seq > :mark"
        failing = "SELECT count(*) FROM predictions WHERE tried = :of AND logged_at >= :since AND seq > :mark"
        score = "CASE WHEN erased = '' THEN score END"
        newest = text(f"SELECT latency_us, {score}, unit, entities, id {where} ORDER BY seq DESC LIMIT :most")
        with self.engine.connect() as db:
            mark = self._mark(db)
            values = {"of": deployment, "route": route, "since": start, "mark": mark, "most": SEEN_ROWS}
            answered = int(db.execute(text(f"SELECT count(*) {where}"), values).scalar_one())
            failed = int(db.execute(text(failing), values).scalar_one())
            rows = [tuple(row) for row in db.execute(newest, values)]
            if self.archive and mark:
                old, by_others, before = self.archive.seen(db, deployment, route, start, SEEN_ROWS - len(rows))
                answered, failed, rows = answered + old, failed + by_others, rows + before
        scores = dict.fromkeys((score, _whose(*of)) for _, score, *of in rows if score is not None)
        return Seen(
            answered, failed, np.array([row[0] for row in rows]) / 1000, np.array([score for score, _ in scores])
        )

    def _mark(self, db: Connection) -> int:
        return self.archive.mark(db) if self.archive else 0

    def after(
        self, seq: int, *, endpoint: str = "", deployment: str = "", limit: int = 1000, brief: bool = False
    ) -> list[Prediction]:
        """Return predictions with a greater `seq`, in order; a negative one asks for the last so many.

        `brief` ones come without entities and features.
        """
        self.take_over()
        columns = ["seq", *(name for name in COLUMNS if not (brief and name in JSON))]
        wanted = {name: value for name, value in (("endpoint", endpoint), ("deployment", deployment)) if value}
        most = min(limit, -seq) if seq < 0 else limit
        with self.engine.connect() as db:
            read = self._last(db, most, wanted, columns) if seq < 0 else self._after(db, seq, most, wanted, columns)
        return [_prediction(dict(row)) for row in read]

    def _after(self, db: Connection, seq: int, limit: int, wanted: dict[str, str], columns: list[str]) -> list[Any]:
        mark = self._mark(db)
        old = self.archive.after(db, seq, limit, wanted, columns) if self.archive and seq < mark else []
        return [*old, *_table(db, max(seq, mark), limit - len(old), wanted, columns)]

    def _last(self, db: Connection, limit: int, wanted: dict[str, str], columns: list[str]) -> list[Any]:
        mark = self._mark(db)
        found = _table(db, mark, limit, wanted, columns, newest_first=True)
        if self.archive and mark and len(found) < limit:
            found += self.archive.last(db, limit - len(found), wanted, columns)
        return found[::-1]


def _table(
    db: Connection, above: int, limit: int, wanted: dict[str, str], columns: list[str], *, newest_first: bool = False
) -> list[Any]:
    from sqlalchemy import text

    where = " AND ".join(["seq > :above", *(f"{name} = :{name}" for name in wanted)])
    order = "seq DESC" if newest_first else "seq"
    query = text(f"SELECT {', '.join(columns)} FROM predictions WHERE {where} ORDER BY {order} LIMIT :limit")
    return list(db.execute(query, {"above": above, "limit": limit, **wanted}).mappings())


def _find(db: Connection, endpoint: str, ids: Sequence[str]) -> dict[str, Prediction]:
    from sqlalchemy import bindparam, text

    query = text("SELECT * FROM predictions WHERE endpoint = :endpoint AND id IN :ids").bindparams(
        bindparam("ids", expanding=True)
    )
    found: dict[str, Prediction] = {}
    for start in range(0, len(ids), CHUNK):
        rows = db.execute(query, {"endpoint": endpoint, "ids": list(ids[start : start + CHUNK])}).mappings()
        found.update((row["id"], _prediction(dict(row))) for row in rows)
    return found


def _rows_of(turn: Turn) -> list[tuple[Any, ...]]:
    """Return the turn's predictions in the order of COLUMNS."""
    ref, rows = turn.version, []
    before = (turn.revision, ref.name, ref.version, ref.digest, turn.deployment, turn.route)
    for k, (name, values) in enumerate(zip(turn.ids, turn.values, strict=True)):
        found = turn.looked_up.get(k)
        events = {view: clock.moment(at) for view, at in found.events.items()} if found else {}
        said = [
            found.entities if found else {}, dict(zip(turn.columns, values, strict=True)), events,
            found.batches if found else {}, turn.defaults.get(k, []),
        ]  # fmt: skip
        texts = [_encode(part).decode() if part else EMPTY[type(part)] for part in said]
        reason, unit = turn.reasons[k] if turn.reasons else turn.reason, turn.units[k] if turn.units else ""
        rows.append(
            (turn.endpoint, name, turn.at, turn.at, *before, reason, *texts, turn.scores[k], turn.latencies[k], turn.callers[k],
             "", "", "", unit, "", "")
        )  # fmt: skip
    return rows


def _whose(unit: str, entities: str, prediction: str) -> tuple[str, str]:
    """Return what tells a unit from others; a prediction of none is one of its own."""
    return ("unit", unit) if unit else ("entities", entities) if entities != "{}" else ("prediction", prediction)


_encode = msgspec.json.Encoder().encode
EMPTY: dict[type, str] = {dict: "{}", list: "[]"}


def _row(prediction: Prediction) -> dict[str, Any]:
    row = {name: getattr(prediction, name) for name in COLUMNS if name not in ("name", "version", "digest")}
    ref = prediction.version
    row |= {"name": ref.name, "version": ref.version, "digest": ref.digest}
    row |= {name: msgspec.json.encode(row[name]).decode() for name in JSON}
    return row | {name: clock.micros(row[name]) for name in ("at", "logged_at")}


def _prediction(row: dict[str, Any]) -> Prediction:
    ref = VersionRef(name=row.pop("name"), version=row.pop("version"), digest=row.pop("digest"))
    for name in ("at", "logged_at"):
        row[name] = clock.moment(row[name])
    for name in JSON:
        row[name] = msgspec.json.decode(row.get(name) or ("[]" if name == "defaults" else "{}"))
    if row.setdefault("erased", "") is None:  # in a file of before there were erasures
        row["erased"] = ""
    if row["erased"]:
        row["score"] = None
    return msgspec.convert({**row, "version": ref}, Prediction)
