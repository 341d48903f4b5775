"""Ids `<kind>_<26 characters>`, and names.

A content id is the same for the same content on every machine and with every library version; a ULID sorts by time.
"""

from __future__ import annotations

import hashlib
import os
import re
import time

from cellwork.errors import BadInput

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32
PAIRS = [a + b for a in ALPHABET for b in ALPHABET]
CONTENT_KINDS = frozenset({"bat", "fset", "ds", "env", "tf"})
TIME_KINDS = frozenset(
    {
        "run",
        "pred",
        "evt",
        "alr",
        "dep",
        "eval",
        "fire",
        "job",
        "prun",
        "prop",
        "join",
        "build",
        "req",
        "ers",
        "ovr",
        "key",
        "fb",
        "sub",
    }
)
NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
USER = re.compile(r"(?=.{1,32}\Z)[a-z][a-z0-9]*(-[a-z0-9]+)*")
NO_USERS = frozenset(
    {
        "admin",
        "anonymous",
        "api",
        "cellwork",
        "cli",
        "dashboards",
        "hub",
        "inference",
        "jobs",
        "login",
        "mlflow",
        "nobody",
    }
    | {"none", "null", "platform", "root", "runner", "self", "service", "services", "user", "users"}
)
"""Names that would read like a part of the platform in a log or an address."""


def _base32(number: int) -> str:
    return "".join([PAIRS[(number >> shift) & 1023] for shift in range(120, -1, -10)])


def new(kind: str) -> str:
    """Return a fresh ULID of `kind`: 48 bits of milliseconds, 80 random bits."""
    if kind not in TIME_KINDS:
        raise BadInput("id kind", kind, "is not made from time", f"use one of {', '.join(sorted(TIME_KINDS))}")
    return f"{kind}_{_base32(time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10), 'big'))}"


def moment(text: str) -> int:
    """Return the milliseconds since 1970 that the ULID of the id `text` tells; of an id that is none, any number."""
    number = 0
    for letter in text.rpartition("_")[2][:10]:
        number = number << 5 | max(ALPHABET.find(letter), 0)
    return number


class Sequence:
    """Fresh ULIDs, many at a time: the random part is drawn once and counted up, as the ULID specification has it.

    One thread; `bodies` come without a kind, in ascending order.
    """

    def __init__(self) -> None:
        self._millisecond, self._start, self._count = 0, "", 0

    def bodies(self, count: int) -> list[str]:
        now = time.time_ns() // 1_000_000
        if now > self._millisecond or self._count + count >= 1 << 25:
            self._millisecond = max(now, self._millisecond + (now <= self._millisecond))
            drawn = int.from_bytes(os.urandom(10), "big") >> 26 << 25  # room to count without a carry
            self._start, self._count = _base32(self._millisecond << 80 | drawn)[:21], 0
        first, start = self._count, self._start
        self._count += count
        return [
            f"{start}{ALPHABET[n >> 20]}{PAIRS[n >> 10 & 1023]}{PAIRS[n & 1023]}" for n in range(first, first + count)
        ]


def of_content(kind: str, *parts: bytes | str) -> str:
    """Return the id of the content `parts`; their boundaries count."""
    if kind not in CONTENT_KINDS:
        raise BadInput("id kind", kind, "is not made from content", f"use one of {', '.join(sorted(CONTENT_KINDS))}")
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return f"{kind}_{_base32(int.from_bytes(digest.digest()[:16], 'big'))}"


def of_key(kind: str, *parts: str) -> str:
    """Return the id of `kind` that belongs to the idempotency key `parts`: the same key, the same id; it does not sort by time."""
    if kind not in TIME_KINDS:
        raise BadInput("id kind", kind, "has no idempotency key", f"use one of {', '.join(sorted(TIME_KINDS))}")
    data = b"".join(len(part.encode()).to_bytes(8, "big") + part.encode() for part in parts)
    return f"{kind}_{_base32(int.from_bytes(hashlib.sha256(data).digest()[:16], 'big'))}"


def check(text: str, kind: str) -> str:
    """Return `text` if it is an id of `kind`, else raise BadInput."""
    if not re.fullmatch(rf"{kind}_[{ALPHABET}]{{26}}", text):
        raise BadInput(f"{kind} id", text, "is not an id", f"ids look like {kind}_ and 26 characters")
    return text


def name(text: str, subject: str = "name") -> str:
    """Return `text` if it is a name (lower case, digits, ``_`` and ``-``, at most 63), else raise BadInput."""
    if not NAME.fullmatch(text):
        raise BadInput(subject, text, "is not a name", "use a-z first, then a-z, 0-9, _ and -, at most 63 characters")
    return text


def user(text: str) -> str:
    """Return `text` if it may name a person, else raise BadInput.

    A letter, then letters, digits and single hyphens, at most 32: every spawner, volume, folder and host name takes such
    a name as it is, so that no two of them meet in one place.
    """
    if not USER.fullmatch(text) or text in NO_USERS:
        verdict = "is a word of the platform's own" if text in NO_USERS else "is not a user name"
        way_out = "use a-z first, then a-z, 0-9 and single hyphens between them, at most 32 characters, such as ada-l"
        raise BadInput("user", text[:80], verdict, way_out)
    return text


def split_name(full: str) -> tuple[str, str]:
    """Return project and name of a full name ``project/name``."""
    project, slash, rest = full.partition("/")
    if not slash:
        raise BadInput("full name", full, "has no project", "write project/name")
    return name(project, "project"), name(rest)
