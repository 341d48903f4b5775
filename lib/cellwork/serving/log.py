"""The prediction log: written before an answer is given, once for all that one turn answered.

A prediction is unique by (endpoint, id); the first acknowledged wins, and whoever asks again with its key gets that one.
Survives a killed process; a power loss may take the last moment (the database's own `synchronous` setting).

Requests with a key of their own go to the table at once. Plain ones go to `segments`, which costs a tenth, and are taken over into
the table in the background and before every reading: a reader sees what was answered before it asked. Frames and the offset they
were read up to are committed together, so each is taken over once, whoever does it and whenever it is killed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cellwork.errors import NotFound, Unavailable
from cellwork.serving import segments
from cellwork.serving.rollout import Seen
from cellwork.serving.segments import Turn
from cellwork.wire.endpoints import Prediction
from cellwork.wire.evaluations import VersionRef

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

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
JSON = {
    "entities": dict[str, Any], "features": dict[str, Any], "feature_events": dict[str, Any],
    "feature_batches": dict[str, str], "defaults": list[str],
}  # fmt: skip
COLUMNS = (
    "endpoint", "id", "at", "logged_at", "revision", "name", "version", "digest", "deployment", "route", "reason",
    *JSON, "score", "latency_us", "caller", "observation", "batch_run", "request_id", "unit", "tried",
)  # fmt: skip
CHUNK = 500
SEEN_ROWS = 5000
"""Predictions whose times and scores a rollout is judged by."""
READING_ROWS = 5000
"""Rows of one transaction when a reader waits for them; the quick lane writes on meanwhile."""


class PredictionLog:
    """The table `predictions` of a service's database and, with `folder`, the segments that belong to it."""

    def __init__(self, engine: Engine, folder: Path | None = None) -> None:
        self.engine, self.folder = engine, folder

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
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            with self.engine.begin() as db:
                db.exec_driver_sql(f"DELETE FROM segments WHERE name = '{path.stem}'")
        return count

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
                return _find(db, predictions[0].endpoint, repeatable) if repeatable else {}
        except exc.OperationalError as error:
            raise Unavailable(
                "prediction log", "", f"can't be written ({error.orig})", "nothing was answered; look at the disk"
            ) from None

    def find(self, endpoint: str, ids: Sequence[str]) -> dict[str, Prediction]:
        """Return what the log holds under keys of requests; those never stand in segments."""
        with self.engine.connect() as db:
            return _find(db, endpoint, ids)

    def get(self, prediction: str) -> Prediction:
        from sqlalchemy import text

        self.take_over()
        with self.engine.connect() as db:
            row = db.execute(text("SELECT * FROM predictions WHERE id = :id"), {"id": prediction}).mappings().first()
        if row is None:
            raise NotFound("prediction", prediction, "is not in the log", "look at: cellwork endpoint log")
        return _prediction(dict(row))

    def seen(self, deployment: str, route: str, since: datetime) -> Seen:
        """Return what a deployment answered by `route` since then: all counted, the newest `SEEN_ROWS` looked at."""
        import numpy as np
        from sqlalchemy import text

        self.take_over()
        values = {"of": deployment, "route": route, "since": round(since.timestamp() * 1_000_000), "most": SEEN_ROWS}
        where = "FROM predictions WHERE deployment = :of AND route = :route AND logged_at >= :since"
        with self.engine.connect() as db:
            answered = db.execute(text(f"SELECT count(*) {where}"), values).scalar_one()
            failed = db.execute(
                text("SELECT count(*) FROM predictions WHERE tried = :of AND logged_at >= :since"), values
            ).scalar_one()
            query = text(f"SELECT latency_us, score {where} ORDER BY seq DESC LIMIT :most")
            rows = np.array(db.execute(query, values).all(), dtype=float).reshape(-1, 2)
        return Seen(answered, failed, rows[:, 0] / 1000, rows[:, 1])

    def after(
        self, seq: int, *, endpoint: str = "", deployment: str = "", limit: int = 1000, brief: bool = False
    ) -> list[Prediction]:
        """Return predictions with a greater `seq`, in order; a negative one asks for the last so many.

        `brief` ones come without entities and features.
        """
        from sqlalchemy import text

        self.take_over()
        names = ", ".join(("seq", *(name for name in COLUMNS if not (brief and name in JSON))))
        values = {"seq": max(seq, 0), "endpoint": endpoint, "deployment": deployment}
        values["limit"] = min(limit, -seq) if seq < 0 else limit
        where = " AND ".join(
            ["seq > :seq", *(f"{name} = :{name}" for name in ("endpoint", "deployment") if values[name])]
        )
        order = "seq DESC" if seq < 0 else "seq"
        with self.engine.connect() as db:
            query = text(f"SELECT {names} FROM predictions WHERE {where} ORDER BY {order} LIMIT :limit")
            rows = db.execute(query, values).mappings().all()
        return [_prediction(dict(row)) for row in (reversed(rows) if seq < 0 else rows)]


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
    before = (turn.revision, ref.name, ref.version, ref.digest, turn.deployment, turn.route, "")
    for k, (name, values) in enumerate(zip(turn.ids, turn.values, strict=True)):
        found = turn.looked_up.get(k)
        events = {view: _moment(at) for view, at in found.events.items()} if found else {}
        said = [
            found.entities if found else {}, dict(zip(turn.columns, values, strict=True)), events,
            found.batches if found else {}, turn.defaults.get(k, []),
        ]  # fmt: skip
        texts = [_encode(part).decode() if part else EMPTY[type(part)] for part in said]
        rows.append(
            (turn.endpoint, name, turn.at, turn.at, *before, *texts, turn.scores[k], turn.latencies[k], turn.callers[k], "", "", "", "", "")
        )  # fmt: skip
    return rows


_encode = msgspec.json.Encoder().encode
EMPTY: dict[type, str] = {dict: "{}", list: "[]"}


def _moment(micros: int) -> datetime:
    return datetime.fromtimestamp(micros / 1_000_000, UTC)


def _row(prediction: Prediction) -> dict[str, Any]:
    row = {name: getattr(prediction, name) for name in COLUMNS if name not in ("name", "version", "digest")}
    ref = prediction.version
    row |= {"name": ref.name, "version": ref.version, "digest": ref.digest}
    row |= {name: msgspec.json.encode(row[name]).decode() for name in JSON}
    return row | {name: round(row[name].timestamp() * 1_000_000) for name in ("at", "logged_at")}


def _prediction(row: dict[str, Any]) -> Prediction:
    ref = VersionRef(name=row.pop("name"), version=row.pop("version"), digest=row.pop("digest"))
    for name in ("at", "logged_at"):
        row[name] = _moment(row[name])
    for name in JSON:
        row[name] = msgspec.json.decode(row.get(name) or ("[]" if name == "defaults" else "{}"))
    return msgspec.convert({**row, "version": ref}, Prediction)
