"""Score Parquet to Parquet with a compiled model: a row group at a time, one file each, whatever the size of the table.

A part is written beside its place and renamed, so it is there whole or not at all; the same call again goes on with the parts
that are missing. `plan.json` in the target says of which table and program its parts are: parts of another are never mixed in.
Memory is a few batches a thread; the machine's trees are walked without Python's lock, so threads use every core. With a Dask
cluster each group is a task, for which the workers need the same files; two that score one group write the same part.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cellwork import files
from cellwork.errors import BadInput, Conflict, NotFound, near_miss
from cellwork.models.compiled import program as programs
from cellwork.serving.stamp import Stamp, log_columns
from cellwork.wire import Struct

if TYPE_CHECKING:
    from distributed import Client

    from cellwork.models.columns import Column
    from cellwork.models.compiled import Machine
    from cellwork.models.compiled.machine import Coded

ROWS_AT_ONCE = 16_384
WHOLE_BYTES = 64 << 20
"""A row group whose columns take no more than this, unpacked, is read at once."""


class Plan(Struct):
    """What the parts in a target are of: the table as it is, the program, and what is written."""

    source: str
    bytes: int
    modified_ns: int
    program: str
    keep: list[str]
    column: str
    stamp: dict[str, str | int] = {}


class Scored(Struct):
    rows: int
    parts: int
    skipped: int
    """Parts that were there already."""


class Work(Struct):
    """All that scoring one group of a table needs, also in another process."""

    source: str
    target: str
    program: bytes
    native: str
    """The folder of built kernels; empty computes without."""
    names: list[str]
    keep: list[str]
    column: str
    stamp: dict[str, str | int] = {}
    observation: str = ""


def score_parquet(
    source: Path, target: Path, machine: Machine, *, keep: Sequence[str] = (), column: str = "score", threads: int = 0, stamp: Stamp | None = None,
    cluster: Client | None = None,
) -> Scored:  # fmt: skip
    """Write the scores of every row of the Parquet file `source` as files into the folder `target`, beside the columns to `keep`.

    Parameters
    ----------
    threads
        How many row groups at once; default: one a core.
    stamp
        Makes the parts predictions in the form of the prediction log.
    cluster
        A Dask cluster whose workers score; `source` and `target` are where they see them, too.

    Raises
    ------
    NotFound
        There is no such file.
    BadInput
        A column that the model takes or that is to be kept is not in it, or a value that the model refuses.
    Conflict
        The target holds parts of another table, another state of it, or another model.
    """
    import pyarrow.parquet as pq

    if not source.is_file():
        raise NotFound("table", source, "is not there", "check its path")
    metadata = pq.read_metadata(source)
    names = [taken.name for taken in machine.program.columns]
    _check_columns([*names, *keep, *([stamp.observation] if stamp else [])], pq.read_schema(source).names, source)
    if column in keep:
        raise BadInput("column", column, "is kept, and the scores are to have its name", "name the scores otherwise")
    target.mkdir(parents=True, exist_ok=True)
    _check_plan(target, _plan(source, machine, keep, column, stamp))
    groups = [group for group in range(metadata.num_row_groups) if not part(target, group).exists()]
    work = Work(
        source=str(source.resolve()), target=str(target.resolve()), program=programs.encode(machine.program), native=str(machine.folder or ""), names=names, keep=list(keep),
        column=column, stamp=stamp.constants() if stamp else {}, observation=stamp.observation if stamp else "",
    )  # fmt: skip
    if cluster:
        cluster.gather(cluster.map(functools.partial(score_group, work), groups, pure=False))
    else:
        with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
            list(pool.map(functools.partial(score_group, work, machine=machine), groups))
    return Scored(rows=metadata.num_rows, parts=metadata.num_row_groups, skipped=metadata.num_row_groups - len(groups))


def part(target: Path, group: int) -> Path:
    return target / f"part-{group:05}.parquet"


def _check_columns(wanted: Sequence[str], there: Sequence[str], source: Path) -> None:
    missing = next((name for name in wanted if name not in there), None)
    if missing:
        raise BadInput("column", missing, f"is not in {source.name}", near_miss(missing, there))


def _plan(source: Path, machine: Machine, keep: Sequence[str], column: str, stamp: Stamp | None) -> Plan:
    about = source.stat()
    program = hashlib.sha256(msgspec.msgpack.encode(machine.program)).hexdigest()
    return Plan(
        source=str(source.resolve()),
        bytes=about.st_size,
        modified_ns=about.st_mtime_ns,
        program=program,
        keep=list(keep),
        column=column,
        stamp={**stamp.of_answers(), "observation": stamp.observation} if stamp else {},
    )


def _check_plan(target: Path, plan: Plan) -> None:
    file = target / "plan.json"
    if not file.exists():
        if any(target.glob("part-*.parquet")):
            raise Conflict("target", target, "holds parts of nobody knows what", "choose an empty folder")
        files.write(file, msgspec.json.encode(plan))
        return
    if msgspec.json.decode(file.read_bytes(), type=Plan) != plan:
        raise Conflict(
            "target",
            target,
            "holds scores of another table, of an earlier state of it, or of another model",
            "choose an empty folder",
        )


def score_group(work: Work, group: int, *, machine: Machine | None = None) -> None:
    """Score row group number `group` and put its part in its place; without `machine` by one of this process's own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    used = machine or _machine(work.program, work.native)
    place, writer = part(Path(work.target), group), None
    beside = place.with_suffix(f".{os.getpid()}-{threading.get_ident()}.new")
    read = [*dict.fromkeys([*work.names, *work.keep, *filter(None, [work.observation])])]
    try:
        for batch in _batches(Path(work.source), group, read):
            scores = _scores(used, batch)
            kept = {name: batch.column(name) for name in work.keep}
            stamped = log_columns(batch, work.names, work.observation, work.stamp) if work.observation else {}
            table = pa.table({**kept, **stamped, work.column: scores})
            writer = writer or pq.ParquetWriter(beside, table.schema, compression="zstd", use_dictionary=[*work.stamp])
            writer.write_table(table)
        if writer:
            writer.close()
            beside.replace(place)
    finally:
        if writer:
            writer.close()
        beside.unlink(missing_ok=True)


