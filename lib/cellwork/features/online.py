"""The online store of a project: a SQLite file (one machine) or a Redis, with the same rules; see `online_store`."""

from __future__ import annotations

from pathlib import Path

from cellwork.features.online_store import OnlineStore, newest_rows

__all__ = ["OnlineStore", "newest_rows", "open_store"]


def open_store(path: Path, url: str = "", *, read_only: bool = False) -> OnlineStore:
    """Return the store of a project: at `url` (``redis://…``) under the stem of `path`, else the SQLite file `path`."""
    if url:
        from cellwork.features.online_redis import RedisStore

        return RedisStore(url, path.stem)
    from cellwork.features.online_sqlite import SqliteStore

    return SqliteStore(path, read_only=read_only)
