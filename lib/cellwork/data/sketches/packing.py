"""Sketches as bytes: a version, then MessagePack, compressed. Sorted arrays are kept as differences of their bits, byte by byte.

A column of a million different numbers takes about 20 kB, one of few values some hundred bytes.
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from cellwork.data.sketches.table import Sketch
from cellwork.errors import BadInput

VERSION = b"cellwork sketch 1\n"
MOST_BYTES = 2**30
"""Of one sketch unpacked; more is no sketch."""


def pack(sketch: Sketch) -> bytes:
    """Return `sketch` as bytes; equal sketches give equal bytes."""
    import pyarrow as pa

    plain = msgspec.msgpack.encode(sketch, enc_hook=_array_out)
    packed: bytes = pa.Codec("zstd", compression_level=1).compress(plain, asbytes=True)
    return VERSION + len(plain).to_bytes(8, "little") + packed


def unpack(data: bytes) -> Sketch:
    """Return the sketch in `data`.

    Raises
    ------
    BadInput
        It is cut, damaged, or of another version.
    """
    import pyarrow as pa

    head = len(VERSION)
    size = int.from_bytes(data[head : head + 8], "little")
    if not data.startswith(VERSION) or not 0 < size <= MOST_BYTES:
        raise BadInput(
            "sketch", f"{len(data)} bytes", "are not a sketch of this version", "make it again from the rows"
        )
    try:
        plain = pa.decompress(data[head + 8 :], size, codec="zstd", asbytes=True)
        return msgspec.msgpack.decode(plain, type=Sketch, dec_hook=_array_in)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise BadInput(
            "sketch", f"{len(data)} bytes", f"can't be read: {error}", "make it again from the rows"
        ) from None


def _array_out(array: Any) -> bytes:
    """Return an array of 8-byte numbers: differences of neighbours' bits, all lowest bytes first."""
    bits = np.ascontiguousarray(array).view(np.uint64)
    steps = np.diff(bits, prepend=np.uint64(0))
    return steps.astype("<u8").view(np.uint8).reshape(-1, 8).T.tobytes()


def _array_in(wanted: Any, data: bytes) -> NDArray[Any]:
    steps = np.frombuffer(data, np.uint8).reshape(8, -1).T.copy().view("<u8").ravel()
    dtype = get_args(get_args(wanted)[1])[0]
    return np.cumsum(steps, dtype=np.uint64).view(dtype)