def _scores(machine: Machine, batch: Any) -> Any:
    program = machine.program
    looked_up = {table.column for table in program.tables}
    numbers: list[Any] = [None] * len(program.columns)
    coded: dict[int, Coded] = {}
    for place, column in enumerate(program.columns):
        values = batch.column(column.name)
        if place in looked_up:
            coded[place] = _coded(values, column)
        if place in program.numbers:
            numbers[place] = _numbers(values, column)
    return machine.of_columns(numbers, coded)


@functools.lru_cache(maxsize=4)
def _machine(program: bytes, native: str) -> Machine:
    from cellwork.models.compiled import Machine

    return Machine(programs.decode(program), Path(native) if native else None)


def _batches(source: Path, group: int, columns: list[str]) -> Iterator[Any]:
    """Yield the rows of a row group: a small one at once by polars, which decodes twice as fast as Arrow; of a large one some at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(source, memory_map=True) as file:
        schema, metadata = file.schema_arrow, file.metadata
        about = metadata.row_group(group)
        parts = [about.column(place) for place in range(about.num_columns)]
        size = sum(one.total_uncompressed_size for one in parts if one.path_in_schema.split(".")[0] in columns)
        if size > WHOLE_BYTES or not all(_is_plain(schema.field(name).type) for name in columns):
            yield from file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False)
            return
    first = sum(metadata.row_group(before).num_rows for before in range(group))
    yield from _whole(source, first, about.num_rows, columns).cast(_only(schema, columns)).to_batches()


def _whole(source: Path, first: int, rows: int, columns: list[str]) -> Any:
    import polars as pl

    frame = pl.scan_parquet(source, parallel="none", low_memory=True, glob=False).slice(first, rows).select(columns)
    read: Any = frame.collect(engine="in-memory")
    return read.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()


def _only(schema: Any, columns: list[str]) -> Any:
    import pyarrow as pa

    return pa.schema([schema.field(name) for name in columns])


def _is_plain(kind: Any) -> bool:
    """Whether polars reads a column of this type as what it is."""
    import pyarrow as pa

    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string, pa.types.is_date32)  # fmt: skip
    return any(test(kind) for test in tests) and not pa.types.is_float16(kind)


def _numbers(values: Any, column: Column) -> Any:
    """Return an Arrow array as float64, NaN where there is no value."""
    return _cast(values, column, "float64").to_numpy(zero_copy_only=False)


def _coded(values: Any, column: Column) -> Coded:
    """Return an Arrow array as places in a list of its different values."""
    import numpy as np

    from cellwork.models.compiled.machine import Coded

    found = _cast(values, column, "string" if column.kind == "text" else "float64").dictionary_encode(null_encoding="encode")  # fmt: skip
    return Coded(found.dictionary.to_pylist(), found.indices.to_numpy(zero_copy_only=False).astype(np.int64))


def _cast(values: Any, column: Column, kind: str) -> Any:
    import pyarrow as pa

    try:
        return values.cast(kind, safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise BadInput("column", column.name, f"is {values.type} here, and the model takes a {column.kind}", "convert it first") from None  # fmt: skip
