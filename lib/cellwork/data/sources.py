"""Read what an author has (a polars or pandas frame; a CSV, JSON lines or parquet file, compressed or not) as a polars frame.

Text formats carry no types. Numbers and true/false are recognised over the whole file; dates are (``2013-01-31``); times
are when they have a zone (``2013-01-01T10:00:00Z``, ``…-05:00``); a time without one stays text. Columns whose type is known already,
from `known`, are read as that type, so that codes such as ``007`` keep their zeros.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellwork.data import schema
from cellwork.errors import BadInput, NotFound, TooLarge

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    Source = pl.DataFrame | pd.DataFrame | str | Path

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4", ".zip": "zip"}
MOST_COLUMNS = 10_000
"""Of a text file: each line of JSON may name columns of its own, and every row has all of them."""
DATE, TIME = r"^\d{4}-\d\d-\d\d$", r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:?\d\d)$"


def read(source: Source, *, nulls: Sequence[str] = ("",), known: Mapping[str, str] | None = None) -> pl.DataFrame:
    """Return the rows of `source`.

    Parameters
    ----------
    nulls : texts of a CSV file that stand for a missing value.
    known : column -> Arrow type text, as in `Batch.columns`, for text formats.

    Raises
    ------
    BadInput
        It is empty, broken, or of a kind that is not read.
    TooLarge
        It has more than `MOST_COLUMNS` columns, or more than `delivery.MOST_CELLS` values.
    NotFound
        There is no such file.
    """
    import polars as pl

    if isinstance(source, pl.DataFrame):
        return source
    if isinstance(source, str) and "://" in source:
        with _fetched(source) as path:
            return _file(path, list(nulls), known or {})
    if isinstance(source, str | Path):
        return _file(Path(source), list(nulls), known or {})
    if hasattr(source, "to_numpy") and hasattr(source, "columns"):
        return _pandas(source)
    way_out = "give a polars or pandas DataFrame, or the path of a CSV, JSON lines or parquet file"
    raise BadInput("source", type(source).__name__, "is not something to ingest", way_out)


def _pandas(frame: pd.DataFrame) -> pl.DataFrame:
    import polars as pl

    try:
        return pl.from_pandas(frame)
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(
            "pandas frame", "", f"has a column of mixed types: {reason}", "give each column one type"
        ) from None


@contextmanager
def _fetched(url: str) -> Iterator[Path]:
    """Yield a copy of the file at a location that fsspec knows (``s3://…``, ``https://…``, ``file://…``), under its name."""
    import fsspec  # type: ignore[import-untyped]

    name = url.rsplit("/", 1)[-1].partition("?")[0] or "file"
    with tempfile.TemporaryDirectory(prefix="cellwork-") as folder:
        try:
            with fsspec.open(url, "rb") as there, (Path(folder) / name).open("wb") as here:
                shutil.copyfileobj(there, here, 2**20)
        except FileNotFoundError:
            raise NotFound("file", url, "does not exist", "check the location") from None
        except (OSError, ValueError, ImportError) as error:
            raise BadInput("file", url, f"can't be read: {error}", "check the location and your access to it") from None
        yield Path(folder) / name


def text(
    data: bytes, kind: str, *, nulls: Sequence[str] = ("",), known: Mapping[str, str] | None = None
) -> pl.DataFrame:
    """Return the rows of `data`, a whole file of the `kind` csv, tsv or jsonl, as it came in a request.

    Raises
    ------
    BadInput
        It is empty or broken.
    TooLarge
        It has more than `MOST_COLUMNS` columns, or more than `delivery.MOST_CELLS` values.
    """
    import polars as pl

    if not data.strip():
        raise BadInput("delivery", "", "is empty", "send at least one row")
    try:
        types = {name: schema.type_of(type_, name) for name, type_ in (known or {}).items()}
        return _parsed(data, kind, list(nulls), types)
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0][:300]
        raise BadInput("delivery", "", f"can't be read as {kind}: {reason}", "mend it and send it again") from None


def _file(path: Path, nulls: list[str], known: Mapping[str, str]) -> pl.DataFrame:
    import polars as pl

    if not path.is_file():
        raise NotFound("file", path, "does not exist", "check the path")
    kind = _kind(path)
    data = _unpacked(path)
    if not data.strip():
        raise BadInput("file", path, "is empty", "write at least one row into it")
    try:
        return _parsed(data, kind, nulls, {name: schema.type_of(text, name) for name, text in known.items()})
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0][:300]
        raise BadInput("file", path, f"can't be read as {kind}: {reason}", "mend it or write it again") from None


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    if suffixes and suffixes[-1] in FORMATS:
        return FORMATS[suffixes[-1]]
    if path.suffix.lower() == ".zip":
        return FORMATS.get(Path(_unzipped(path)[0]).suffix.lower(), "csv")
    way_out = f"name it {', '.join(FORMATS)}, with {', '.join(COMPRESSED)} behind that if it is compressed"
    raise BadInput("file", path.name, "has a name that does not tell its format", way_out)


