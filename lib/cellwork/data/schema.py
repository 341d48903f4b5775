"""The schema of a raw data set: pinned by its first batch, enforced for all that follow.

Raw columns have one of seven types, so that equal content is one content whatever library wrote it: ``bool``, ``int64``,
``double``, ``string``, ``date32[day]``, ``timestamp[us, tz=UTC]``, and ``null`` for a column without a value so far,
which takes the type of the first value that comes. Nothing is guessed and nothing loses a digit: whole numbers widen to a
pinned ``double``, a ``double`` of whole numbers only fits a pinned ``int64`` (pandas writes integers with gaps that
way), and NaN is a missing value. All else is refused with the column, what came and what was expected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cellwork.errors import BadInput, near_miss
from cellwork.wire.batches import Column

if TYPE_CHECKING:
    import polars as pl

RESERVED = ("_batch", "_row", "_reason")
"""Column names that the platform writes itself."""

EXACT = 2**53
"""Up to here a float holds every whole number."""


def types() -> dict[str, pl.DataType]:
    """Return Arrow type text -> polars type of the seven types."""
    import polars as pl

    return {
        "bool": pl.Boolean(),
        "int64": pl.Int64(),
        "double": pl.Float64(),
        "string": pl.String(),
        "date32[day]": pl.Date(),
        "timestamp[us, tz=UTC]": pl.Datetime("us", "UTC"),
        "null": pl.Null(),
    }


def type_of(text: str, column: str) -> pl.DataType:
    known = types()
    if text not in known:
        raise BadInput(f"type of column {column!r}", text, "is not a type of raw data", near_miss(text, known))
    return known[text]


def columns(frame: pl.DataFrame) -> list[Column]:
    """Return the columns of a canonical frame, in its order."""
    names = {dtype: text for text, dtype in types().items()}
    return [Column(name=name, type=names[dtype]) for name, dtype in frame.schema.items()]


def canonical(frame: pl.DataFrame) -> pl.DataFrame:
    """Return `frame` with each column in one of the seven types.

    Raises
    ------
    BadInput
        A name is reserved, empty or told from another only by case; a time has no zone; a type can't be kept.
    """
    _check_names(frame.columns)
    return frame.select(_canonical_column(frame.get_column(name)) for name in frame.columns)


def _check_names(names: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if not name.strip():
            raise BadInput("column name", repr(name), "is empty", "give every column a name")
        if name in RESERVED:
            raise BadInput("column", name, "has a name that the platform writes itself", "rename it")
        if name.lower() in seen:
            other = seen[name.lower()]
            raise BadInput("column", name, f"differs from {other!r} only by case, which SQL can't tell", "rename one")
        seen[name.lower()] = name


def _canonical_column(series: pl.Series) -> pl.Series:
    import polars as pl

    dtype, known = series.dtype, types()
    if dtype.is_float():
        series = series.cast(pl.Float64).fill_nan(None)
    if series.null_count() == len(series):
        return pl.Series(series.name, [None] * len(series), dtype=pl.Null)
    if dtype.is_integer():
        return _cast(series, known["int64"], "holds a number beyond 64 bits")
    if isinstance(dtype, pl.Datetime):
        return _zoned(series, dtype)
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return series.cast(pl.String)
    if dtype.is_float() or dtype in (pl.Boolean, pl.Date):
        return series
    raise BadInput(f"column {series.name!r}", dtype, "is a type that raw data does not keep", way_out(dtype))


def _zoned(series: pl.Series, dtype: pl.Datetime) -> pl.Series:
    if dtype.time_zone is None:
        sample = series.drop_nulls()[0]
        raise BadInput(
            f"column {series.name!r}",
            sample,
            "is a time without a zone, which could mean any hour",
            f"say which: frame.with_columns(pl.col({series.name!r}).dt.replace_time_zone('Europe/Berlin')), or keep it as text",
        )
    return series.dt.convert_time_zone("UTC").dt.cast_time_unit("us")


def way_out(dtype: pl.DataType) -> str:
    """Return what to do with a column of a type that raw data does not keep."""
    import polars as pl

    ways: dict[type[pl.DataType], str] = {
        pl.Time: "cast it to text",
        pl.Duration: "cast it to seconds with dt.total_seconds()",
        pl.Struct: "unnest it into columns of its own",
        pl.List: "explode it into rows, or write it as JSON text",
        pl.Array: "give each element a column of its own",
        pl.Decimal: "cast it to Float64, or to text to keep every digit",
        pl.Binary: "encode it as text",
    }
    return ways.get(type(dtype), f"cast it to one of {', '.join(types())}")


def _cast(series: pl.Series, dtype: pl.DataType, verdict: str) -> pl.Series:
    import polars as pl

    try:
        return series.cast(dtype, strict=True)
    except pl.exceptions.PolarsError:
        raise BadInput(f"column {series.name!r}", series.dtype, verdict, "cast it to Float64 or text") from None


def conform(frame: pl.DataFrame, pinned: Sequence[Column], dataset: str) -> pl.DataFrame:
    """Return the canonical `frame` with the pinned columns in their order and types.

    Raises
    ------
    BadInput
        A column is missing, extra or of another type; the message names it, what came and what was expected.
    """
    if not pinned:
        return frame
    names = [column.name for column in pinned]
    extra = [name for name in frame.columns if name not in names]
    for name in names:
        if name not in frame.columns:
            raise BadInput(f"column {name!r} of {dataset}", "", "is missing in this batch", _missing(name, extra))
    if extra:
        way_out = f"leave it out or rename it; {near_miss(extra[0], names)}"
        raise BadInput(f"column {extra[0]!r}", "", f"is not in the schema of {dataset}", way_out)
    return frame.select(_fitted(frame.get_column(column.name), column, dataset) for column in pinned)


def _missing(name: str, extra: list[str]) -> str:
    if not extra:
        return "send it, filled with nulls where there is no value"
    return f"this batch has {', '.join(map(repr, extra))} instead: rename it to {name!r}, or add the missing column"


def _fitted(series: pl.Series, column: Column, dataset: str) -> pl.Series:
    import polars as pl

    expected = type_of(column.type, column.name)
    if series.dtype == expected or column.type == "null":
        return series
    if series.null_count() == len(series):
        return pl.Series(series.name, [None] * len(series), dtype=expected)
    if column.type == "double" and series.dtype == pl.Int64 and _exact(series):
        return series.cast(pl.Float64)
    if column.type == "int64" and series.dtype == pl.Float64 and _whole(series):
        return series.cast(pl.Int64)
    came = columns(series.to_frame())[0].type
    sample = series.drop_nulls()[0]
    verdict = f"came as {came} (such as {sample!r}); {dataset} has it as {column.type} since its first batch"
    raise BadInput(
        f"column {column.name!r}", came, verdict, f"cast it to {column.type}, or ingest into another data set"
    )


def _exact(values: pl.Series) -> bool:
    """Return whether every whole number of `values` is the one that was meant: a float of 2**53 may have been 2**53 + 1."""
    found = values.drop_nulls()
    if values.dtype.is_float():
        return bool(found.is_between(-EXACT, EXACT, closed="none").all())
    return bool(found.is_between(-EXACT, EXACT).all())


def _whole(series: pl.Series) -> bool:
    values = series.drop_nulls()
    return bool(values.is_finite().all() and (values == values.round()).all()) and _exact(values)


def content_sha256(frame: pl.DataFrame) -> str:
    """Return the content hash of a canonical frame; a column of nulls has no type in it, as it had none when it came first."""
    import polars as pl

    from cellwork import content

    empty = [name for name in frame.columns if frame.get_column(name).null_count() == frame.height]
    return content.frame_sha256(frame.with_columns(pl.lit(None, dtype=pl.Null).alias(name) for name in empty))


def complete(frame: pl.DataFrame, pinned: Iterable[Column]) -> pl.DataFrame:
    """Return `frame` with the pinned columns that a table of no value yet does not hold, as nulls, in the pinned order first."""
    import polars as pl

    wanted = {column.name: type_of(column.type, column.name) for column in pinned}
    missing = [pl.lit(None, dtype=dtype).alias(name) for name, dtype in wanted.items() if name not in frame.columns]
    rest = [name for name in frame.columns if name not in wanted]
    return frame.with_columns(missing).select(*wanted, *rest)
