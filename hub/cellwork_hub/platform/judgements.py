"""The tables of evaluations, questions and promotions, and how they are read."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import text

from cellwork.wire.evaluations import Evaluation
from cellwork_hub.platform.state import State

MIGRATION = (
    "CREATE TABLE evaluations (seq {serial}, id TEXT UNIQUE NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL, "
    "holdout TEXT NOT NULL, champion INTEGER NOT NULL, record {json} NOT NULL)",
    "CREATE INDEX evaluations_name ON evaluations (name, version, seq)",
    "CREATE TABLE questions (seq {serial}, project TEXT NOT NULL, holdout TEXT NOT NULL, version TEXT NOT NULL, principal TEXT NOT NULL, at BIGINT NOT NULL)",
    "CREATE TABLE promotions (seq {serial}, name TEXT NOT NULL, version INTEGER NOT NULL, record {json} NOT NULL)",
    "CREATE INDEX promotions_name ON promotions (name, seq)",
)


def select(state: State, where: str, limit: int, **values: Any) -> list[Evaluation]:
    """Return evaluations, newest first."""
    with state.engine.connect() as db:
        rows = db.execute(
            text(f"SELECT record FROM evaluations WHERE {where} ORDER BY seq DESC LIMIT {int(limit)}"), values
        )
        return [msgspec.json.decode(row.record, type=Evaluation) for row in rows]


def asked_of(evaluation: Evaluation) -> str:
    """Return what an evaluation was of: a holdout, or ``holdout+dataset``."""
    return f"{evaluation.holdout}+{evaluation.also}" if evaluation.also else evaluation.holdout


def latest(state: State, name: str, version: int, *, digest: str, holdout: str = "") -> Evaluation | None:
    """Return the newest evaluation of a version with this content on a holdout alone (on this one, if one is named)."""
    where = "name = :n AND version = :v AND digest = :d AND holdout NOT LIKE '%+%' AND (:h = '' OR holdout = :h)"
    found = select(state, where, 1, n=name, v=version, d=digest, h=holdout)
    return found[0] if found else None


def compared_with(state: State, evaluation: str) -> int:
    """Return the version that was champion when the evaluation was made; 0 for none."""
    with state.engine.connect() as db:
        return int(db.execute(text("SELECT champion FROM evaluations WHERE id = :id"), {"id": evaluation}).scalar_one())
