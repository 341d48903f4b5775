"""What every feature row has, and the one order of values: (event, created, value hash).

A row holds join keys, features, ``event_timestamp`` (true from then), ``created_timestamp`` (arrived) and ``_batch`` (the
batch that caused it). Of two rows of an entity the later in that order is the newer, in history and online alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cellwork import clock
from cellwork.data.schema import EXACT
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
        A column is missing, a time has no zone, or a value does not fit its type (see `fitted`).
    """
    import polars as pl

    types = schema(view)
    needed = [*keys, *types, EVENT, CREATED, BATCH]
    require(f"rows of view {view.name!r}", rows, needed)
    for column in (EVENT, CREATED):
        require_time(f"rows of view {view.name!r}", rows, column)
    times = [pl.col(column).dt.convert_time_zone("UTC").dt.cast_time_unit("us") for column in (EVENT, CREATED)]
    features = [fitted(view, rows.get_column(name), dtype) for name, dtype in types.items()]
    return rows.with_columns(*times, *features).select(needed).drop_nulls([*keys, EVENT, CREATED])


def fitted(view: View, column: pl.Series, dtype: pl.DataType, *, of: str = "field") -> pl.Series:
    """Return a column of `view` as `dtype`, with every value as it was; a float type rounds, and a text is read.

    Parameters
    ----------
    of : what has the type: a ``field`` or a ``key``.

    Raises
    ------
    BadInput
        A value would become another: a fraction, or a float of 2**53 and more, as a whole number; a number as a time, or as
        true or false; a list or an object as anything. A text is a time only in ISO 8601 with a zone.
    """
    import polars as pl

    why = _misfit(column, dtype)
    if not why and column.dtype == pl.String and isinstance(dtype, pl.Datetime):
        column = pl.Series(
            column.name, [None if at is None else clock.utc(at) for at in column], pl.Datetime("us", "UTC")
        )
    try:
        if not why:
            return column.cast(dtype)
    except pl.exceptions.PolarsError as error:
        why = str(error)
    like = "a time such as 2013-11-01T00:00:00Z" if isinstance(dtype, pl.Datetime) else str(dtype)
    verdict, way_out = f"gets a value that is not of its {of}'s type: {why}", f"make it {like}"
    raise BadInput(
        f"view {view.name!r}",
        column.name,
        verdict,
        f"{way_out}, or change the field's dtype" if of == "field" else way_out,
    )


def _misfit(column: pl.Series, dtype: pl.DataType) -> str:
    """Return why a cast would make another value of one of `column`, as far as it would not say so itself; or nothing."""
    import polars as pl

    kind = column.dtype
    found = column.drop_nulls()
    if kind.is_nested() or kind == pl.Object:
        return "a list or an object is not one value"
    if found.is_empty():
        return ""
    if isinstance(dtype, pl.Datetime) and (kind.is_numeric() or kind == pl.Boolean):
        return f"{found[0]} is a number, not a time"
    if dtype == pl.Boolean and kind.is_numeric():
        return f"{found[0]} is a number, not true or false"
    if dtype.is_integer() and (kind.is_float() or kind.is_decimal()):
        odd = found.filter((found != found.round(0)) | (found.abs() >= EXACT if kind.is_float() else False))
        return f"{odd[0]} is no whole number below 2**53" if len(odd) else ""
    return ""


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
