"""Ids `<kind>_<26 characters>`, names, and the canonical content hash of a frame.

A content id is the same for the same content on every machine and with every library version; a ULID sorts by time.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from cellwork.errors import BadInput

if TYPE_CHECKING:
    import polars as pl

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32
PAIRS = [a + b for a in ALPHABET for b in ALPHABET]
CONTENT_KINDS = frozenset({"bat", "fset", "ds", "env", "tf"})
TIME_KINDS = frozenset(
    {"run", "pred", "evt", "alr", "dep", "eval", "fire", "job", "prun", "prop", "join", "req", "ers"}
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
    return "".join(ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))


def new(kind: str) -> str:
    """Return a fresh ULID of `kind`: 48 bits of milliseconds, 80 random bits."""
    if kind not in TIME_KINDS:
        raise BadInput("id kind", kind, "is not made from time", f"use one of {', '.join(sorted(TIME_KINDS))}")
    return f"{kind}_{_base32(time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10), 'big'))}"


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


def frame_sha256(frame: pl.DataFrame) -> str:
    """Return the content hash of `frame` as 64 hex digits: column names, types and rows; the order of either does not count.

    Each value gets a 64-bit hash computed here (not by a library whose hash may change), each row two sums of them under
    different multipliers, and the sorted rows are hashed with SHA-256. Equal rows count as often as they occur.
    """
    import numpy as np

    digest = hashlib.sha256()
    columns = sorted(frame.columns)
    rows = np.zeros((frame.height, 2), dtype=np.uint64)
    for column in columns:
        series = frame.get_column(column)
        digest.update(f"{len(column)}:{column}:{_type_name(series)}\n".encode())
        _add(rows, series, int.from_bytes(hashlib.sha256(column.encode()).digest()[:8], "big") | 1)
    digest.update(_in_order(rows).astype(">u8").tobytes())
    return digest.hexdigest()


BLOCK = 65_536
"""Rows that are hashed at once: what comes between fits into the processor's cache."""


def _add(rows: Any, series: pl.Series, seed: int) -> None:
    """Add the values of `series` to both sums of each row."""
    import numpy as np
    import polars as pl

    plain = series.dtype.is_numeric() or series.dtype.is_temporal() or series.dtype == pl.Boolean
    texts = None if plain else _value_hashes(series)

    def add(start: int) -> None:
        part = series.slice(start, BLOCK)
        values = _value_hashes(part) if texts is None else texts[start : start + BLOCK]
        sums = rows[start : start + BLOCK]
        sums[:, 0] += _mix(values ^ np.uint64(seed))
        sums[:, 1] += _mix(values * np.uint64(seed) + np.uint64(seed >> 7))
        if part.null_count():
            sums[part.is_null().to_numpy(), 1] += np.uint64(seed >> 1)  # some value hashes to 0 as null does; not here

    if len(series) <= BLOCK:
        add(0)
        return
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(add, range(0, len(series), BLOCK)))


def _in_order(rows: Any) -> Any:
    """Return `rows` (n, 2) by their first and then their second number; equal first ones are rare, so the rest is sorted once."""
    import numpy as np

    order = np.argsort(rows[:, 0].copy())
    first, second = rows[order, 0], rows[order, 1]
    same = np.concatenate([[False], first[1:] == first[:-1]]) if len(rows) else np.zeros(0, bool)
    if same.any():
        tied = np.flatnonzero(same | np.append(same[1:], False))
        second[tied] = second[tied][np.lexsort((second[tied], first[tied]))]
    return np.stack([first, second], axis=1)


def _type_name(series: pl.Series) -> str:
    import polars as pl

    dtype = series.dtype
    for family, text in ((dtype.is_integer(), "int"), (dtype.is_float(), "float"), (dtype == pl.Boolean, "bool")):
        if family:
            return text
    if isinstance(dtype, pl.Datetime):
        return "datetime"
    return "date" if dtype == pl.Date else "text" if dtype in (pl.String, pl.Categorical) else str(dtype).lower()


def _value_hashes(series: pl.Series) -> Any:
    """Return one uint64 per value; null is 0, and -0.0 equals 0.0, and every NaN equals every other."""
    import numpy as np
    import polars as pl

    dtype, nulls = series.dtype, series.is_null().to_numpy() if series.null_count() else None
    if isinstance(dtype, pl.Datetime):
        bits = series.cast(pl.Datetime("us")).to_physical().fill_null(0).to_numpy()
    elif dtype.is_float():
        floats = series.cast(pl.Float64).fill_null(0.0).to_numpy() + 0.0
        bits = np.where(np.isnan(floats), np.nan, floats).view(np.int64)
    elif dtype.is_integer() or dtype in (pl.Boolean, pl.Date):
        bits = series.to_physical().cast(pl.Int64).fill_null(0).to_numpy()
    else:
        return _text_hashes(series.cast(pl.String) if dtype != pl.String else series)
    hashes = _mix(bits.astype(np.int64, copy=False).view(np.uint64) + np.uint64(1))
    return hashes if nulls is None else np.where(nulls, np.uint64(0), hashes)


def _text_hashes(series: pl.Series) -> Any:
    import numpy as np
    import polars as pl

    unique = series.unique()
    table = {
        text: int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in unique if text is not None
    }
    hashed = (
        series.replace_strict(table, default=0, return_dtype=pl.UInt64)
        if table
        else series.is_null().cast(pl.UInt64) * 0
    )
    return hashed.fill_null(0).to_numpy().astype(np.uint64)


def _mix(values: Any) -> Any:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014), elementwise on uint64."""
    import numpy as np

    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
