"""What an erasure does in the tables of `outcome_store`, and to its file; called by the store alone, in its transaction or with nobody in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def replace(made: Path, path: Path) -> None:
    """Let a closed file take the place of another closed one, so that it survives a power loss."""
    _sync(made)
    path.with_name(f"{path.name}.wal").unlink(missing_ok=True)  # empty since the checkpoint, and of the old file
    made.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def empty(db: DuckDBPyConnection, project: str, key: str) -> int:
    """Empty the predictions of `gone_rows`, remove the outcomes that are theirs alone or of `own_rows`; return how many those were.

    `key` is the expression of an observation's key.
    """
    db.execute(
        "CREATE TEMP TABLE hit AS SELECT seq, key, model, version FROM predictions WHERE id IN (SELECT id FROM gone_rows) AND key IS NOT NULL"
    )
    db.execute(
        "CREATE TEMP TABLE lost AS SELECT key FROM hit WHERE key NOT IN (SELECT key FROM predictions p WHERE p.key IN (SELECT key FROM hit) "
        f"AND p.seq NOT IN (SELECT seq FROM hit)) UNION SELECT {key} FROM (SELECT *, '{project}' AS project FROM own_rows)"
    )
    theirs = "project = ? AND (key IN (SELECT key FROM lost) OR (endpoint = '' AND prediction IN (SELECT id FROM gone_rows)))"
    found = db.execute(f"SELECT count(*) FROM outcomes WHERE {theirs}", [project]).fetchone()
    db.execute(f"DELETE FROM outcomes WHERE {theirs}", [project])
    db.execute("DELETE FROM joined WHERE key IN (SELECT key FROM lost) OR seq IN (SELECT seq FROM hit)")
    _let_others_count(db)
    db.execute("UPDATE predictions SET key = NULL, observation = '', score = NULL WHERE seq IN (SELECT seq FROM hit)")
    return int(found[0]) if found else 0


def _let_others_count(db: DuckDBPyConnection) -> None:
    """Where the first prediction of an observation by a model's version is in `hit`, let the first one that stays count in its place."""
    stays = "SELECT key, model, version, min(seq) AS seq FROM predictions WHERE key IN (SELECT key FROM hit) AND seq NOT IN (SELECT seq FROM hit)"
    db.execute(f"CREATE TEMP TABLE heir AS {stays} GROUP BY key, model, version")
    replaced = "SELECT h.seq FROM hit h JOIN heir USING (key, model, version)"
    db.execute(f"UPDATE predictions SET counts = FALSE WHERE seq IN ({replaced})")
    for table in ("predictions", "joined"):
        db.execute(f"UPDATE {table} SET counts = TRUE WHERE seq IN (SELECT seq FROM heir)")
