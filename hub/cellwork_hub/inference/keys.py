"""API keys: who calls an endpoint without a login at the hub. A key belongs to one project, whatever the trust, and changes nothing.

A token is ``cwk_<id>_<43 characters>``: 256 random bits, of which the database has a SHA-256 (so many bits need no slow hash). A
revoked or expired key is refused within twice `CACHE_SECONDS` by every process (the front door has a cache of its own before this one). Keys are made and revoked by people with `endpoints:write`;
who made one, who revoked it and when stands in the audit. Neither hub nor platform is asked.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import msgspec
from anyio import to_thread
from sqlalchemy import Connection, Engine, text
from starlette.types import Scope

from cellwork import clock, ids, scopes
from cellwork.errors import BadInput, NotFound, Refused, near_miss
from cellwork.wire.keys import SCOPES, Key, KeyWish, MadeKey
from cellwork.wire.records import Principal
from cellwork_hub import records
from cellwork_hub.auth import NOBODY, bearer
from cellwork_hub.inference.deploy import Endpoints
from cellwork_hub.route import Call, Route

MIGRATION = (
    "CREATE TABLE keys (id TEXT PRIMARY KEY, project TEXT NOT NULL, name TEXT NOT NULL, scopes {json} NOT NULL, hash TEXT NOT NULL, "
    "by TEXT NOT NULL, at BIGINT NOT NULL, expires BIGINT, revoked BIGINT)",
)
PREFIX = "cwk_"
TOKEN = re.compile(r"cwk_([0-9a-z]{26})_([A-Za-z0-9_-]{43})")
CACHE_SECONDS = 1.0
MOST_DAYS = 3650
Authorise = Callable[[Scope], Awaitable[Principal]]


class Keys:
    """Says whose key a request carries; other credentials are `otherwise`'s to judge."""

    def __init__(self, engine: Engine, otherwise: Authorise) -> None:
        self.engine, self.otherwise = engine, otherwise
        self._known: dict[bytes, tuple[float, Principal]] = {}

    async def __call__(self, scope: Scope) -> Principal:
        token = bearer(scope)
        if not token.startswith(PREFIX):
            return await self.otherwise(scope)
        digest = hashlib.sha256(token.encode()).digest()
        known = self._known.get(digest)
        if known and known[0] > time.monotonic():
            return known[1]
        principal = await to_thread.run_sync(self.principal, token)
        if len(self._known) > 10_000:
            self._known.clear()
        self._known[digest] = (time.monotonic() + CACHE_SECONDS, principal)
        return principal

    def principal(self, token: str) -> Principal:
        """Return who a token is, nobody if it is none, or not any more."""
        match = TOKEN.fullmatch(token)
        if match is None:
            return NOBODY
        with self.engine.connect() as db:
            row = db.execute(text("SELECT * FROM keys WHERE id = :id"), {"id": f"key_{match[1]}"}).mappings().first()
        now = records.micros(clock.now())
        if row is None or not hmac.compare_digest(row["hash"], hashed(match[2])):
            return NOBODY
        if row["revoked"] is not None or (row["expires"] is not None and row["expires"] <= now):
            return NOBODY
        granted = frozenset(msgspec.json.decode(row["scopes"], type=list[str]))
        groups = frozenset({f"{scopes.PROJECT_GROUP}{row['project']}"})
        return Principal(kind="key", name=f"{row['project']}/{row['name']}", scopes=granted, groups=groups)


def hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def make(engine: Engine, call: Call, wish: KeyWish) -> MadeKey:
    """Make a key; its token is in the answer and nowhere else.

    Raises
    ------
    BadInput
        A scope that keys do not have, or a time that makes no sense.
    Refused
        The caller lacks a scope that the key is to have, or is a key.
    """
    _check(call, wish)
    secret, now = secrets.token_urlsafe(32), clock.now()
    key = Key(
        id=ids.new("key"), project=wish.project, name=wish.name, scopes=sorted(set(wish.scopes)), by=call.principal.name, at=now,
        expires=now + timedelta(days=wish.days) if wish.days else None,
    )  # fmt: skip
    with engine.begin() as db:
        db.execute(
            text(
                "INSERT INTO keys (id, project, name, scopes, hash, by, at, expires) VALUES (:id, :project, :name, :scopes, :hash, :by, :at, :expires)"
            ),
            {
                "id": key.id, "project": key.project, "name": key.name, "scopes": msgspec.json.encode(key.scopes).decode(),
                "hash": hashed(secret), "by": key.by, "at": records.micros(now),
                "expires": records.micros(key.expires) if key.expires else None,
            },
        )  # fmt: skip
        records.audit(db, call, "key.make", f"{key.project}/{key.name}", after=key)
    return MadeKey(key=key, token=f"{PREFIX}{key.id.removeprefix('key_')}_{secret}")


def _check(call: Call, wish: KeyWish) -> None:
    ids.name(wish.project, "project")
    ids.name(wish.name, "key")
    if call.principal.kind == "key":
        raise Refused("key", call.principal.name, "makes no keys", "let a person make it")
    for scope in wish.scopes:
        if scope not in SCOPES:
            raise BadInput("scope", scope, "is not one that a key may have", near_miss(scope, SCOPES))
        if scope not in call.principal.scopes:
            raise Refused(f"user {call.principal.name!r}", scope, "is a scope it does not have to give", "ask an admin")
    if not wish.scopes or not 0 <= wish.days <= MOST_DAYS:
        raise BadInput("key", wish.days, "needs a scope, and 0 to 3650 days", "look at: cellwork key make --help")


def listing(engine: Engine, call: Call) -> list[Key]:
    """Return the keys of the caller's projects, revoked ones too, oldest first."""
    with engine.connect() as db:
        found = [_key(row) for row in db.execute(text("SELECT * FROM keys ORDER BY at, id")).mappings()]
    wanted = call.query.get("project", "")
    return [key for key in found if call.may_enter(key.project) and wanted in ("", key.project)]


def revoke(engine: Engine, call: Call, key: str) -> Key:
    """Let a key open nothing any more; a second time changes nothing."""
    with engine.begin() as db:
        before = _require(db, key)
        call.enter(before.project)
        if before.revoked is None:
            db.execute(
                text("UPDATE keys SET revoked = :now WHERE id = :id"), {"now": records.micros(clock.now()), "id": key}
            )
            records.audit(db, call, "key.revoke", f"{before.project}/{before.name}", before=before)
        return _require(db, key)


def _require(db: Connection, key: str) -> Key:
    row = db.execute(text("SELECT * FROM keys WHERE id = :id"), {"id": ids.check(key, "key")}).mappings().first()
    if row is None:
        raise NotFound("key", key, "does not exist", "look at: cellwork key list")
    return _key(row)


def _key(row: Any) -> Key:
    return Key(
        id=row["id"], project=row["project"], name=row["name"], scopes=msgspec.json.decode(row["scopes"], type=list[str]),
        by=row["by"], at=records.moment(row["at"]), expires=records.moment(row["expires"]) if row["expires"] else None,
        revoked=records.moment(row["revoked"]) if row["revoked"] else None,
    )  # fmt: skip


def routes(endpoints: Endpoints) -> list[Route]:
    def post(call: Call) -> MadeKey:
        return make(endpoints.engine, call, call.body)

    def index(call: Call) -> list[Key]:
        call.may_enter("")
        return listing(endpoints.engine, call)

    def delete(call: Call) -> Key:
        return revoke(endpoints.engine, call, call.path["key"])

    return [
        Route("POST", "/api/v1/keys", post, "endpoints:write", KeyWish, MadeKey, "Make an API key; its token is shown once."),
        Route("GET", "/api/v1/keys", index, "endpoints:read", None, list[Key], "The API keys."),
        Route("DELETE", "/api/v1/keys/{key}", delete, "endpoints:write", None, Key, "Let a key open nothing any more."),
    ]  # fmt: skip
