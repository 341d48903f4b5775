"""The online store on Redis: a string an entity, written by a script that compares and sets in one step, read by one MGET.

Keys are ``cw:{project}:…``. The active revision of a view is the first key of the same MGET that reads its values under the
revision last seen; if it has changed, the read is made again under the new one, so a reader never mixes two revisions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from cellwork.errors import Unavailable
from cellwork.features.online_store import OnlineStore, parts

WRITTEN_AT_ONCE = 500
PUT = """
local function newer(old, new)
  for i = 1, 24 do
    local a, b = string.byte(old, i), string.byte(new, i)
    if a ~= b then return b > a end
  end
  return false
end
local taken = 0
for i, key in ipairs(KEYS) do
  local old = redis.call('GETRANGE', key, 0, 23)
  if #old == 0 or newer(old, ARGV[i]) then
    redis.call('SET', key, ARGV[i])
    taken = taken + 1
  end
end
return taken
"""


class RedisStore(OnlineStore):
    """The values of `project` in the Redis at `url` (``redis://host:port/db``)."""

    def __init__(self, url: str, project: str) -> None:
        import redis

        super().__init__()
        self.project, self.url = project, url
        self._redis = redis.Redis.from_url(url, socket_timeout=10, socket_connect_timeout=5)
        self._put = self._redis.register_script(PUT)
        self._seen: dict[str, bytes] = {}

    def put(self, view: str, revision: int, records: Iterable[tuple[bytes, bytes]]) -> int:
        prefix, taken = self._prefix(view, b"%d" % revision), 0
        with self._answering():
            for part in parts(records, WRITTEN_AT_ONCE):
                keys, values = [prefix + entity for entity, _ in part], [value for _, value in part]
                taken += int(self._put(keys=keys, args=values))
        return taken

    def packed(self, view: str, entities: Sequence[bytes]) -> list[bytes | None]:
        active = self._key("active", view)
        with self._answering():
            for _ in range(5):
                seen = self._seen.get(view, b"")
                prefix = self._prefix(view, seen)
                now, *found = self._bytes([active, *[prefix + entity for entity in entities]])
                if (now or b"") == seen:
                    return found if seen else [None] * len(entities)
                self._seen[view] = now or b""
        raise Unavailable("online store", view, "changed its revision five times during a read", "try again")

    def count(self, view: str) -> int:
        revision = self.active(view)
        return 0 if revision is None else sum(1 for _ in self._keys(view, b"%d" % revision))

    def forget(self, view: str, entities: Sequence[bytes]) -> None:
        for revision in sorted(self._revisions(view)):
            keys = [self._prefix(view, revision) + entity for entity in entities]
            with self._answering():
                for start in range(0, len(keys), WRITTEN_AT_ONCE):
                    self._redis.unlink(*keys[start : start + WRITTEN_AT_ONCE])

    def _revisions(self, view: str) -> set[bytes]:
        """Return the revisions under which there are values: the active one, and any that is being filled."""
        start = len(self._key("value", view)) + 1
        return {key[start:].partition(b":")[0] for key in self._scan(self._key("value", view) + b":")}

    def activate(self, view: str, revision: int | None) -> None:
        with self._answering():
            if revision is None:
                self._redis.delete(self._key("active", view))
            else:
                self._redis.set(self._key("active", view), revision)
            for old in self._revisions(view):
                keys = list(self._keys(view, old)) if revision is None or int(old) < revision else []
                for start in range(0, len(keys), WRITTEN_AT_ONCE):
                    self._redis.unlink(*keys[start : start + WRITTEN_AT_ONCE])

    def active(self, view: str) -> int | None:
        with self._answering():
            found = self._redis.get(self._key("active", view))
        return None if found is None else int(found)

    def load_fields(self, number: int) -> list[str]:
        with self._answering():
            found = self._redis.hget(self._key("fields", ""), str(number))
        return msgspec.json.decode(found or b"[]", type=list[str])

    def save_fields(self, number: int, fields: list[str]) -> None:
        with self._answering():
            self._redis.hset(self._key("fields", ""), str(number), msgspec.json.encode(fields))

    def close(self) -> None:
        self._redis.close()

    def _bytes(self, keys: list[bytes]) -> list[bytes | None]:
        return self._redis.mget(keys)  # type: ignore[return-value]  # bytes, as decode_responses is off

    def _keys(self, view: str, revision: bytes) -> Iterator[bytes]:
        return self._scan(self._prefix(view, revision))

    def _scan(self, prefix: bytes) -> Iterator[bytes]:
        escaped = b"".join(b"\\" + bytes([c]) if c in b"[]{}*?\\^-" else bytes([c]) for c in prefix)
        with self._answering():
            yield from self._redis.scan_iter(match=escaped + b"*", count=1000)

    def _key(self, kind: str, view: str) -> bytes:
        return f"cw:{{{self.project}}}:{kind}:{view}".encode()

    def _prefix(self, view: str, revision: bytes) -> bytes:
        return self._key("value", view) + b":" + revision + b":"

    @contextmanager
    def _answering(self) -> Iterator[None]:
        import redis

        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise Unavailable(
                "online store", self._redis.connection_pool.connection_kwargs.get("host", "redis"),
                f"does not answer ({error})", "start Redis, or look at the setting online_url",
            ) from None  # fmt: skip
