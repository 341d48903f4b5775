"""The prediction log: written before an answer is given, one transaction for all that one turn answered.

A prediction is unique by (endpoint, id); the first acknowledged wins, and whoever asks again with its key gets that one.
Survives a killed process; a power loss may take the last moment (the database's own `synchronous` setting).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from cellwork.errors import NotFound, Unavailable
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
JSON = {
    "entities": dict[str, Any], "features": dict[str, Any], "feature_events": dict[str, Any],
    "feature_batches": dict[str, str], "defaults": list[str],
}  # fmt: skip
COLUMNS = (
    "endpoint", "id", "at", "logged_at", "revision", "name", "version", "digest", "deployment", "route", "reason",
    *JSON, "score", "latency_us", "caller", "observation", "batch_run", "request_id",
)  # fmt: skip
CHUNK = 500


class PredictionLog:
    """The table `predictions` of a service's database; one process writes it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

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
        with self.engine.connect() as db:
            return _find(db, endpoint, ids)

    def get(self, prediction: str) -> Prediction:
        from sqlalchemy import text

        with self.engine.connect() as db:
            row = db.execute(text("SELECT * FROM predictions WHERE id = :id"), {"id": prediction}).mappings().first()
        if row is None:
            raise NotFound("prediction", prediction, "is not in the log", "look at: cellwork endpoint log")
        return _prediction(dict(row))

    def after(
        self, seq: int, *, endpoint: str = "", deployment: str = "", limit: int = 1000, brief: bool = False
    ) -> list[Prediction]:
        """Return predictions with a greater `seq`, in order; a negative one asks for the last so many.

        `brief` ones come without entities and features.
        """
        from sqlalchemy import text

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


def _row(prediction: Prediction) -> dict[str, Any]:
    row = {name: getattr(prediction, name) for name in COLUMNS if name not in ("name", "version", "digest")}
    ref = prediction.version
    row |= {"name": ref.name, "version": ref.version, "digest": ref.digest}
    row |= {name: msgspec.json.encode(row[name]).decode() for name in JSON}
    return row | {name: round(row[name].timestamp() * 1_000_000) for name in ("at", "logged_at")}


def _prediction(row: dict[str, Any]) -> Prediction:
    from datetime import UTC, datetime

    ref = VersionRef(name=row.pop("name"), version=row.pop("version"), digest=row.pop("digest"))
    for name in ("at", "logged_at"):
        row[name] = datetime.fromtimestamp(row[name] / 1_000_000, UTC)
    for name in JSON:
        row[name] = msgspec.json.decode(row.get(name) or ("[]" if name == "defaults" else "{}"))
    return msgspec.convert({**row, "version": ref}, Prediction)