def _unzipped(path: Path) -> tuple[str, bytes]:
    """Return name and content of the one file in a zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name]
            if len(names) != 1:
                raise BadInput("zip file", path, f"holds {len(names)} files", "put exactly one file into it")
            return names[0], archive.read(names[0])
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise BadInput("zip file", path, f"can't be unpacked: {error}", "write it again") from None


def _unpacked(path: Path) -> bytes:
    import pyarrow as pa

    packed = COMPRESSED.get(path.suffix.lower())
    if packed == "zip":
        return _unzipped(path)[1]
    try:
        with pa.input_stream(str(path), compression=packed) as stream:
            data: bytes = stream.read()
            return data
    except (OSError, pa.ArrowException) as error:
        raise BadInput("file", path, f"can't be unpacked: {error}", "write it again") from None


def _parsed(data: bytes, kind: str, nulls: list[str], known: Mapping[str, pl.DataType]) -> pl.DataFrame:
    import polars as pl

    from cellwork.data import delivery

    if kind == "parquet":
        return delivery.unpack(data)
    if kind == "jsonl":
        _check_lines(data)
        frame = pl.read_ndjson(data, infer_schema_length=None)
        return _dated(frame, known)
    return _csv(data, "\t" if kind == "tsv" else ",", nulls, known)


def _check_lines(data: bytes) -> None:
    """Raise what `text` does of JSON lines that make more rows times columns than they have bytes for, or that are nested."""
    import msgspec
    import polars as pl

    decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
    names: set[str] = set()
    lines = 0
    for number, line in enumerate(io.BytesIO(data), 1):
        if line.isspace():
            continue
        try:
            row = decoder.decode(line)
        except msgspec.DecodeError as error:
            verdict = f"can't be read as jsonl: line {number}: {error}"
            raise BadInput("delivery", "", verdict, "mend it and send it again") from None
        if b"[" in line or line.count(b"{") > 1:
            for name, value in row.items():
                if (first := bytes(value)[:1]) in (b"[", b"{"):
                    kind = pl.List(pl.Null()) if first == b"[" else pl.Struct([])
                    verdict = f"is a {type(kind).__name__.lower()} in line {number}, which raw data does not keep"
                    raise BadInput(f"column {name!r}", "", verdict, schema.way_out(kind))
        lines += 1
        if not names.issuperset(row):
            names.update(row)
            _check_cells(lines, len(names))
    _check_cells(lines, len(names))


def _check_cells(lines: int, columns: int) -> None:
    from cellwork.data import delivery

    if columns > MOST_COLUMNS:
        way_out = "give each value a row of its own, with its name in a column"
        raise TooLarge("delivery", f"{columns:,} columns", f"are more than {MOST_COLUMNS:,}", way_out)
    if lines * columns > delivery.MOST_CELLS:
        verdict = f"of all {columns:,} columns are more than {delivery.MOST_CELLS:,} values"
        raise TooLarge("delivery", f"{lines:,} lines", verdict, "send it in parts")


def _csv(data: bytes, separator: str, nulls: list[str], known: Mapping[str, pl.DataType]) -> pl.DataFrame:
    import polars as pl

    common: dict[str, Any] = {"separator": separator, "null_values": nulls, "infer_schema_length": None}
    header = pl.read_csv(data, n_rows=0, **{**common, "infer_schema_length": 0}).columns
    _check_cells(data.count(b"\n"), len(header))
    plain = {name: dtype for name, dtype in known.items() if name in header and dtype in (pl.String, pl.Float64)}
    return _dated(pl.read_csv(data, schema_overrides=plain, **common), known)


def _dated(frame: pl.DataFrame, known: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Return `frame` with text that is dates, or times with a zone, throughout as such; unless it is known as text."""
    import polars as pl

    texts = [n for n, dtype in frame.schema.items() if dtype == pl.String and known.get(n) != pl.String]
    return frame.with_columns(_time(frame.get_column(name)) for name in texts)


def _time(series: pl.Series) -> pl.Series:
    import polars as pl

    values = series.drop_nulls()
    for pattern, dtype in ((DATE, pl.Date()), (TIME, pl.Datetime("us", "UTC"))):
        if len(values) and values.head(1).str.contains(pattern).all() and values.str.contains(pattern).all():
            text = series.str.replace(" ", "T").str.replace(r"Z$", "+00:00")
            parsed = text.str.to_date(strict=False) if dtype == pl.Date else _instants(text)
            return parsed if parsed.null_count() == series.null_count() else series
    return series


def _instants(text: pl.Series) -> pl.Series:
    short = text.str.replace(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d)([+-])", "$1:00$2")
    return short.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%z", time_unit="us", time_zone="UTC", strict=False)
