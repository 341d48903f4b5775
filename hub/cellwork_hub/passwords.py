"""Passwords and one-time codes: how they are kept, how they are compared, how often somebody may guess.

A password is kept as its argon2id hash; a code has 80 random bits, so its SHA-256 does. Neither is ever logged, audited
or answered. Guessing is slowed by name and address, so that nobody can lock a colleague out from elsewhere; the count is
in memory and bounded, and so is what guesses may cost: two hashes at a time.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from cellwork.errors import BadInput, TooBusy

LEAST, MOST, DISTINCT = 10, 512, 5
FREE, FREE_BY_NAME = 5, 50
"""Wrong answers in a row before one has to wait: from one address, and from all together."""
MOST_WAIT_SECONDS = 60.0
FORGET_SECONDS = 900.0
HASHES_AT_ONCE, PATIENCE_SECONDS = 2, 10.0
ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
"""Letters and digits that can't be mistaken for each other."""

_hasher = PasswordHasher()
_turn = threading.BoundedSemaphore(HASHES_AT_ONCE)


def new_code() -> str:
    """Return 80 random bits to be typed: a first password, or a code for choosing one."""
    return "-".join("".join(secrets.choice(ALPHABET) for _ in range(4)) for _ in range(4))


def code_hash(code: str) -> str:
    return hashlib.sha256(code.strip().lower().encode()).hexdigest()


def check_strength(password: str, name: str) -> None:
    """Raise BadInput for a password that is guessed early; its value is in no message."""
    if not LEAST <= len(password) <= MOST:
        raise BadInput(
            "password", "", f"has {len(password)} characters", f"choose {LEAST} to {MOST}; a sentence is good"
        )
    if len(set(password)) < DISTINCT or name in password.lower():
        raise BadInput(
            "password", "", "is easily guessed", "use other characters than your name or a few repeated ones"
        )


def hashed(password: str) -> str:
    with _taking_turns():
        return _hasher.hash(password)


_DECOY = _hasher.hash(secrets.token_hex(16))
"""What the password of an account that is not there is compared with, so that the time taken tells nothing."""


def matches(stored: str, password: str) -> bool:
    """Whether `password` has the hash `stored`; an empty or broken hash fits nothing, in the same time."""
    with _taking_turns():
        try:
            return _hasher.verify(stored or _DECOY, password[:MOST]) and bool(stored) and len(password) <= MOST
        except (VerificationError, InvalidHashError):
            return False


def outdated(stored: str) -> bool:
    """Whether `stored` was made with weaker parameters than today's."""
    return _hasher.check_needs_rehash(stored)


@contextmanager
def _taking_turns() -> Iterator[None]:
    if not _turn.acquire(timeout=PATIENCE_SECONDS):
        raise TooBusy("login", "", "has too many attempts at once", "try again in some seconds")
    try:
        yield
    finally:
        _turn.release()


class Throttle:
    """Counts wrong answers by key and makes the next one wait: 1, 2, 4 … at most 60 seconds. Remembers `most` keys."""

    def __init__(self, most: int = 10_000) -> None:
        self.most = most
        self._wrong: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, name: str, address: str) -> None:
        """Raise TooBusy if `name` (from `address`, or from anywhere) has to wait; the way out says how long."""
        with self._lock:
            left = max(self._left((name, address), FREE), self._left((name, ""), FREE_BY_NAME))
        if left > 0:
            verdict, way_out = "had too many wrong passwords", f"try again in {left:.0f} s"
            raise TooBusy("login", "", verdict, way_out)

    def wrong(self, name: str, address: str) -> None:
        now = time.monotonic()
        with self._lock:
            for key in {(name, address), (name, "")}:
                count, at = self._wrong.pop(key, (0, now))
                self._wrong[key] = (1 if now - at > FORGET_SECONDS else count + 1, now)
            while len(self._wrong) > self.most:
                self._wrong.popitem(last=False)

    def right(self, name: str, address: str) -> None:
        with self._lock:
            for key in ((name, address), (name, "")):
                self._wrong.pop(key, None)

    def _left(self, key: tuple[str, str], free: int) -> float:
        count, at = self._wrong.get(key, (0, 0.0))
        if count < free:
            return 0.0
        return min(2.0 ** min(count - free, 10), MOST_WAIT_SECONDS) - (time.monotonic() - at)
