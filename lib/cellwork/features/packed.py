"""How one entity's newest value is kept online: its place in the order of values, then what it says, in one piece of bytes.

The first 24 bytes are event, created and value hash, so that comparing them as bytes compares values as (event, created,
value hash): SQLite and Redis do it inside the write. Behind them stands the msgpack array ``[fields, batch, *values]``;
`fields` is the number of a list of feature names, which the store keeps once.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from cellwork.errors import BadInput
from cellwork.features.row import BATCH, CREATED, EVENT, value_hash

if TYPE_CHECKING:
    import polars as pl

PLACE = 24
"""Bytes of the place in the order."""
_SIGN = 1 << 63
_place = struct.Struct(">QQQ")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Any]).decode


def entity_key(values: Sequence[Any]) -> bytes:
    """Return the key of the entity whose join keys, in order of their names, have `values`. Raises BadInput for a number beyond 64 bits."""
    try:
        return _encode(values if type(values) is list else list(values))
    except OverflowError:
        raise _beyond(values) from None


def entity_keys(columns: Sequence[Sequence[Any]]) -> list[bytes]:
    """Return the key of each entity row, from one column a join key, in order of their names. Raises BadInput for a number beyond 64 bits."""
    try:
        return [_encode(row) for row in zip(*columns, strict=True)]
    except OverflowError:
        raise _beyond(next(row for row in zip(*columns, strict=True) if not _fits(row))) from None


def _fits(values: Sequence[Any]) -> bool:
    try:
        return bool(_encode(values))
    except OverflowError:
        return False


def _beyond(values: Sequence[Any]) -> BadInput:
    return BadInput("entity", list(values), "has a number beyond 64 bits", "write keys as the data has them")


def fields_number(fields: Sequence[str]) -> int:
    """Return the number of a list of feature names: 63 bits of its hash."""
    return int.from_bytes(hashlib.sha256(_encode(list(fields))).digest()[:8], "big") >> 1


def place(event: int, created: int, hashed: int) -> bytes:
    """Return the place of a value in the order; times in microseconds since 1970."""
    return _place.pack(event + _SIGN, created + _SIGN, hashed + _SIGN)


def pack(fields: int, values: Sequence[Any], *, event: int, created: int, hashed: int, batch: str) -> bytes:
    return place(event, created, hashed) + _encode([fields, batch, *values])


def times(packed: bytes) -> tuple[int, int]:
    """Return event and created, microseconds since 1970."""
    event, created, _ = _place.unpack_from(packed)
    return event - _SIGN, created - _SIGN


def unpack(records: Sequence[bytes]) -> list[list[Any]]:
    """Return ``[fields, batch, *values]`` of each record; all are decoded in one go."""
    whole = b"\xdd" + len(records).to_bytes(4, "big") + b"".join([record[PLACE:] for record in records])
    return _decode(whole)


def records(fields: Sequence[str], keys: Sequence[str], rows: pl.DataFrame) -> Iterable[tuple[bytes, bytes]]:
    """Yield (entity key, packed value) of feature rows, in their order.

    Parameters
    ----------
    keys : join keys in order of their names.
    rows : with `fields`, `keys`, both times and `_batch`.
    """
    import polars as pl

    number = fields_number(fields)
    columns = [rows.get_column(name).to_list() for name in fields]
    stamps = rows.select(pl.col(EVENT, CREATED).dt.cast_time_unit("us").to_physical())
    entities = entity_keys([rows.get_column(key).to_list() for key in keys])
    values = zip(*columns, strict=True) if columns else iter([()] * rows.height)
    each = zip(entities, values, stamps[EVENT].to_list(), stamps[CREATED].to_list(), rows[BATCH].to_list(), strict=True)
    for entity, value, event, created, batch in each:
        hashed = value_hash(dict(zip(fields, value, strict=True)))
        yield entity, pack(number, value, event=event, created=created, hashed=hashed, batch=batch or "")
