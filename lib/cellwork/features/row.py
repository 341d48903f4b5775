"""What every feature row has, and the one order of values: (event, created, value hash).

A row holds join keys, features, ``event_timestamp`` (true from then), ``created_timestamp`` (arrived) and ``_batch`` (the
batch that caused it). Of two rows of an entity the later in that order is the newer, in history and online alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cellwork.errors import BadInput, near_miss
from cellwork.wire.features import View

if TYPE_CHECKING:
    import polars as pl

EVENT, CREATED, BATCH = "event_timestamp", "created_timestamp", "_batch"


def value_hash(values: Mapping[str, Any]) -> int:
    """Return 64 bits of the SHA-256 of `values`, whatever their order, as a signed number."""
    import msgspec

    packed = msgspec.msgpack.encode(sorted(values.items()))
    return int.from_bytes(hashlib.sha256(packed).digest()[:8], "big", signed=True)


def polars_type(name: str) -> pl.DataType:
    """Return the column type of a Feast value type such as ``Float32``.

    Raises
    ------
    BadInput
        Features of that type are not kept.
    """
    import polars as pl

    types: dict[str, pl.DataType] = {
        "Float32": pl.Float32(), "Float64": pl.Float64(), "Int32": pl.Int32(), "Int64": pl.Int64(), "Bool": pl.Boolean(),
        "String": pl.String(), "UnixTimestamp": pl.Datetime("us", "UTC"),
    }  # fmt: skip
    if name not in types:
        raise BadInput("feature type", name, "is not kept", near_miss(name, types))
    return types[name]


def schema(view: View) -> dict[str, pl.DataType]:
    """Return the columns of the features of `view` with their types."""
    return {field.name: polars_type(field.type) for field in view.fields}


def shaped(view: View, keys: Sequence[str], rows: pl.DataFrame) -> pl.DataFrame:
    """Return `rows` with exactly the columns of a feature row of `view`, each of its type; without a key or a time there is no row.

    Raises
    ------
    BadInput
        A column is missing, a time has no zone, or a value does not fit its type.
    """
    import polars as pl

    types = schema(view)
    needed = [*keys, *types, EVENT, CREATED, BATCH]
    require(f"rows of view {view.name!r}", rows, needed)
    for column in (EVENT, CREATED):
        require_time(f"rows of view {view.name!r}", rows, column)
    times = [pl.col(column).dt.convert_time_zone("UTC").dt.cast_time_unit("us") for column in (EVENT, CREATED)]
    try:
        typed = rows.with_columns(*times, *(pl.col(name).cast(dtype) for name, dtype in types.items()))
    except pl.exceptions.PolarsError as error:
        raise BadInput(
            f"view {view.name!r}",
            "",
            f"gets a value that is not of its field's type: {error}",
            "change the field's dtype",
        ) from None
    return typed.select(needed).drop_nulls([*keys, EVENT, CREATED])


def require(subject: str, rows: pl.DataFrame, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in rows.columns:
            raise BadInput(subject, column, "is a column they lack", near_miss(column, rows.columns))


def require_time(subject: str, rows: pl.DataFrame, column: str) -> None:
    import polars as pl

    require(subject, rows, [column])
    dtype = rows.schema[column]
    if not isinstance(dtype, pl.Datetime) or dtype.time_zone is None:
        raise BadInput(
            subject,
            column,
            f"is of type {dtype}, not a time with a zone",
            "make it one, e.g. timezone('UTC', column) in SQL",
        )
