"""The canonical content hash of a frame: the same for the same rows on every machine and with every library version.

Each value becomes 64 bits computed here (not by a library whose hash may change), each row two sums of them, each under multipliers
of its column, and the frame four sums over its rows, each of another mix of both. So neither rows nor columns have an order, equal rows
count as often as they occur, and no sorting is needed. It finds what differs by accident; it is no defence against somebody who
looks for two frames with one hash.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl

Hashes = NDArray[np.uint64]

BLOCK = 131_072
"""Rows that are hashed at once: few enough for the processor's cache, and enough that the calls to polars for each block don't count."""
_A, _B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST_BYTES = np.array([256**count - 1 for count in range(9)], np.uint64)
"""Masks of the first bytes of a word, by their number."""


def frame_sha256(frame: pl.DataFrame) -> str:
    """Return the content hash of `frame` as 64 hex digits: column names, types and rows; the order of either does not count."""
    columns = [frame.get_column(name) for name in sorted(frame.columns)]
    digest = hashlib.sha256(b"cellwork frame 2\n")
    for series in columns:
        digest.update(f"{len(series.name)}:{series.name}:{_type_name(series)}\n".encode())
    readable = [(_readable(series), *_multipliers(series.name)) for series in columns]

    def sums(start: int) -> Hashes:
        count = min(BLOCK, frame.height - start)
        return _sums([(series.slice(start, count), a, b) for series, a, b in readable], count)

    starts = range(0, frame.height, BLOCK)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        total = sum(pool.map(sums, starts), np.zeros(2, np.uint64))
    digest.update(frame.height.to_bytes(8, "big") + total.astype(">u8").tobytes())
    return digest.hexdigest()


def _sums(columns: list[tuple[pl.Series, np.uint64, np.uint64]], count: int) -> Hashes:
    """Return both sums over `count` rows of columns, each with its multipliers."""
    first, second, part = np.zeros((3, count), np.uint64)
    for series, a, b in columns:
        values = _hashes(series)
        np.multiply(values, a, out=part)
        first += part
        values *= b
        second += values
        if series.null_count():
            second[series.is_null().to_numpy()] += a  # some value hashes to 0 as null does; not here
    mix(first, part)
    second ^= first
    return np.array([first.sum(), mix(second, part).sum()], np.uint64)


def _multipliers(column: str) -> tuple[np.uint64, np.uint64]:
    digest = hashlib.sha256(column.encode()).digest()
    first, second = (int.from_bytes(digest[at : at + 8], "big") | 1 for at in (0, 8))
    return np.uint64(first), np.uint64(second)


def _type_name(series: pl.Series) -> str:
    import polars as pl

    dtype = series.dtype
    for family, text in ((dtype.is_integer(), "int"), (dtype.is_float(), "float"), (dtype == pl.Boolean, "bool")):
        if family:
            return text
    if isinstance(dtype, pl.Datetime):
        return "datetime"
    return "date" if dtype == pl.Date else "text" if dtype in (pl.String, pl.Categorical) else str(dtype).lower()


def _readable(series: pl.Series) -> pl.Series:
    """Return `series` as numbers, times or texts."""
    import polars as pl

    dtype = series.dtype
    known = dtype.is_numeric() or dtype in (pl.Boolean, pl.Date, pl.String) or isinstance(dtype, pl.Datetime)
    return series if known else series.cast(pl.String)


def _hashes(part: pl.Series) -> Hashes:
    """Return one hash per value; null is 0, -0.0 equals 0.0, every NaN equals every other."""
    import polars as pl

    if part.dtype == pl.String:
        hashes = hash_texts(_filled(part, ""))
    else:
        hashes = _bits(part)
        hashes += np.uint64(1)
        hashes *= _GOLDEN
        hashes ^= hashes >> np.uint64(32)
    if part.null_count():
        hashes[part.is_null().to_numpy()] = 0
    return hashes


def _filled(part: pl.Series, value: str | float) -> pl.Series:
    """Return `part` with `value` for null; a column without nulls, as most are, is not looked through once more."""
    return part.fill_null(value) if part.null_count() else part


def _bits(part: pl.Series) -> Hashes:
    """Return each value as 64 bits of its own, in memory of its own; what stands for null does not matter."""
    import polars as pl

    if part.dtype.is_float():
        floats = _filled(part.cast(pl.Float64), 0.0).to_numpy() + 0.0
        floats[np.isnan(floats)] = np.nan
        return floats.view(np.uint64)
    if isinstance(part.dtype, pl.Datetime):
        part = part.cast(pl.Datetime("us"))
    whole = _filled(part.to_physical().cast(pl.Int64), 0).to_numpy()
    return np.array(whole, np.int64).view(np.uint64)


def hash_texts(texts: pl.Series) -> Hashes:
    """Return a hash of each text (no nulls) from its UTF-8 bytes: eight at a time, all rows at once. It stays for ever."""
    import pyarrow as pa

    array = texts.to_arrow().cast(pa.large_string())
    _, offsets, data = array.buffers()
    edges = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    padded = np.frombuffer(bytes(data or b"") + bytes(8), np.uint8)
    words: Hashes = np.ndarray((len(padded) - 7,), "<u8", padded, strides=(1,))
    left = np.diff(edges)
    hashes = left.astype(np.uint64)
    if left.all():
        hashes, done = _with_word(hashes, words[edges[:-1]], left), 8
    else:
        done = 0
    rows = np.flatnonzero(left > done)
    while len(rows):
        hashes[rows] = _with_word(hashes[rows], words[edges[rows] + done], left[rows] - done)
        done += 8
        rows = rows[left[rows] > done]
    hashes += _GOLDEN
    return mix(hashes)


def _with_word(states: Hashes, words: Hashes, left: NDArray[np.int64]) -> Hashes:
    """Return `states` with the next word of each text, of which so many bytes are `left`; `words` is overwritten."""
    words &= _FIRST_BYTES[np.minimum(left, 8)]
    words ^= states
    words *= _A
    words ^= words >> np.uint64(29)
    words *= _B
    return words


def mix(values: Hashes, room: Hashes | None = None) -> Hashes:
    """Return Stafford's mix 13 (the finaliser of SplitMix64; Steele, Lea, Flood 2014) of each, in place; `room` is overwritten."""
    part = np.empty_like(values) if room is None else room
    for shift, factor in ((30, _A), (27, _B)):
        np.right_shift(values, np.uint64(shift), out=part)
        values ^= part
        values *= factor
    np.right_shift(values, np.uint64(31), out=part)
    values ^= part
    return values
